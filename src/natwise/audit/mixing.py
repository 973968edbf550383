"""How much functional information belongs in the score of a label? As much as helps to find planted mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5)
WORTHWHILE = 0.1  # of the distance to AUROC 1: what a weight must save on planted mistakes


@dataclass(frozen=True, eq=False)
class Planting:
    """One planting run: scores and functional information (empty when unknown) of rows, and which were planted."""

    scores: np.ndarray
    information: np.ndarray
    flags: np.ndarray

    def mixed(self, weight: float) -> np.ndarray:
        """Return the scores (n,) with functional information mixed in."""
        return mix(self.scores, self.information, weight)


def mix(scores: np.ndarray, information: np.ndarray, weight: float) -> np.ndarray:
    """Return `scores` (n,) when `weight` is 0, else the weighted mean (n,) of the ranks of both, between 0 and 1."""
    if weight == 0.0:
        return scores
    ranks = [rankdata(values) / len(values) for values in (scores, information)]
    return (1 - weight) * ranks[0] + weight * ranks[1]


def mean_aurocs(runs: list[Planting]) -> dict[float, float]:
    """Return, for every weight that can be tried, the mean AUROC with which planted mistakes are found."""
    from sklearn.metrics import roc_auc_score

    weights = WEIGHTS if all(run.information.size for run in runs) else WEIGHTS[:1]
    return {w: float(np.mean([roc_auc_score(run.flags, run.mixed(w)) for run in runs])) for w in weights}


def choose_weight(aurocs: dict[float, float]) -> float:
    """Return the weight of the largest AUROC, 0 unless it is worthwhile."""
    best = max(aurocs, key=lambda weight: aurocs[weight])
    saved = aurocs[best] - aurocs[0.0]
    return best if saved >= WORTHWHILE * (1 - aurocs[0.0]) and saved > 0 else 0.0
