r"""How many labels are wrong, where classes overlap? Overlap fades on rows that are clear, mistakes do not.

Out-of-fold probabilities :math:`p` of a class say how a model expects the labels to fall. Let the right class of a row
be drawn from :math:`q_c \propto p_c^{\beta}`, and let a share :math:`\nu` of the labels be replaced by another class,
each equally likely. The given label then has probability

.. math:: (1 - \nu) q_y + \nu (1 - q_y) / (k - 1).

The sharpness :math:`\beta` undoes what wrong labels (and regularisation) took from the model's certainty. With overlap
alone, labels that contradict the model become ever rarer as it grows surer; with mistakes their share levels off at
:math:`\nu`. Both numbers are found by maximum likelihood on a grid, and the interval of :math:`\nu` is that of the
profile likelihood, for twice the usual drop because the model is never quite right.

A model that has learned to expect mistakes, or mistakes where classes overlap, look like overlap. Planted mistakes show
by how much: the high end is at least their bound of the noise, and more by the share of them that the estimate missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natwise.audit.models import FLOOR
from natwise.core.random import Streams

MAX_ROWS = 20_000
BLOCK = 50_000
NOISES = 0.7 * np.linspace(0.0, 1.0, 90) ** 2
SHARPNESS = np.geomspace(0.4, 8.0, 24)
DROP = 2 * 1.353  # of the log-likelihood: twice that of a 90 % interval
Z_90 = 1.645


@dataclass(frozen=True, eq=False)
class Flips:
    """What was found: share of wrong labels (estimate, low, high), sharpness for these, and for each of `NOISES`."""

    noise: np.ndarray
    sharpness: np.ndarray
    sharpness_by_noise: np.ndarray

    def up_to(self, high: float) -> Flips:
        """Return the same with a high end of at least `high`."""
        place = min(int(np.searchsorted(NOISES, high)), len(NOISES) - 1)
        if NOISES[place] <= self.noise[2]:
            return self
        ends = np.array([*self.noise[:2], NOISES[place]])
        return Flips(ends, np.array([*self.sharpness[:2], self.sharpness_by_noise[place]]), self.sharpness_by_noise)

    def wrong(self, probabilities: np.ndarray, labels: np.ndarray, which: int = 0) -> np.ndarray:
        """Return the probability that each label (n,) is wrong, at the estimate (0), its low (1) or high (2) end."""
        noise, k = self.noise[which], probabilities.shape[1]
        right = np.empty(len(labels))
        for start in range(0, len(labels), BLOCK):  # logarithms of all rows at once would double the memory
            rows = slice(start, start + BLOCK)
            right[rows] = _right(np.log(probabilities[rows] + FLOOR), labels[rows], self.sharpness[which])
        flipped = noise * (1 - right) / (k - 1)
        return flipped / ((1 - noise) * right + flipped + 1e-300)


def expected_precision(wrong: np.ndarray, order: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Return the expected share of wrong labels among the first rows of `order`, with its 90 % interval (3, cuts).

    `wrong` (3, n) holds each label's chance to be wrong at the estimate and both ends of the noise; which labels are
    wrong is chance, too.
    """
    ranked = wrong[:, order]
    means = np.cumsum(ranked, axis=1)[:, cuts - 1] / cuts
    chance = Z_90 * np.sqrt(np.cumsum(ranked * (1 - ranked), axis=1)[:, cuts - 1]) / cuts
    low, high = means.min(axis=0) - chance[1], means.max(axis=0) + chance[2]
    ends = np.stack([means[0], low, high]).clip(0.0, 1.0)
    return np.maximum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]  # what is more suspicious is no less likely wrong


def fit_flips(probabilities: np.ndarray, labels: np.ndarray, streams: Streams) -> Flips:
    """Fit the share of wrong labels and the sharpness to out-of-fold probabilities (n, k) and given labels (n,)."""
    rows = np.sort(streams.numpy("flip-rows").permutation(len(labels))[:MAX_ROWS])
    logs, given = np.log(probabilities[rows] + FLOOR), labels[rows]
    coarse = _likelihood(logs, given, SHARPNESS)
    best = int(coarse.max(axis=1).argmax())
    fine = np.geomspace(SHARPNESS[max(best - 1, 0)], SHARPNESS[min(best + 1, len(SHARPNESS) - 1)], 12)
    sharpness = np.concatenate([SHARPNESS, fine])
    likelihood = np.concatenate([coarse, _likelihood(logs, given, fine)])
    profile = likelihood.max(axis=0)
    inside = np.flatnonzero(profile >= profile.max() - DROP)
    ends = [max(inside[0] - 1, 0), min(inside[-1] + 1, len(NOISES) - 1)]  # the grid may be coarser than the interval
    chosen = np.array([profile.argmax(), *ends])
    best_sharpness = sharpness[likelihood.argmax(axis=0)]
    return Flips(NOISES[chosen], best_sharpness[chosen], best_sharpness)


def _likelihood(logs: np.ndarray, labels: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """Return the log-likelihood (sharpness, noises) of log-probabilities (n, k) and labels (n,)."""
    k = logs.shape[1]
    found = np.empty((len(sharpness), len(NOISES)))
    for i, beta in enumerate(sharpness):
        right = _right(logs, labels, beta)
        for j, noise in enumerate(NOISES):
            found[i, j] = np.log((1 - noise) * right + noise * (1 - right) / (k - 1) + 1e-300).sum()
    return found


def _right(logs: np.ndarray, labels: np.ndarray, beta: float) -> np.ndarray:
    """Return the sharpened probability (n,) of the given class from log-probabilities (n, k)."""
    powers = beta * logs
    powers -= powers.max(axis=1, keepdims=True)
    powers = np.exp(powers)
    return powers[np.arange(len(labels)), labels] / powers.sum(axis=1)
