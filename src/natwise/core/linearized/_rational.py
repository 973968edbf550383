"""A function on an interval as a constant and a few simple poles, accurate to about 1e-12.

AAA (Nakatsukasa, Sète and Trefethen 2018) finds the poles; the residues are refitted by least squares on the
relative error. Where AAA stalls (polynomials of low degree, that is few gradient steps) poles on an ellipse around
the interval do the same, by the trapezoidal rule for Cauchy's integral.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import AAA

_GOOD = 1e-12


@dataclass(frozen=True)
class RationalFunction:
    """The real function ``constant + Re sum_p weights[p] / (x - poles[p])``."""

    constant: float
    poles: np.ndarray
    weights: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Evaluate at real points of any shape."""
        x = np.asarray(x, dtype=np.float64)
        return self.constant + ((1.0 / (x[..., None] - self.poles)) @ self.weights).real


def approximate(
    function: Callable[[np.ndarray], np.ndarray], low: float, high: float
) -> tuple[RationalFunction, float]:
    """Approximate a positive smooth function on [low, high], 0 <= low < high.

    Returns
    -------
    rational : RationalFunction
        Its poles lie off the interval.
    error : float
        The largest relative error, measured between the points of the fit.
    """
    points, checks = _grid(low, high, 400), _grid(low, high, 1777)
    values, expected = function(points * high), function(checks * high)
    scale = values.max()
    floor = 1e-8 * scale  # phi_t vanishes at the border of stability
    best, best_error = None, np.inf
    for poles in _candidate_poles(points, values / scale, low / high):
        rational = _fit(poles, points, values / scale)
        error = np.max(np.abs(rational(checks) * scale - expected) / np.maximum(expected, floor))
        if error < best_error:
            best, best_error = rational, float(error)
        if error < _GOOD:
            break
    if best is None:
        raise ValueError("the function could not be evaluated on the interval")
    return RationalFunction(best.constant * scale, best.poles * high, best.weights * scale * high), best_error


def _grid(low: float, high: float, num: int) -> np.ndarray:
    """Points of [low, high] / high, dense near both ends at every scale."""
    start = low / high
    near = np.geomspace(1e-10, 1.0, num) * (1.0 - start)
    points = np.concatenate([[start, 1.0], np.linspace(start, 1.0, num), start + near, 1.0 - near])
    return np.unique(np.clip(points, start, 1.0))


def _candidate_poles(points: np.ndarray, values: np.ndarray, low: float) -> Iterator[np.ndarray]:
    yield _aaa_poles(points, values, low)
    for radius, count in ((2.0, 48), (1.4, 100), (1.2, 180)):
        circle = radius * np.exp(2j * np.pi * (np.arange(count // 2) + 0.5) / count)
        yield (low + 1.0) / 2 + (1.0 - low) / 2 * (circle + 1.0 / circle) / 2


def _aaa_poles(points: np.ndarray, values: np.ndarray, low: float) -> np.ndarray:
    """Return AAA's poles in the upper half plane, without those that only cancel a zero (on the interval, far away)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AAA warns when it stalls; the error is measured by the caller
        poles = AAA(points, values, rtol=1e-13, max_terms=40).poles()
    poles = poles[(poles.imag >= 0) & (np.abs(poles) < 1e4)]
    inside = np.minimum(poles.real - low, 1.0 - poles.real)
    off_interval = np.abs(poles - np.clip(poles.real, low, 1.0)) > 1e-13
    return poles[off_interval & (poles.imag >= 1e-4 * inside)]


def _fit(poles: np.ndarray, points: np.ndarray, values: np.ndarray) -> RationalFunction:
    resolvents = 1.0 / (points[:, None] - poles)
    columns = np.hstack([np.ones((len(points), 1)), resolvents.real, resolvents.imag])
    weighted = columns / np.maximum(values, 1e-8)[:, None]
    size = np.abs(weighted).max(axis=0)
    size[size == 0] = 1.0  # real poles have no imaginary column
    target = values / np.maximum(values, 1e-8)
    solution = np.linalg.lstsq(weighted / size, target, rcond=1e-15)[0] / size
    real, imaginary = np.split(solution[1:], 2)
    return RationalFunction(float(solution[0]), poles, real - 1j * imaginary)
