"""What splits, predictions, labels and losses of runs must look like."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from natwise.core.validation import check_array

MAX_CLASSES = 2**31


def check_not_negative(name: str, value: ArrayLike, shape: tuple[int | str, ...] | None = None) -> np.ndarray:
    """Return values of the wanted shape as float64, none of them negative."""
    array = check_array(name, value, shape=shape, dtype=np.float64)
    if array.size and array.min() < 0:
        raise ValueError(f"{name} must be >= 0, got {array.min()}")
    return array


def check_splits(S: ArrayLike) -> np.ndarray:
    """Return splits as integers 0 and 1, (n_splits, n) or (n_supersamples, n_splits, n)."""
    S = check_array("S", S, dtype=np.int64)
    if S.ndim not in (2, 3) or S.size == 0:
        raise ValueError(f"S must have shape (n_splits, n) or (n_supersamples, n_splits, n), not empty, got {S.shape}")
    if S.shape[-2] < 2:
        raise ValueError(f"S must hold at least 2 splits, got shape {S.shape}")
    if ((S != 0) & (S != 1)).any():
        raise ValueError(f"S must hold 0 and 1 only, got {S[(S != 0) & (S != 1)][0]}")
    return S


def check_predictions(predictions: ArrayLike, splits: tuple[int, ...]) -> np.ndarray:
    """Return predicted classes as integers, (*splits, 2); say what to do with scores."""
    raw = check_array("predictions", predictions)
    if raw.shape == splits and splits[-1] == 2:
        raise ValueError(f"S must hold one value per pair, shape {splits[:-1]}, got one per prediction, shape {splits}")
    if raw.shape[:-1] == (*splits, 2):
        raise ValueError(f"predictions must be classes, got scores of shape {raw.shape}: use from_scores")
    raw = check_array("predictions", predictions, shape=(*splits, 2))
    if (raw != np.floor(raw)).any():
        wrong = raw[raw != np.floor(raw)][0]
        raise ValueError(f"predictions must be classes, whole numbers, got {wrong}: scores go through from_scores")
    if float(raw.max()) - float(raw.min()) >= MAX_CLASSES:
        raise ValueError(f"predictions must span fewer than {MAX_CLASSES} classes, got {raw.min()} to {raw.max()}")
    return check_array("predictions", predictions, dtype=np.int64)


def check_labels(y: ArrayLike, splits: tuple[int, ...]) -> np.ndarray:
    """Return true classes as integers (…, n, 2); labels per run, (…, n_splits, n, 2), must agree."""
    labels = check_array("y", y, dtype=np.int64)
    if labels.shape == (*splits, 2):
        if (labels != labels[..., :1, :, :]).any():
            raise ValueError("y must be the same in every run, got labels that differ between runs")
        labels = labels[..., 0, :, :]
    return check_array("y", labels, shape=(*splits[:-2], splits[-1], 2), dtype=np.int64)


def check_losses(losses: ArrayLike, splits: tuple[int, ...]) -> np.ndarray:
    """Return losses in [0, 1], (*splits, 2)."""
    losses = check_array("losses", losses, shape=(*splits, 2), dtype=np.float64)
    if losses.min() < 0 or losses.max() > 1:
        outside = losses[(losses < 0) | (losses > 1)][0]
        raise ValueError(f"losses must lie in [0, 1], got {outside}")
    return losses
