"""Metrics of a ranking for many weightings of its samples: sorted once, then cumulative sums."""

from __future__ import annotations

import numpy as np


class Ranking:
    """Labels sorted by falling score, ties as one step.

    Parameters
    ----------
    y_true : ndarray (n,)
        0 or 1.
    y_score : ndarray (n,)
        Higher means label 1.
    """

    NAMES = ("auroc", "auprc", "average_precision", "minpse")

    def __init__(self, y_true: np.ndarray, y_score: np.ndarray):
        order = np.argsort(-y_score, kind="stable")
        falling = y_score[order]
        self.order = order
        self.starts = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))
        self.positive = (y_true[order] == 1).astype(np.float64)

    def scores(self, name: str, counts: np.ndarray) -> np.ndarray:
        """Return a metric (B,) for samples that occur `counts` times, (B, n) float64, by falling score.

        NaN where only one class occurs.
        """
        positive = counts * self.positive
        negative = counts - positive
        if len(self.starts) < counts.shape[1]:
            positive = np.add.reduceat(positive, self.starts, axis=1)
            negative = np.add.reduceat(negative, self.starts, axis=1)
        true = np.cumsum(positive, axis=1)
        n_true, n_false = true[:, -1], negative.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            if name == "auroc":
                area = np.einsum("bi,bi->b", negative, true) - np.einsum("bi,bi->b", negative, positive) / 2
                return area / (n_true * n_false)
            called = true + np.cumsum(negative, axis=1)
            precision = np.where(called > 0, true / np.maximum(called, 1), 1.0)
            recall = true / np.where(n_false > 0, n_true, np.nan)[:, None]
            if name == "minpse":
                return np.minimum(precision, recall).max(axis=1)
            steps = positive / np.where(n_false > 0, n_true, np.nan)[:, None]
        if name == "auprc":
            before = np.concatenate([np.ones((len(precision), 1)), precision[:, :-1]], axis=1)
            precision = (precision + before) / 2
        return np.einsum("bi,bi->b", steps, precision)
