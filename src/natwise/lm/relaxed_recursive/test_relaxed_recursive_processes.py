"""Several processes on one machine: the same losses and weights as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, PrinterCallback, TrainingArguments

from natwise.lm import EarlyExitLoss, UptrainTrainer, to_recursive
from natwise.lm.relaxed_recursive.test_relaxed_recursive import source

IDS = torch.randint(3, 48, (16, 9), generator=torch.Generator().manual_seed(0))
MODULE = "natwise.lm.relaxed_recursive.test_relaxed_recursive_processes"


def train(folder, batch_size):
    """Train with a teacher and early exits on sequences with unequal numbers of tokens that count."""
    examples = [{"input_ids": one, "labels": one.clone()} for one in IDS]
    for i, example in enumerate(examples):
        example["labels"][: 2 * (i % 4)] = -100
    arguments = TrainingArguments(
        folder, max_steps=4, per_device_train_batch_size=batch_size, learning_rate=0.5, optim="sgd", use_cpu=True,
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    model = to_recursive(source(), 2, "average", 2, random_state=0)
    trainer = UptrainTrainer(model, arguments, examples, teacher=source(), early_exit=EarlyExitLoss())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        (Path(folder) / "losses.json").write_text(json.dumps([arguments.world_size, losses]))
        model.save_pretrained(folder)


def train_sharded(folder):
    """Train the same model whole, and with every weight cut in two; the tied layers are one unit."""
    dist.init_process_group("gloo")
    rank, ids = dist.get_rank(), IDS[:4]
    models = [to_recursive(source(), 2, "average", 2, random_state=0) for _ in range(2)]
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(list(models[0].model.layers), mesh=mesh)
    fully_shard(models[0], mesh=mesh)
    for model, mine in zip(models, (ids[2 * rank :][:2], ids), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(mine, labels=mine).loss.backward()
            optimizer.step()
    kept = sum(parameter.to_local().numel() for parameter in models[0].parameters())
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    largest = max(float((ours.full_tensor() - whole).detach().abs().max()) for ours, whole in pairs)
    if rank == 0:
        (Path(folder) / "sharded.json").write_text(json.dumps([kept, models[1].num_parameters(), largest]))
    dist.destroy_process_group()


def launch(n, *arguments):
    """Run a module in n processes that talk over gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n), "-m"]
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *map(str, arguments)], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def largest_difference(one, other):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert set(ours) == set(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    found = {}
    for n in (1, 2):
        launch(n, MODULE, tmp_path / str(n), 4 // n)
        n_processes, found[n] = json.loads((tmp_path / str(n) / "losses.json").read_text())
        assert n_processes == n
    assert found[1] == pytest.approx(found[2], abs=1e-5)
    assert largest_difference(tmp_path / "1", tmp_path / "2") <= 1e-6


@pytest.mark.slow
def test_weights_may_be_cut_among_processes(tmp_path):
    launch(2, MODULE, tmp_path, "sharded")
    kept, whole, largest = json.loads((tmp_path / "sharded.json").read_text())
    assert kept < 0.6 * whole
    assert largest <= 1e-6


@pytest.mark.slow
def test_command_in_two_processes(tmp_path):
    source(vocab_size=256).save_pretrained(tmp_path / "source")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 60)
    options = ["--rank", 2, "--steps", 8, "--learning-rate", 0.02, "--distill", "jsd"]
    for n in (1, 2):
        files = [tmp_path / "source", tmp_path / "text.txt", tmp_path / str(n)]
        printed = launch(n, "natwise", "lm", "uptrain", *files, *options, "--batch", f"{8 // n}x16")
        assert [line.split(":")[0] for line in printed.splitlines()] == ["loop 1", "loop 2", "saved"]
    assert not (tmp_path / "2" / "checkpoints").exists()
    assert largest_difference(tmp_path / "1", tmp_path / "2") <= 1e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "2").config.num_loops == 2


if __name__ == "__main__":
    train_sharded(sys.argv[1]) if sys.argv[2] == "sharded" else train(sys.argv[1], int(sys.argv[2]))
