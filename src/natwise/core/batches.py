"""Batches whose content depends on the seed and the number of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from natwise.core.random import Streams


class Batches:
    """The batches of a run; see `natwise.core.training.Trainer.fit` for what `data` may be."""

    def __init__(self, data: Any, batch_size: int, steps_per_epoch: int | None, collate: Callable[..., Any]):
        self.data, self.batch_size, self.collate = data, batch_size, collate
        self.drawn = callable(data)
        if self.drawn != (steps_per_epoch is not None):
            expected = "given when data is a function" if self.drawn else "None when data has a length"
            raise ValueError(f"steps_per_epoch must be {expected}, got {steps_per_epoch}")
        self.n_samples = 0 if self.drawn else _length(data)
        self.steps_per_epoch: int = steps_per_epoch or math.ceil(self.n_samples / batch_size)
        self._order: tuple[int, list[np.ndarray]] = (-1, [])

    def part(self, step: int, streams: Streams, process: int, n_processes: int) -> tuple[Any, float]:
        """Return the share of one process, and its weight in the mean over processes.

        An empty share (a batch with fewer samples than processes) holds one sample of weight zero, so that
        every process takes part in every exchange of gradients.
        """
        if self.drawn:
            source = self.data(self.batch_size, streams.child("data").numpy(step))
            rows = np.arange(_length(source))
        else:
            source, rows = self.data, self._rows(step, streams)
        share = np.array_split(rows, n_processes)[process]
        weight = len(share) * n_processes / len(rows)
        return self._take(source, share if len(share) else rows[:1]), weight

    def share_of_epoch(self, step: int) -> float:
        """Return the fraction of the epoch's samples that the batch of `step` holds."""
        n, steps = self.n_samples, self.steps_per_epoch
        return 1 / steps if self.drawn else (n // steps + (step % steps < n % steps)) / n

    def _rows(self, step: int, streams: Streams) -> np.ndarray:
        """Return the rows of a batch; all batches of an epoch have the same size, or one sample less.

        A last batch that holds what is left could hold one sample, which batch normalisation refuses.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order = streams.child("order").numpy(epoch).permutation(self.n_samples)
            self._order = (epoch, np.array_split(order, self.steps_per_epoch))
        return self._order[1][position]

    def _take(self, source: Any, rows: np.ndarray) -> Any:
        if isinstance(source, Mapping):
            return {name: self._take(value, rows) for name, value in source.items()}
        if isinstance(source, tuple):
            return tuple(self._take(value, rows) for value in source)
        if isinstance(source, torch.Tensor):
            return source[torch.from_numpy(rows)]
        if isinstance(source, np.ndarray):
            return torch.from_numpy(source[rows])
        return self.collate([source[int(row)] for row in rows])


def _length(data: Any) -> int:
    """Return the common first length of everything in `data`."""
    if isinstance(data, (Mapping, tuple)):
        lengths = {_length(part) for part in (data.values() if isinstance(data, Mapping) else data)}
        if len(lengths) > 1:
            raise ValueError(f"data must hold arrays of the same length, got lengths {sorted(lengths)}")
        length = lengths.pop() if lengths else 0
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__") and getattr(data, "ndim", 1) > 0:
        length = len(data)
    else:
        raise TypeError(f"data must hold arrays, be a dataset or draw batches, got {type(data).__name__}")
    if length == 0:
        raise ValueError("data must hold at least one sample, got none")
    return length
