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
        self.ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
        self.positive = y_true[order] == 1

    def scores(self, name: str, counts: np.ndarray) -> np.ndarray:
        """Return a metric (B,) for samples that occur `counts` (B, n) times, in the original order.

        NaN where only one class occurs.
        """
        true, false = self._cumulated(counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            if name == "auroc":
                area = (np.diff(false, prepend=0.0) * (true + _before(true))).sum(axis=1) / 2
                return area / (true[:, -1] * false[:, -1])
            recall = true / true[:, -1:]
            recall = np.where(false[:, -1:] > 0, recall, np.nan)
            precision = np.where(true + false > 0, true / (true + false), 1.0)
        if name == "minpse":
            return np.minimum(precision, recall).max(axis=1)
        steps = np.diff(recall, prepend=0.0)
        if name == "average_precision":
            return (steps * precision).sum(axis=1)
        return (steps * (precision + _before(precision, 1.0))).sum(axis=1) / 2

    def _cumulated(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the true and the false positives (B, n_steps) down to each distinct score."""
        sorted_counts = counts[:, self.order]
        true = np.cumsum(sorted_counts * self.positive, axis=1)[:, self.ends]
        return true, np.cumsum(sorted_counts, axis=1)[:, self.ends] - true


def _before(values: np.ndarray, first: float = 0.0) -> np.ndarray:
    return np.concatenate([np.full((len(values), 1), first), values[:, :-1]], axis=1)
