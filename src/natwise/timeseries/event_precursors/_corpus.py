"""`Corpus`: the encoded documents of a dataset, from which batches of windows are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from natwise.timeseries.event_precursors._dataset import EventDataset
from natwise.timeseries.event_precursors._windows import Windows, pad_rows, pad_units

Encode: TypeAlias = Callable[[Sequence[Any]], list[np.ndarray]]


class Blocks:
    """Runs of consecutive instances of a series, which share documents: the samples of the training loop."""

    def __init__(self, dataset: EventDataset, size: int):
        order = np.lexsort((dataset.target_dates.asi8, dataset.series))
        self.rows = [order[first : first + size] for first in range(0, len(order), size)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.rows[number]


class Corpus:
    """The documents of a dataset as the model reads them.

    Parameters
    ----------
    dataset : EventDataset
        Only documents that occur in one of its windows are encoded, each once.
    encode : callable
        Documents -> word ids, vectors, or vectors of excerpts of each.
    device : torch.device
        Where the batches go, in float32.
    """

    def __init__(self, dataset: EventDataset, encode: Encode, device: torch.device):
        self.dataset, self.like = dataset, torch.zeros((), device=device)
        self.used = dataset.used_documents()
        self.units = encode([dataset.documents[j] for j in self.used]) if len(self.used) else []

    def windows(self, rows: np.ndarray) -> Windows:
        """Return the windows of some instances; documents and days shared by several stand once."""
        days, position = np.unique(self.dataset.window_days[rows], return_inverse=True)
        members = [self.dataset.day_documents[day] for day in days]
        documents = np.unique(np.concatenate(members))
        local = [np.searchsorted(documents, member) for member in members]
        units, lengths = self._pad([self.units[i] for i in np.searchsorted(self.used, documents)])
        table = torch.as_tensor(pad_rows([np.empty(0, np.int64), *local], -1), device=self.like.device)
        windows = torch.as_tensor(position.reshape(len(rows), -1) + 1, device=self.like.device)
        known = ~np.isnan(self.dataset.past_labels[rows])
        labels = np.stack([np.where(known, self.dataset.past_labels[rows], 0), known], axis=-1)
        past = torch.as_tensor(labels, dtype=self.like.dtype, device=self.like.device)
        return Windows(units, lengths, table, windows, past)

    def document_ids(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions in the dataset of the documents of `windows(rows)`."""
        days = np.unique(self.dataset.window_days[rows])
        return np.unique(np.concatenate([self.dataset.day_documents[day] for day in days]))

    def _pad(self, units: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return documents as one tensor (n_documents, longest, ...), and their lengths (n_documents,)."""
        first = self.units[0] if self.units else np.zeros((1, 1))
        if first.ndim == 1 and first.dtype.kind == "f":
            lengths = torch.ones(len(units), dtype=torch.int64, device=self.like.device)
            vectors = np.array(units).reshape(-1, len(first))
            return torch.as_tensor(vectors, dtype=self.like.dtype, device=self.like.device), lengths
        return pad_units(units, None if first.dtype.kind != "f" else first.shape[1], self.like)
