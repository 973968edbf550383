"""What every answer of the audit is given: the table, its numbers, random streams, and a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from natwise.core.random import Streams
from natwise.datasets.encoding import Encoded
from natwise.datasets.tables import Table
from natwise.result import Result

if TYPE_CHECKING:
    from natwise.audit.models import Factory
    from natwise.audit.network import Network

THUMBNAIL_PIXELS = 96
OUT_OF_TIME = "It needs a few more seconds than were left; give more --minutes."


def _say_nothing(text: str) -> None:
    """Take a line that nobody asked for."""


@dataclass(frozen=True, eq=False)
class Context:
    """One audit's inputs, shared by its answers.

    Parameters
    ----------
    table : Table
        The data as given.
    encoded : Encoded
        Its features as numbers.
    streams : Streams
        Random streams of this audit; each answer takes children named after itself.
    target : float, optional
        The accuracy the user aims for.
    network : Network, optional
        A wide network linearised on rows of the table; None when there was no time for it.
    answered : dict
        The answers so far, by the name of their question, for later ones to build on.
    announce : callable
        Tells the user, in a line, what long work is about to start.
    own : tuple of str and callable, optional
        Name and factory of the user's model, which then judges instead of the default ones.
    """

    table: Table
    encoded: Encoded
    streams: Streams
    target: float | None = None
    network: Network | None = None
    answered: dict[str, Result] = field(default_factory=dict)
    announce: Callable[[str], None] = _say_nothing
    own: tuple[str, Factory] | None = None

    @property
    def n_classes(self) -> int:
        """The number of classes; 0 for regression."""
        return 0 if self.table.target is not None else len(self.table.classes)

    @property
    def labels(self) -> np.ndarray:
        """What models learn, (n,): class codes, or the numbers of regression."""
        return self.table.labels if self.table.target is None else self.table.target

    @cached_property
    def models(self) -> Mapping[str, Factory]:
        """The models that may judge, by name."""
        from natwise.audit.models import default_models

        return dict([self.own]) if self.own is not None else default_models(self.n_classes)

    @property
    def kernel_or_own(self) -> Factory:
        """One model that is quick and good enough to be trained many times, or the user's."""
        from natwise.audit.models import kernel_machine, kernel_ridge

        return self.own[1] if self.own is not None else kernel_machine if self.n_classes else kernel_ridge

    @property
    def a_model(self) -> str:
        """How a sentence calls the model."""
        return "a default model" if self.own is None else "your model"

    @cached_property
    def row_hashes(self) -> np.ndarray:
        """One 64-bit number per row, (n,); rows with equal features have equal numbers."""
        return hash_rows(self.table.features)

    def thumbnails(self, rows: np.ndarray) -> np.ndarray:
        """Return the images of some rows as bytes, shape (rows, h, w[, c]), stretched over the range of all pixels."""
        assert self.table.image_shape is not None
        if self.table.image_files:
            return self._from_files(rows)
        pixels = self.table.features.iloc[rows].to_numpy(dtype=np.float64)
        low, high = np.nanmin(pixels), np.nanmax(pixels)
        scaled = np.nan_to_num((pixels - low) / ((high - low) or 1.0))
        return (255 * scaled).round().astype(np.uint8).reshape(len(rows), *self.table.image_shape)

    def _from_files(self, rows: np.ndarray) -> np.ndarray:
        """Return images (rows, h, w[, c]) from their files, larger than the models see; black where one is gone."""
        from natwise.datasets.images import read_image

        assert self.table.image_shape is not None
        height, width, *channels = self.table.image_shape
        scale = max(THUMBNAIL_PIXELS // max(height, width), 1)
        shape = (scale * height, scale * width, *channels)
        images = [read_image(self.table.image_files[row], shape) for row in rows]
        return np.stack([np.zeros(shape, dtype=np.uint8) if image is None else image for image in images])


class Unanswered(Exception):  # noqa: N818  # no error: the audit goes on
    """A question that cannot be answered for this table or within this time; the message tells the reader why."""


class Deadline:
    """A moment that work should be finished by.

    Parameters
    ----------
    seconds : float
        From now on; never less than 0.
    """

    def __init__(self, seconds: float):
        self._end = time.perf_counter() + max(seconds, 0.0)

    def left(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(self._end - time.perf_counter(), 0.0)

    def share(self, part: float) -> Deadline:
        """Return a deadline after `part` (0 to 1) of the time that is left."""
        return Deadline(self.left() * part)

    def require(self, seconds: float) -> None:
        """Raise `Unanswered` when fewer than `seconds` are left."""
        if self.left() < seconds:
            raise Unanswered(OUT_OF_TIME)


def one_thread() -> AbstractContextManager[object]:
    """Keep BLAS and OpenMP to one thread inside a block, and put them back after it.

    Folds run side by side instead; many small parallel regions would mostly wait for one another. OpenMP's limit is
    per thread and per library loaded so far, so that every worker enters such a block of its own.
    """
    return threadpool_limits(1)


def hash_rows(features: pd.DataFrame) -> np.ndarray:
    """Return 64-bit hashes (n,) of a frame's n rows; equal rows have equal hashes whatever the columns' types."""
    return pd.util.hash_pandas_object(features, index=False).to_numpy()
