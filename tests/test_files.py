"""Files that are damaged, hostile, or too large for the disk: an equal result or one error, and nothing lost."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from natwise import audit
from natwise.core.io import load_npz
from natwise.core.training import Trainer
from natwise.generalization import run_supersample_experiment
from natwise.result import Result
from natwise.samples import read_ntk_tiles, write_ntk_tiles
from natwise.testing import same_bits

X = np.random.default_rng(0).standard_normal((24, 3))
N_MUTATIONS = 500


def experiment(folder):
    experiment = run_supersample_experiment(LogisticRegression(), X, X[:, 0] > 0, 10, n_splits=4, checkpoint_dir=folder)
    return dict(experiment.arrays)


def training(folder):
    model = torch.nn.Linear(3, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.fill_(0.5), model.bias.fill_(0.5)
    trainer = Trainer(max_epochs=2, batch_size=8, random_state=0)
    trainer.fit(model, lambda model, batch, step: model(batch).square().mean(), torch.from_numpy(X),
                checkpoint=folder / "checkpoint.pt")  # fmt: skip
    return {name: value.numpy() for name, value in model.state_dict().items()}


def kernel(folder):
    if not (folder / "kernel.json").exists():
        module = torch.nn.Linear(3, 1, dtype=torch.float64).eval()
        write_ntk_tiles(module, X, folder, tile_rows=12)
    return {"kernel": read_ntk_tiles(folder)}


def result(folder):
    path = folder / "result.safetensors"
    if not path.exists():
        Result("demo", arrays={"a": X}, scalars={"s": 0.5}, rows=range(24), params={"text": "é"}).save(path)
    return Result.load(path)


def audited(folder):
    path = folder / "audit.safetensors"
    if not path.exists():
        audit.run(*load_iris(return_X_y=True), minutes=0.02, verbose=0).save(folder)
    return Result.load(path)


FILES = {  # which file, and what reads it again
    "result": (result, "result.safetensors"),
    "audit": (audited, "audit.safetensors"),
    "checkpoint": (training, "checkpoint.pt"),
    "experiment": (experiment, "supersample-0-runs-1-1.npz"),
    "tile": (kernel, "tile-0-1.npz"),
}


def mutated(content, rng):
    """Return the content with a bit flipped, bytes left out, put in, zeroed or swapped, or the end cut off."""
    start, size = int(rng.integers(len(content))), int(rng.integers(1, 64))
    before, middle, after = content[:start], content[start : start + size], content[start + size :]
    return [
        before + bytes([content[start] ^ 1 << int(rng.integers(8))]) + content[start + 1 :],
        before + after,
        before + rng.bytes(size) + content[start:],
        before + bytes(len(middle)) + after,
        before + middle[::-1] + after,
        before,
    ][int(rng.integers(6))]


def read_or_message(read, folder):
    """Return what was read, or what the ValueError said."""
    try:
        return read(folder), None
    except ValueError as error:
        return None, str(error)


def equal(a, b):
    return a == b if isinstance(a, Result) else same_bits(a, b)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_gives_the_same_or_one_error(tmp_path, name):
    """Of 500 mutations per kind of file none gives other numbers, hangs, or another error than a ValueError."""
    read, file = FILES[name]
    good, path = read(tmp_path), tmp_path / file
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(N_MUTATIONS):
        path.write_bytes(mutated(content, rng))
        again, message = read_or_message(read, tmp_path)
        if message is None:
            assert equal(again, good)
        else:
            assert "\n" not in message
            assert str(path) in message
            refused += 1
    assert refused > 0.8 * N_MUTATIONS
    path.write_bytes(content)
    assert equal(read(tmp_path), good)


def test_names_in_archives_are_names_and_no_paths(tmp_path):
    """Nothing is unpacked: a member called ../../x is an array of that name."""
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    names = ["../../evil.npy", "/etc/natwise.npy", "a/../../b.npy", "C:\\x.npy"]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in names:
            archive.writestr(name, buffer.getvalue())
    assert set(load_npz(tmp_path / "a.npz")) == {name.removesuffix(".npy") for name in names}
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert not Path("/etc/natwise.npy").exists()


def _mounts():
    """Say whether this process may make a file system of its own."""
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not _mounts(), reason="needs a system that lets its users mount a tmpfs")
def test_a_full_disk_is_an_error_and_keeps_what_was_there(tmp_path):
    """A real file system of 48 kB: result, checkpoint, runs, tiles and gallery; see full_disk_job.py."""
    job = Path(__file__).with_name("full_disk_job.py")
    script = 'mount -t tmpfs -o size=48k none "$2" && exec "$0" "$1" "$2"'
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, str(job), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "survived 6\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_said_in_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "natwise", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "natwise: [Errno 28] No space left on device\n"
