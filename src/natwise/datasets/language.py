"""Text as streams of bytes, for language models that are small enough for a study."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from natwise.core.validation import check_integer, check_real
from natwise.datasets import local

N_BYTES = 256


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text cut into a part to train on and the part after it.

    Attributes
    ----------
    train, validation : ndarray of uint8
        Bytes of the text, in their order; the vocabulary of a model is `N_BYTES`.
    """

    train: np.ndarray
    validation: np.ndarray


def load_corpus(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, validation_fraction: float = 0.1
) -> Corpus:
    """Read a text file of the data folder, such as ``"text/tinyshakespeare.txt"``; its end is for validation.

    Raises `natwise.datasets.local.DataNotFoundError` when the file is not there.
    """
    fraction = check_real("validation_fraction", validation_fraction, minimum=0.0, maximum=1.0, exclusive=True)
    content = np.fromfile(local.find(name, data_dir), dtype=np.uint8)
    cut = round(len(content) * (1 - fraction))
    return Corpus(content[:cut], content[cut:])


def windows(stream: np.ndarray, length: int) -> torch.Tensor:
    """Cut a stream into consecutive windows: int64 tensor (n, length); what is left at the end is dropped."""
    length = _check_length(stream, length)
    n = len(stream) // length
    return torch.from_numpy(stream[: n * length].reshape(n, length).astype(np.int64))


def draw_windows(stream: np.ndarray, length: int) -> Callable[[int, np.random.Generator], torch.Tensor]:
    """Return ``draw(batch_size, rng)``, which takes windows (batch_size, length) from anywhere in a stream.

    It is what `natwise.core.training.Trainer.fit` takes as `data`.
    """
    length = _check_length(stream, length)

    def draw(batch_size: int, rng: np.random.Generator) -> torch.Tensor:
        starts = rng.integers(len(stream) - length + 1, size=(batch_size, 1))
        return torch.from_numpy(stream[starts + np.arange(length)].astype(np.int64))

    return draw


def _check_length(stream: np.ndarray, length: int) -> int:
    length = check_integer("length", length, minimum=1)
    if len(stream) < length:
        raise ValueError(f"stream must hold at least length={length} tokens, got {len(stream)}")
    return length
