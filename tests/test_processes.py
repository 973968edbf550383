"""Two processes, started by `accelerate launch`, against one: weights shared (DDP) and weights spread (FSDP2)."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
LAUNCH = ["accelerate.commands.launch", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
WAYS = {"DDP": ["--multi_gpu"], "FSDP2": ["--use_fsdp", "--fsdp_version=2"]}  # without a GPU both take gloo


def launch(way, job, out):
    command = [sys.executable, "-m", *LAUNCH, "--mixed_precision=no", "--dynamo_backend=no", *WAYS[way]]
    subprocess.run([*command, str(HERE / job), str(out)], check=True)


def assert_close(two, one):
    two, one = load_file(two), load_file(one)
    assert two.keys() == one.keys()
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_networks(tmp_path, way):
    """Weights, losses and scores, with uneven batches, clipping, early stopping, and a checkpoint in between."""
    job = runpy.run_path(str(HERE / "training_job.py"))
    launch(way, "training_job.py", tmp_path / "two")
    for name, options in {"0": job["UNEVEN"][0], "1": job["UNEVEN"][1], "resumed": {}}.items():
        job["train"](tmp_path / "one", **options)
        for rank in range(2):
            assert_close(tmp_path / f"two.{name}.{rank}", tmp_path / "one")
    job["train"](tmp_path / "taken up by one", tmp_path / "two.checkpoint")
    assert_close(tmp_path / "taken up by one", tmp_path / "one")


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.slow) for way in WAYS])
def test_language_models(tmp_path, way):
    """A student with its teacher in the first half of the steps, with unequal numbers of tokens and clipping."""
    runpy.run_path(str(HERE / "language_model_job.py"))["train"](tmp_path / "one")
    launch(way, "language_model_job.py", tmp_path / "two")
    for rank in range(2):
        assert_close(tmp_path / f"two.{rank}", tmp_path / "one")
