"""Everything that writes, on a disk that gets full: `python full_disk_job.py FOLDER`, a mount of a few kilobytes."""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from natwise import reproduce
from natwise.core.io import write_bytes
from natwise.core.training import Trainer
from natwise.generalization import run_supersample_experiment
from natwise.result import Result
from natwise.samples import write_ntk_tiles

X = np.random.default_rng(0).standard_normal((40, 3))
OLD = Result("old", arrays={"a": np.arange(9.0)})


def train(folder):
    """Train a network with a checkpoint at each step."""
    model = torch.nn.Linear(3, 1)
    data = torch.from_numpy(X).float()
    trainer = Trainer(max_epochs=2, checkpoint_every=0.0, random_state=0)
    trainer.fit(model, lambda model, batch, step: model(batch).square().mean(), data, checkpoint=folder / "c.pt")


def experiment(folder):
    """Keep the runs of an experiment."""
    run_supersample_experiment(LogisticRegression(), X, X[:, 0] > 0, 10, n_splits=2, checkpoint_dir=folder / "runs")


def tiles(folder):
    """Keep the tiles of a kernel."""
    write_ntk_tiles(torch.nn.Linear(3, 2).eval(), X, folder / "tiles", tile_rows=20)


WRITERS = {
    "result": lambda folder: Result("new", arrays={"a": np.zeros(5000)}).save(folder / "r.safetensors"),
    "bytes": lambda folder: write_bytes(folder / "b", bytes(40_000)),
    "checkpoint": train,
    "experiment": experiment,
    "tiles": tiles,
    "gallery": lambda folder: reproduce.write_gallery(folder / "gallery"),
}


def refuse(write, folder):
    """Return what a writer says on a full disk."""
    try:
        write(folder)
    except OSError as error:
        return str(error)
    raise AssertionError("written onto a full disk")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    OLD.save(folder / "r.safetensors")
    write_bytes(folder / "b", b"old")
    before = sorted(folder.iterdir())
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:  # until nothing fits any more
        try:
            while file.write(bytes(512)):
                pass
        except OSError:
            pass
    for name, write in WRITERS.items():
        message = refuse(write, folder)
        assert "No space left on device" in message, f"{name}: {message}"
        assert "\n" not in message
    assert Result.load(folder / "r.safetensors") == OLD
    assert (folder / "b").read_bytes() == b"old"
    assert not [path for path in folder.rglob("*") if path.is_file() and path not in (*before, filler)]
    filler.unlink()
    WRITERS["result"](folder)
    print("survived", len(WRITERS))
