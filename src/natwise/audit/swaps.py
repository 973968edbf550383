r"""How many numeric labels are wrong, where numbers cannot be predicted well anyway? Large errors have a usual shape.

Let the errors of out-of-fold predictions, in units of the usual one among similar predictions, follow Student's t with
a scale and degrees of freedom that are fitted, and let a share :math:`\nu` of the labels be replaced by a number drawn
as the labels of all rows are. Heavy tails are then part of being right, and only errors that go beyond them, to where
other labels lie, count as mistakes. All numbers are found by maximum likelihood on a grid, the interval of
:math:`\nu` as in `natwise.audit.flips`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import gaussian_kde, t as student

from natwise.audit.flips import DROP, MAX_ROWS, NOISES
from natwise.audit.judging import usual_error
from natwise.core.random import Streams

SCALES = np.geomspace(0.3, 2.0, 24)
FREEDOMS = (3.0, 5.0, 10.0, 100.0)
KDE_ROWS, KDE_POINTS = 1000, 512


@dataclass(frozen=True, eq=False)
class Swaps:
    """Share of wrong labels (estimate, low, high), and the chance of each label to be wrong at these (3, n)."""

    noise: np.ndarray
    wrong: np.ndarray


def fit_swaps(predicted: np.ndarray, values: np.ndarray, streams: Streams) -> Swaps:
    """Fit the share of wrong labels to out-of-fold predictions (n,) and given numbers (n,)."""
    usual = usual_error(predicted, values)
    relative, other = (values - predicted) / usual, _density(values, streams) * usual  # both per usual error
    rows = streams.numpy("swap-rows").permutation(len(values))[:MAX_ROWS]
    shapes = [(scale, freedom) for scale in SCALES for freedom in FREEDOMS]
    likelihood = np.empty((len(shapes), len(NOISES)))
    for i, shape in enumerate(shapes):
        right = _right(relative[rows], *shape)
        for j, noise in enumerate(NOISES):
            likelihood[i, j] = np.log((1 - noise) * right + noise * other[rows] + 1e-300).sum()
    profile = likelihood.max(axis=0)
    inside = np.flatnonzero(profile >= profile.max() - DROP)
    chosen = np.array([profile.argmax(), inside[0], inside[-1]])
    chances = []
    for place in chosen:
        right = (1 - NOISES[place]) * _right(relative, *shapes[int(likelihood[:, place].argmax())])
        swapped = NOISES[place] * other
        chances.append(swapped / (right + swapped + 1e-300))
    return Swaps(NOISES[chosen], np.stack(chances))


def _right(relative: np.ndarray, scale: float, freedom: float) -> np.ndarray:
    return student.pdf(relative / scale, freedom) / scale


def _density(values: np.ndarray, streams: Streams) -> np.ndarray:
    """Return the density (n,) of all labels at each of them (n,), smoothed from some rows and read off a grid."""
    some = values[streams.numpy("density").permutation(len(values))[:KDE_ROWS]]
    grid = np.linspace(values.min(), values.max(), KDE_POINTS)
    if some.std() == 0:
        return np.full(len(values), 1.0 / (grid[-1] - grid[0]))
    return np.interp(values, grid, gaussian_kde(some)(grid))
