"""A small training run as a command: `python training_job.py OUT [CHECKPOINT]`; tests kill or launch it.

Launched in several processes it writes a file per process and run: OUT.<run>.<rank>.
"""

import os
import sys

import torch
from safetensors.torch import save_file
from torch.nn.functional import mse_loss

from natwise.core.random import Streams
from natwise.core.training import Trainer

UNEVEN = (
    {"n_samples": 21, "batch_size": 5, "max_grad_norm": 1.0, "patience": 3, "max_seconds": 600},
    {"n_samples": 3, "batch_size": 2},  # the second process has nothing to do in the batch of one
)
HALVES = ({"max_epochs": 4}, {"max_epochs": 8})  # of one training, through a checkpoint


def train(out, checkpoint=None, *, dropout=0.0, n_samples=21, **options):
    """Train a small network on a noisy sum; write its weights and losses."""
    streams = Streams(7)
    x = streams.numpy("x").standard_normal((n_samples, 6)).astype("float32")
    y = x.sum(1, keepdims=True) + streams.numpy("y").standard_normal((n_samples, 1)).astype("float32")
    with streams.torch_global("init"):
        model = torch.nn.Sequential(
            torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 1)
        )
    options = {"max_epochs": 8, "batch_size": 5, "learning_rate": 0.01, "random_state": 3, **options}
    data = {"x": torch.from_numpy(x), "y": torch.from_numpy(y)}
    history = Trainer(**options).fit(
        model, squared_error, data, validate=lambda model: squared_error(model, data, 0).item(), checkpoint=checkpoint
    )
    assert hasattr(model[0].weight, "full_tensor") == (os.environ.get("ACCELERATE_USE_FSDP") == "true")
    numbers = {"losses": torch.tensor(history.losses), "scores": torch.tensor(history.scores)}
    weights = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in model.state_dict().items()}
    save_file({**weights, **numbers}, out)


def squared_error(model, batch, step):
    return mse_loss(model(batch["x"]), batch["y"])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        train(sys.argv[1], sys.argv[2], dropout=0.3, max_epochs=80, checkpoint_every=0.0)
    else:
        out, rank = sys.argv[1], os.environ["RANK"]
        for i, options in enumerate(UNEVEN):
            train(f"{out}.{i}.{rank}", **options)
        for options in HALVES:
            train(f"{out}.resumed.{rank}", f"{out}.checkpoint", **options)
