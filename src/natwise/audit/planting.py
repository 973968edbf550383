r"""How good is a ranking of suspicious labels? Plant mistakes, look where they land, and allow for those already there.

Some labels are replaced by wrong ones and everything is computed anew. With \(R(t)\) the share of planted mistakes
whose score exceeds \(t\), and \(B(t)\) that share among all other rows, of which an unknown part \(\nu\) was wrong
before,

.. math:: B(t) = \nu R(t) + (1 - \nu) F(t) \ge \nu R(t),

if mistakes that are already there score like planted ones. The smallest ratio \(B/R\) therefore bounds \(\nu\) from
above, and equals it where no right label scores so high (\(F(t) = 0\)). The precision among the \(k\) most suspicious
of \(n\) rows is then \(\nu R(t_k) n / k\) with \(B(t_k) = k / n\).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natwise.core.random import Streams

N_BOOTSTRAP = 300
N_THRESHOLDS = 200
MIN_RECALL = 0.25  # thresholds with less rest on few rows, and the smallest of many noisy ratios is too small


@dataclass(frozen=True, eq=False)
class Expectation:
    """What to expect of a ranking: share of wrong labels, precision and recall by cut, with 90 % intervals.

    `noise` is (estimate, low, high); `precision` is (3, number of cuts) in the same order; `recall` (cuts,).
    """

    noise: np.ndarray
    cuts: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


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


def expect(n: int, planted: np.ndarray, background: np.ndarray, cuts: np.ndarray, streams: Streams) -> Expectation:
    """Estimate noise and precision from where planted mistakes landed.

    Parameters
    ----------
    n : int
        Rows of the table.
    planted, background : ndarray, shape (runs, …)
        Scores of the planted and of the other rows in each planting run.
    cuts : ndarray of int
        Numbers of most suspicious rows to state the precision for. A cut at k of n rows stands in the planting runs
        where the same share of the other rows is above it.
    streams : Streams
        For the bootstrap.
    """
    ranked = np.sort(background.ravel())[::-1]
    at_cut = ranked[np.maximum(np.round(cuts / n * len(ranked)).astype(int), 1) - 1]
    edges = np.unique(np.concatenate([np.quantile(planted, np.linspace(0, 1, N_THRESHOLDS)), at_cut]))
    hits = _exceeding(planted.ravel(), edges) / planted.size
    others = _exceeding(background.ravel(), edges) / background.size
    cut_index = np.searchsorted(edges, at_cut)
    rng = streams.numpy("bootstrap")
    n_background = background.shape[1]  # the runs share their rows: they count once

    draws = []
    for _ in range(N_BOOTSTRAP):
        h = _resample(hits, planted.size, rng)
        b = _resample(others, n_background, rng)
        draws.append(_noise_and_precision(h, b, planted.size, n_background, cut_index, cuts, n))
    noise, precision, recall, upper = _noise_and_precision(hits, others, planted.size, n_background, cut_index, cuts, n)
    noise_range = np.quantile([d[0] for d in draws], [0.05, 0.95])
    precision_range = np.quantile([d[1] for d in draws], [0.05, 0.95], axis=0)
    low, high = np.minimum(precision, precision_range[0]), np.maximum(precision, precision_range[1])
    return Expectation(
        noise=np.array([noise, min(noise, noise_range[0]), max(upper, noise_range[1])]),
        cuts=cuts,
        precision=np.stack([precision, low, high]),
        recall=recall,
    )


def _noise_and_precision(
    hits: np.ndarray, others: np.ndarray, n_hits: int, n_others: int, cut_index: np.ndarray, cuts: np.ndarray, n: int
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Return noise, precision and recall by cut, and an upper limit of the noise that holds also for no hits at all."""
    usable = hits >= MIN_RECALL
    h, b = hits[usable], others[usable]
    ratio = b / h
    error = np.sqrt(np.maximum(b * (1 - b), 1.0 / n_others) / n_others + ratio**2 * h * (1 - h) / n_hits) / h
    upper = ratio + 1.645 * error
    noise = float(np.minimum(ratio[np.argmin(upper)], 1.0))
    recall = hits[cut_index]
    precision = np.clip(noise * recall * n / cuts, 0.0, 1.0)  # below: what is more suspicious is no less likely wrong
    return noise, np.maximum.accumulate(precision[::-1])[::-1], recall, float(min(upper.min(), 1.0))


def _exceeding(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return how many `values` are at or above each edge."""
    return len(values) - np.searchsorted(np.sort(values), edges, side="left")


def _resample(survival: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the survival function of a bootstrap sample of `size` values with the given survival function."""
    mass = np.append(1.0, survival) - np.append(survival, 0.0)
    counts = rng.multinomial(size, np.maximum(mass, 0.0) / np.maximum(mass, 0.0).sum())
    return 1.0 - np.cumsum(counts)[:-1] / size
