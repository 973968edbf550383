"""Runs that are killed and resumed, and runs in two processes, against one undisturbed run."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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


def test_two_processes_give_what_one_gives(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, str(JOB), str(tmp_path / "two")], check=True)
    for i, options in enumerate(job["UNEVEN"]):
        job["train"](tmp_path / "one", **options)
        one = load_file(tmp_path / "one")
        for rank in range(2):
            for name, value in load_file(tmp_path / f"two.{i}.{rank}").items():
                torch.testing.assert_close(value, one[name], rtol=0, atol=1e-5)
