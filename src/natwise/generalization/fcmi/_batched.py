"""Many small networks trained at once: the runs of a supersample as one batch of parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from natwise.core.progress import progress
from natwise.core.random import Streams
from natwise.core.validation import (
    check_array,
    check_device,
    check_integer,
    check_real,
    shorten,
)

ADAM = partial(torch.optim.Adam, fused=True)
EVALUATED_AT_ONCE = 2048


class BatchedTrainer:
    """Train copies of a small network on different training sets, many at a time (`torch.func.vmap`).

    Parameters
    ----------
    factory : callable
        ``factory()`` returns a fresh `torch.nn.Module` that maps a batch of inputs to logits (batch, n_classes). It
        draws its weights from torch's global generator, which is seeded for each run and put back afterwards.
    max_epochs : int
        Passes over each training set.
    batch_size : int
        Most examples per step and run.
    learning_rate : float
        Handed to `optimizer` as ``lr``.
    optimizer : callable
        ``optimizer(parameters, lr=learning_rate)`` returns an optimiser that treats every number by itself (Adam,
        AdamW, SGD, `SGLD`): the parameters of all runs come stacked. Default: Adam.
    runs_at_once : int, optional
        Networks per batch. Default: all on a GPU and for networks without convolutions; one by one for convolutions on
        a CPU, where a batch of convolutions takes longer than one after the other.
    device : str or torch.device
        Where to train.
    verbose : int
        Show a progress bar over steps when standard error is a terminal.

    Notes
    -----
    Batch normalisation keeps its statistics per run. The cross-entropy of integer classes is minimised. Runs that share
    a seed share first weights, the order of the data and dropout masks, so that each is a function of its training set.
    How many runs are batched changes results by rounding only, unless the network draws random numbers in training.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        *,
        max_epochs: int = 200,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
        runs_at_once: int | None = None,
        device: str | torch.device = "cpu",
        verbose: int = 0,
    ):
        if not callable(factory) or isinstance(factory, nn.Module):
            raise TypeError(f"factory must be a callable that returns a fresh torch module, got {shorten(factory)}")
        if not callable(optimizer):
            raise TypeError(f"optimizer must be callable, got {shorten(optimizer)}")
        self.factory, self.optimizer, self.verbose = factory, optimizer, verbose
        self.max_epochs = check_integer("max_epochs", max_epochs, minimum=1)
        self.batch_size = check_integer("batch_size", batch_size, minimum=1)
        self.learning_rate = check_real("learning_rate", learning_rate, minimum=0.0)
        self.device = check_device("device", device)
        if runs_at_once is not None:
            check_integer("runs_at_once", runs_at_once, minimum=1)
        self.runs_at_once = runs_at_once

    def chunk_size(self, n_runs: int) -> int:
        """Return how many of `n_runs` networks are trained at once."""
        if self.runs_at_once is not None:
            return min(self.runs_at_once, n_runs)
        slow = self.device.type == "cpu" and any("Conv" in type(m).__name__ for m in self._build(0).modules())
        return 1 if slow else n_runs

    def fit_predict(self, X: Any, y: ArrayLike, train: ArrayLike, seeds: Sequence[int]) -> np.ndarray:
        """Train a network per run and return what each predicts for all examples.

        Parameters
        ----------
        X : array-like of shape (n_examples, ...)
            Inputs, as the network takes them.
        y : array-like of int, shape (n_examples,)
            Classes from 0.
        train : array-like of int, shape (n_runs, n)
            The examples that each run trains on.
        seeds : sequence of int
            One per run, at least 0.

        Returns
        -------
        ndarray of int64, shape (n_runs, n_examples)

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described, the loss of a run is not finite, the network does not take these
            inputs or gives fewer logits than there are classes.
        """
        X, y, train = _check_examples(X, y, train)
        given = check_array("seeds", seeds, shape=(len(train),), dtype=np.int64)
        seeds = [check_integer("seeds", seed, minimum=0) for seed in given]
        inputs, targets = torch.from_numpy(X).to(self.device), torch.from_numpy(y).to(self.device)
        size = self.chunk_size(len(train))
        parts = [slice(first, first + size) for first in range(0, len(train), size)]
        return np.concatenate([self._fit_chunk(inputs, targets, train[part], seeds[part]) for part in parts])

    def _fit_chunk(self, X: torch.Tensor, y: torch.Tensor, train: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Train networks at once on `train` (n_runs, n) of the examples X (n_examples, ...) and y (n_examples,)."""
        with Streams(int(seeds[0])).torch_global("training", self.device):  # dropout
            nets = Networks([self._build(int(seed)) for seed in seeds], self.device, len(set(seeds)) == 1)
            nets.check(X[:2], int(y.max()) + 1)
            optimizer = self.optimizer(nets.parameters(), lr=self.learning_rate)
            with progress(self.max_epochs, wanted=bool(self.verbose)) as report:
                whole = _taken(X, y, train) if train.shape[1] <= self.batch_size else None
                for epoch in range(self.max_epochs):
                    for rows in epoch_batches(train, seeds, epoch, self.batch_size):
                        loss = nets.step(optimizer, *(whole or _taken(X, y, rows)))
                    report(epoch + 1, f"{len(seeds)} networks")
            nets.check_finite(loss)
            return nets.predict(X)

    def _build(self, seed: int) -> nn.Module:
        with Streams(seed).torch_global("init", self.device):
            module = self.factory()
        if not isinstance(module, nn.Module):
            raise TypeError(f"factory must return a torch.nn.Module, got {type(module).__name__}")
        return module


class Networks:
    """Stacked parameters of networks of one architecture, and what is computed with them in one call.

    Parameters
    ----------
    modules : list of torch.nn.Module
        One per run.
    device : torch.device
        Where to compute.
    same_noise : bool
        Give all runs the same dropout masks.
    """

    def __init__(self, modules: list[nn.Module], device: torch.device, same_noise: bool = False):
        stacked, self.buffers = stack_module_state(modules)
        self.weights = {name: value.detach().to(device).requires_grad_() for name, value in stacked.items()}
        self.buffers = {name: value.to(device) for name, value in self.buffers.items()}
        self.module = copy.deepcopy(modules[0]).to(device)
        self._forward = vmap(self._logits, randomness="same" if same_noise else "different")
        self.n_runs = len(modules)

    def parameters(self) -> list[torch.Tensor]:
        """Return the stacked parameters, for an optimiser."""
        return list(self.weights.values())

    def step(self, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Take a step of every run on its own batch, (n_runs, batch, ...), and return the losses before it."""
        self.module.train()
        if self.n_runs > 1:
            logits = self._forward(self.weights, self.buffers, x)
        else:  # plain convolutions are faster than batches of one
            logits = self._logits(_first(self.weights), _first(self.buffers), x[0])[None]
        losses = cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
        optimizer.zero_grad()
        losses.sum().backward()  # runs share no parameter: each gets the gradient of its own loss
        optimizer.step()
        return losses.detach()

    def predict(self, X: torch.Tensor) -> np.ndarray:
        """Return the class of every example by every run, (n_runs, n_examples)."""
        self.module.eval()
        forward = vmap(self._logits, in_dims=(0, 0, None))
        with torch.no_grad():
            parts = [forward(self.weights, self.buffers, x).argmax(-1).cpu() for x in X.split(EVALUATED_AT_ONCE)]
        return torch.cat(parts, dim=1).numpy()

    def gradient_variance(self, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        """Return the mean over examples (n_runs, batch, ...) of ||grad_i - mean grad||^2, for every run."""
        self.module.eval()

        def loss(weights: Any, buffers: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return cross_entropy(self._logits(weights, buffers, x[None]), y[None])

        of_example = vmap(vmap(grad(loss), in_dims=(None, None, 0, 0)))
        per_example = of_example({k: v.detach() for k, v in self.weights.items()}, self.buffers, x, y)
        parts = [(g - g.mean(1, keepdim=True)).square().flatten(1).sum(1) / g.shape[1] for g in per_example.values()]
        return torch.stack(parts).sum(0).cpu().double().numpy()

    def check(self, x: torch.Tensor, n_classes: int) -> None:
        """Refuse networks that do not map inputs (batch, ...) to logits (batch, n_classes or more), in words."""
        self.module.eval()
        try:
            with torch.no_grad():
                shape = tuple(self.module(x).shape)
        except RuntimeError as error:
            inputs = tuple(x.shape[1:])
            raise ValueError(
                f"factory must return a network for inputs of shape {inputs}, torch says: {error}"
            ) from None
        if len(shape) != 2 or shape[0] != len(x) or shape[1] < n_classes:
            raise ValueError(f"factory must return a network with logits (batch, >= {n_classes}), got shape {shape}")

    @staticmethod
    def check_finite(losses: torch.Tensor) -> None:
        """Refuse diverged runs, by their losses (n_runs,)."""
        if not torch.isfinite(losses).all():
            raise ValueError(f"the training loss is {losses[~torch.isfinite(losses)][0]}; try a lower learning_rate")

    def _logits(self, weights: Any, buffers: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, n_classes) of one network on inputs (batch, ...)."""
        return functional_call(self.module, (weights, buffers), (x,))


def _check_examples(X: Any, y: ArrayLike, train: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs (n_examples, ...), classes (n_examples,) and the rows of each run (n_runs, n)."""
    X = check_array("X", X, dtype=np.float32)
    if X.ndim < 2 or not X.size:
        raise ValueError(f"X must have shape (n_examples, ...), not empty, got {X.shape}")
    y = check_array("y", y, shape=(len(X),), dtype=np.int64)
    if y.min() < 0:
        raise ValueError(f"y must hold classes from 0, got {y.min()}")
    train = check_array("train", train, shape=("n_runs", "n"), dtype=np.int64)
    if not train.size or train.min() < 0 or train.max() >= len(X):
        found = f"{train.min()} to {train.max()}" if train.size else f"shape {train.shape}"
        raise ValueError(f"train must hold positions from 0 to {len(X) - 1}, got {found}")
    return X, y, train


def _first(stacked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the parameters of the first of stacked networks: (networks, ...) without the first axis."""
    return {name: value[0] for name, value in stacked.items()}


def epoch_batches(train: np.ndarray, seeds: Sequence[int], epoch: int, batch_size: int) -> list[np.ndarray]:
    """Return the rows of each batch of an epoch, (n_runs, batch), in an order that each run's seed decides."""
    n_steps = -(-train.shape[1] // batch_size)
    if n_steps == 1:
        return [train]
    orders = {seed: Streams(int(seed)).child("order").numpy(epoch).permutation(train.shape[1]) for seed in set(seeds)}
    shuffled = np.stack([row[orders[seed]] for row, seed in zip(train, seeds, strict=True)])
    return np.array_split(shuffled, n_steps, axis=1)


def _taken(X: torch.Tensor, y: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (n_runs, batch, ...) and classes (n_runs, batch) of some rows (n_runs, batch)."""
    index = torch.from_numpy(rows).to(X.device)
    return X[index], y[index]
