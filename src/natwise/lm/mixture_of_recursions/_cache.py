"""Keys and values of sequences whose tokens reach different depths.

A token's place is its ordinal: how many tokens of its sequence, padding not counted, came before it. A store keeps
for each row only the tokens that came to it, in order, with their ordinals; what is empty has the ordinal `EMPTY`,
which is after every query.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

EMPTY = 2**31 - 1
BLOCK = 64  # places by which a store grows


class RaggedStore:
    """Keys and values of layers that see the same tokens; rows may have different lengths.

    Parameters
    ----------
    n_layers : int
        Layers that write to it.
    """

    def __init__(self, n_layers: int):
        self.keys: list[Tensor | None] = [None] * n_layers
        self.values: list[Tensor | None] = [None] * n_layers
        self.ordinals: Tensor | None = None
        self.counts: Tensor | None = None
        self._put: tuple[Tensor, Tensor, Tensor] | None = None

    def reserve(self, ordinals: Tensor, valid: Tensor) -> Tensor:
        """Make place for tokens (batch, n), of which those that are not valid stand at the end of their row.

        Returns the ordinals (batch, length) that the queries will meet.
        """
        if self.ordinals is None:  # the first tokens are taken as they are
            self.ordinals = ordinals.masked_fill(~valid, EMPTY)
            self.counts = valid.sum(1)
            self._put = None
            return self.ordinals
        assert self.counts is not None
        row, column = valid.nonzero(as_tuple=True)
        place = self.counts[row] + column
        self.counts = self.counts + valid.sum(1)
        self._grow(int(self.counts.max()))
        self.ordinals[row, place] = ordinals[row, column]
        self._put = (row, column, place)
        return self.view_ordinals()

    def view_ordinals(self) -> Tensor:
        """Return the ordinals (batch, length), as far as the longest row goes."""
        assert self.ordinals is not None
        assert self.counts is not None
        return self.ordinals[:, : int(self.counts.max())]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values (batch, n, heads, width) where `reserve` made place; return what queries attend to."""
        if self._put is None:
            self.keys[layer], self.values[layer] = keys, values
        else:
            row, column, place = self._put
            for kept, new in ((self.keys, keys), (self.values, values)):
                store = self._room(kept[layer], new)
                store[row, place] = new[row, column]
                kept[layer] = store
        return self.read(layer)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (batch, length, heads, width)."""
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None
        assert values is not None
        assert self.counts is not None
        length = keys.shape[1] if self._put is None else int(self.counts.max())
        return keys[:, :length], values[:, :length]

    def select(self, rows: Tensor) -> None:
        """Keep these rows (n,), in this order; a row may come twice."""
        if self.ordinals is None:
            return
        assert self.counts is not None
        self.ordinals, self.counts = self.ordinals[rows], self.counts[rows]
        for kept in (self.keys, self.values):
            kept[:] = [None if store is None else store[rows] for store in kept]

    def forget_from(self, limits: Tensor) -> None:
        """Drop the tokens whose ordinal is at least their row's limit (batch,)."""
        if self.ordinals is None:
            return
        self.ordinals = self.ordinals.masked_fill(self.ordinals >= limits[:, None], EMPTY)
        self.counts = (self.ordinals != EMPTY).sum(1)

    def _grow(self, length: int) -> None:
        assert self.ordinals is not None
        if length > self.ordinals.shape[1]:
            wider = self.ordinals.new_full((len(self.ordinals), -(-length // BLOCK) * BLOCK), EMPTY)
            wider[:, : self.ordinals.shape[1]] = self.ordinals
            self.ordinals = wider

    def _room(self, store: Tensor | None, new: Tensor) -> Tensor:
        """Return a layer's store (batch, places, heads, width), made or grown to hold all ordinals."""
        assert self.ordinals is not None
        n_rows, length = self.ordinals.shape
        if store is not None and store.shape[1] >= length:
            return store
        wider = new.new_zeros(n_rows, length, *new.shape[2:])
        if store is not None:
            wider[:, : store.shape[1]] = store
        return wider


class MoRCache(Cache):
    """The cache of a mixture of recursions: a ragged store for each recursion, and one on either side of the loop.

    Parameters
    ----------
    config : MoRConfig
    """

    def __init__(self, config: Any):
        super().__init__(layers=[])
        outer = [RaggedStore(1) for _ in range(2 * config.n_outer)]
        self.first, self.last = outer[: config.n_outer], outer[config.n_outer :]
        self.loops = [RaggedStore(config.block_length) for _ in range(config.num_recursions)]
        self.valid: Tensor | None = None  # (batch, columns seen): which of them held a token

    @property
    def stores(self) -> list[RaggedStore]:
        """All stores, in the order of depth."""
        return [*self.first, *self.loops, *self.last]

    def see(self, valid: Tensor) -> Tensor:
        """Note new columns (batch, n); return how many tokens each row had before."""
        past = valid.new_zeros(len(valid), 0) if self.valid is None else self.valid
        if len(past) != len(valid):
            raise ValueError(f"past_key_values must hold {len(valid)} sequences like the input, got {len(past)}")
        self.valid = torch.cat([past, valid], dim=1)
        return past.sum(1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns seen, padding included."""
        return 0 if self.valid is None else self.valid.shape[1]

    def n_entries(self) -> list[int]:
        """Return how many tokens each store holds, over all rows."""
        return [0 if store.counts is None else int(store.counts.sum()) for store in self.stores]

    def crop(self, max_length: int) -> None:
        """Forget the columns from `max_length` on; a negative number counts from the end."""
        if self.valid is None:
            return
        length = max_length if max_length >= 0 else max(self.valid.shape[1] + max_length, 0)
        self.valid = self.valid[:, :length]
        for store in self.stores:
            store.forget_from(self.valid.sum(1))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows (n,), in this order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows (n,), in this order."""
        if self.valid is None:
            return
        rows = indices.to(self.valid.device)
        self.valid = self.valid[rows]
        for store in self.stores:
            store.select(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.valid is not None:
            rows = torch.arange(len(self.valid), device=self.valid.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything."""
        self.valid = None
        for i, store in enumerate(self.first):
            self.first[i] = RaggedStore(len(store.keys))
        for i, store in enumerate(self.last):
            self.last[i] = RaggedStore(len(store.keys))
        for i, store in enumerate(self.loops):
            self.loops[i] = RaggedStore(len(store.keys))
