"""Training that is killed and resumed, against one undisturbed run."""

import runpy
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from natwise.testing import check_resume, same_bits

JOB = Path(__file__).with_name("training_job.py")
job = runpy.run_path(str(JOB))


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_training_ends_with_the_same_bits(tmp_path, kills):
    resumed, undisturbed, checkpoint = (tmp_path / name for name in ("resumed", "undisturbed", "checkpoint.pt"))
    check_resume([sys.executable, str(JOB), str(resumed), str(checkpoint)], checkpoint, kills=kills, seconds=0.3)
    job["train"](undisturbed, dropout=0.3, max_epochs=80)
    assert same_bits(load_file(resumed), load_file(undisturbed))
