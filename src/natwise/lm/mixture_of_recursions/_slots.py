"""Slots of a server: which tokens a call takes, and where their keys and values stand.

A slot is a place for one request. The keys and values of loop r of a slot stand in row ``r * n_slots + slot`` of one
store, so that one call of the block serves rows at different loops. Who stands where is NumPy's on the host: the device
gets the indices of a call and is never asked for anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

BLOCK = 64  # places by which a store grows


@dataclass
class Rows:
    """Tokens that one call takes: up to n of each of b slots.

    Attributes
    ----------
    slots, loops : ndarray
        int64 (b,): the slot of each row and the loop it is at.
    ordinals : ndarray
        int64 (b, n): tokens before each in its request.
    valid : ndarray
        bool (b, n): False where a row has fewer than n; these stand at the end.
    device : torch.device
        Where tensors of them go.
    """

    slots: np.ndarray
    loops: np.ndarray
    ordinals: np.ndarray
    valid: np.ndarray
    device: torch.device

    def tensor(self, values: np.ndarray) -> Tensor:
        """Return host values as a tensor on the device, without waiting for what runs there."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    @cached_property
    def slot_index(self) -> Tensor:
        """The slots (b,), as a tensor."""
        return self.tensor(self.slots)

    @cached_property
    def loop_index(self) -> Tensor:
        """The loops (b,), as a tensor."""
        return self.tensor(self.loops)

    @cached_property
    def positions(self) -> Tensor:
        """The ordinals (b, n), as a tensor."""
        return self.tensor(self.ordinals)

    def only(self, kept: np.ndarray) -> Rows:
        """Return some of the rows (bool (b,) or indices)."""
        return Rows(self.slots[kept], self.loops[kept], self.ordinals[kept], self.valid[kept], self.device)

    def at_loop(self, loop: int) -> Rows:
        """Return the same tokens at another loop."""
        return Rows(self.slots, np.full_like(self.loops, loop), self.ordinals, self.valid, self.device)


class Slots:
    """Keys and values of a looped block: a row for every loop and slot.

    Parameters
    ----------
    n_layers, n_loops, n_slots : int
    first_serves_all : bool
        Whether the first loop's keys and values are what all loops attend to.
    """

    def __init__(self, n_layers: int, n_loops: int, n_slots: int, first_serves_all: bool):
        self.n_slots, self.first_serves_all = n_slots, first_serves_all
        self.counts = np.zeros(n_loops * n_slots, dtype=np.int64)  # tokens of each row
        self.keys: list[Tensor | None] = [None] * n_layers
        self.values: list[Tensor | None] = [None] * n_layers

    def open(self, rows: Rows) -> Tensor:
        """Make place for tokens (b, n); return what each may attend to, bool (b, 1, n, length).

        The tokens of a row come in the order of their ordinals, so each sees what stood there before, and itself.
        """
        own = rows.loops * self.n_slots + rows.slots
        read = rows.slots if self.first_serves_all else own
        writes = rows.valid & (rows.loops == 0)[:, None] if self.first_serves_all else rows.valid
        before = self.counts[read]
        self.counts[own] += writes.sum(1)
        after = self.counts[read]
        row, column = writes.nonzero()
        n = writes.shape[1]
        self._fresh = None if n == 1 and len(row) == len(own) else rows.tensor(row * n + column)
        self._at = rows.tensor(own[row]), rows.tensor(before[row] + column)
        self._read, self._length = rows.tensor(read), int(after.max())
        limits = np.minimum(before[:, None] + np.arange(1, n + 1), after[:, None])
        return rows.tensor(np.arange(self._length) < limits[..., None])[:, None]

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values (b, n, heads, width) of the tokens; return those the rows attend to."""
        found = []
        for stores, new in ((self.keys, keys), (self.values, values)):
            store = self._room(stores, layer, new, self._length)
            flat = new.flatten(0, 1)
            store[self._at] = flat if self._fresh is None else flat[self._fresh]
            found.append(store[self._read, : self._length])
        return found[0], found[1]

    def load(self, row: int, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Fill an empty row with tokens, given their keys and values (n, heads, width) of each layer."""
        for layer, pair in enumerate(pairs):
            for stores, new in zip((self.keys, self.values), pair, strict=True):
                self._room(stores, layer, new[None], len(new))[row, : len(new)] = new
                self.counts[row] = len(new)

    def clear(self, slot: int) -> None:
        """Empty all loops of a slot."""
        self.counts[slot :: self.n_slots] = 0

    def _room(self, stores: list[Tensor | None], layer: int, new: Tensor, length: int) -> Tensor:
        """Return a layer's store (rows, places, heads, width), made or grown to hold rows of this length."""
        store = stores[layer]
        if store is None or store.shape[1] < length:
            wider = new.new_zeros(len(self.counts), -(-length // BLOCK) * BLOCK, *new.shape[2:])
            if store is not None:
                wider[:, : store.shape[1]] = store
            stores[layer] = store = wider
        return store
