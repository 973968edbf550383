r"""How good is a ranking of suspicious labels? Plant mistakes, look where they land, and allow for those already there.

Some labels are replaced by wrong ones and everything is computed anew. With :math:`R(t)` the share of planted mistakes
whose score exceeds :math:`t`, and :math:`B(t)` that share among all other rows, of which an unknown part :math:`\nu`
was wrong before,

.. math:: B(t) = \nu R(t) + (1 - \nu) F(t) \ge \nu R(t),

if mistakes that are already there score like planted ones. The smallest ratio :math:`B/R` therefore bounds :math:`\nu`
from above, and equals it where no right label scores so high (:math:`F(t) = 0`).
"""

from __future__ import annotations

import numpy as np

from natwise.core.random import Streams

N_BOOTSTRAP = 300
N_THRESHOLDS = 200
MIN_RECALL = 0.25  # thresholds with less rest on few rows, and the smallest of many noisy ratios is too small


def plant(labels: np.ndarray, confusion: np.ndarray, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Return labels with some made wrong, and which.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    confusion : ndarray, shape (k, k)
        How easily class i is taken for class j. Half of the wrong labels follow it, half are drawn uniformly.
    streams : Streams
        Chooses rows and labels.

    Returns
    -------
    planted_labels, flags : ndarray, shape (n,)
        One row in twenty is changed, at least 20 rows where that is no more than one in five.
    """
    n, k = len(labels), len(confusion)
    count = max(round(min(0.2 * n, max(0.05 * n, 20))), 1)
    rng = streams.numpy("plant")
    rows = rng.choice(n, count, replace=False)
    weights = confusion * (1 - np.eye(k)) + 1e-12 * (1 - np.eye(k))
    weights = 0.5 * weights / weights.sum(axis=1, keepdims=True) + 0.5 * (1 - np.eye(k)) / (k - 1)
    cumulative = np.cumsum(weights[labels[rows]], axis=1)
    wrong = (rng.random((count, 1)) * cumulative[:, -1:] > cumulative).sum(axis=1)
    planted, flags = labels.copy(), np.zeros(n, dtype=bool)
    planted[rows], flags[rows] = np.minimum(wrong, k - 1), True
    return planted, flags


def recall_at(cuts: np.ndarray, n: int, planted: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return the share of planted mistakes above each cut.

    Parameters
    ----------
    cuts : ndarray of int, shape (cuts,)
        Numbers of most suspicious rows, of `n`. A cut stands in the planting runs where the same share of the other
        rows is above it.
    n : int
        Rows of the table.
    planted, background : ndarray, shape (runs, …)
        Scores of the planted and of the other rows in each planting run.
    """
    ranked = np.sort(background.ravel())[::-1]
    at_cut = ranked[np.maximum(np.round(cuts / n * len(ranked)).astype(int), 1) - 1]
    return _exceeding(planted.ravel(), at_cut) / planted.size


def bound_noise(planted: np.ndarray, background: np.ndarray, streams: Streams) -> np.ndarray:
    """Return an upper bound of the share of wrong labels, with its 90 % interval: (estimate, low, high).

    Parameters
    ----------
    planted, background : ndarray, shape (runs, …)
        Scores of the planted and of the other rows in each planting run.
    streams : Streams
        For the bootstrap.
    """
    edges = np.unique(np.quantile(planted, np.linspace(0, 1, N_THRESHOLDS)))
    hits = _exceeding(planted.ravel(), edges) / planted.size
    others = _exceeding(background.ravel(), edges) / background.size
    rng = streams.numpy("bootstrap")
    n_background = background.shape[1]  # the runs share their rows: they count once
    draws = []
    for _ in range(N_BOOTSTRAP):
        h, b = _resample(hits, planted.size, rng), _resample(others, n_background, rng)
        draws.append(_smallest_ratio(h, b, planted.size, n_background)[0])
    noise, upper = _smallest_ratio(hits, others, planted.size, n_background)
    low, high = np.quantile(draws, [0.05, 0.95])
    return np.array([noise, min(noise, low), max(upper, high)])


def _smallest_ratio(hits: np.ndarray, others: np.ndarray, n_hits: int, n_others: int) -> tuple[float, float]:
    """Return the smallest ratio of exceedances (thresholds,), and an upper limit that holds also for no hits at all."""
    usable = hits >= MIN_RECALL
    h, b = hits[usable], others[usable]
    ratio = b / h
    error = np.sqrt(np.maximum(b * (1 - b), 1.0 / n_others) / n_others + ratio**2 * h * (1 - h) / n_hits) / h
    upper = ratio + 1.645 * error
    return float(np.minimum(ratio[np.argmin(upper)], 1.0)), float(min(upper.min(), 1.0))


def _exceeding(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return how many `values` (n,) are at or above each edge: (edges,)."""
    return len(values) - np.searchsorted(np.sort(values), edges, side="left")


def _resample(survival: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the survival function (edges,) of a bootstrap sample of `size` values with the given one (edges,)."""
    mass = np.append(1.0, survival) - np.append(survival, 0.0)
    counts = rng.multinomial(size, np.maximum(mass, 0.0) / np.maximum(mass, 0.0).sum())
    return 1.0 - np.cumsum(counts)[:-1] / size
