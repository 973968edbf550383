"""`Windows`: a batch in which every document and every day stands once, however many instances share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from natwise.core.validation import check_array, shorten


class Windows(NamedTuple):
    """Padded tensors of a batch of n instances.

    Attributes
    ----------
    units : Tensor of shape (n_documents, m), (n_documents, m, width) or (n_documents, width)
        Word ids, vectors of excerpts, or one vector per document.
    lengths : Tensor of shape (n_documents,)
        Words or excerpts of each document.
    day_documents : Tensor of shape (n_days, most documents of a day)
        Documents of each day, padded by -1. Day 0 is empty and stands for the absent days of shorter instances.
    days : Tensor of shape (n, history)
        Days of each instance, earliest first, padded by 0 at the end.
    past : Tensor of shape (n, history, 2)
        Label of each day, 0 where it is not known, and whether it is known.
    """

    units: Tensor
    lengths: Tensor
    day_documents: Tensor
    days: Tensor
    past: Tensor

    @property
    def present(self) -> Tensor:
        """Whether a day has a document, (n, history)."""
        return (self.day_documents >= 0).any(dim=1)[self.days]


def pad_rows(rows: Sequence[Any], fill: int) -> np.ndarray:
    """Return integer rows as one array, filled up at the end; at least one column."""
    width = max([1, *map(len, rows)])
    padded = np.full((len(rows), width), fill, dtype=np.int64)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    padded[np.arange(width) < lengths[:, None]] = np.concatenate(rows) if len(rows) and lengths.any() else []
    return padded


def pad_units(documents: Sequence[Any], width: int | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return documents, as word ids (`width` None) or as vectors of excerpts, padded by zeros, and their lengths."""
    lengths = torch.tensor([len(document) for document in documents], dtype=torch.int64, device=like.device)
    if width is None:
        return torch.as_tensor(pad_rows(documents, 0), device=like.device), lengths
    units = np.zeros((len(documents), max([1, *map(len, documents)]), width))
    for row, document in zip(units, documents, strict=True):
        row[: len(document)] = document
    return torch.as_tensor(units, dtype=like.dtype, device=like.device), lengths


def windows_of(instances: Sequence[Any], vocab_size: int | None, width: int, excerpts: bool, like: Tensor) -> Windows:
    """Return nested lists as `Windows`, after checking them; dtype and device are those of `like`."""
    if not isinstance(instances, Sequence) or not len(instances):
        raise ValueError(f"instances must be a list of at least one instance, got {shorten(instances)}")
    documents: list[np.ndarray] = []
    day_documents: list[list[int]] = [[]]
    days: list[list[int]] = []
    for instance in instances:
        days.append([])
        for day in instance:
            days[-1].append(len(day_documents))
            day_documents.append(list(range(len(documents), len(documents) + len(day))))
            documents += [_document(document, vocab_size, width, excerpts) for document in day]
    if excerpts:
        units, lengths = pad_units(documents, None if vocab_size is not None else width, like)
    else:
        vectors = np.array(documents).reshape(-1, width)
        units = torch.as_tensor(vectors, dtype=like.dtype, device=like.device)
        lengths = torch.ones(len(documents), dtype=torch.int64, device=like.device)
    table = torch.as_tensor(pad_rows(day_documents, -1), device=like.device)
    windows = torch.as_tensor(pad_rows(days, 0), device=like.device)
    return Windows(units, lengths, table, windows, like.new_zeros(*windows.shape, 2))


def _document(document: Any, vocab_size: int | None, width: int, excerpts: bool) -> np.ndarray:
    if vocab_size is None:
        return check_array("instances", document, shape=("n_excerpts", width) if excerpts else (width,))
    words = check_words("instances", document)
    if words.max() >= vocab_size:
        raise ValueError(f"instances must hold word ids below vocab_size={vocab_size}, got {words.max()}")
    return words


def check_words(name: str, document: Any) -> np.ndarray:
    """Return a document's word ids; at least one, none negative."""
    words = check_array(name, document, shape=("n_words",), dtype=np.int64)
    if not len(words):
        raise ValueError(f"{name} must hold documents with at least one word, got {shorten(document)}")
    if words.min() < 0:
        raise ValueError(f"{name} must hold word ids >= 0, got {words.min()}")
    return words
