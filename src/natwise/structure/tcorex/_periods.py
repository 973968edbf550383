"""Periods: cutting a series into them, weighing samples by their distance in time, and standardising each period."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natwise.core.validation import check_integer, check_option, check_same_length, shorten, to_array

SMALLEST_WEIGHT = 1e-6
SMALLEST_SCALE = 1e-10
_CONSTANT = 1e-12  # spread over magnitude, below which a column only varies by rounding
_STRIDES = ("one", "half", "full")


def make_periods(n: int, window: int, stride: str | int = "full") -> np.ndarray:
    """Cut `n` consecutive time indices into periods.

    Windows of `window` indices start at 0, `stride`, 2 `stride`, …; the last one reaches to the end. Each index goes
    to the window whose middle is nearest, the earlier one of two.

    Parameters
    ----------
    n : int
        Number of time indices.
    window : int
        Length of a window, at most `n`.
    stride : {"one", "half", "full"} or int, default "full"
        Distance of the windows' starts: 1, half a window, a whole window, or any number up to a window. With 1 most
        periods have a single index, too few for `TCorEx`: such windows are for looking up, not for fitting.

    Returns
    -------
    ndarray of shape (n,), int
        The period of each index, from 0 on, never decreasing.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> make_periods(7, 3)
    array([0, 0, 0, 1, 1, 1, 1])
    """
    n = check_integer("n", n, minimum=1)
    window = check_integer("window", window, minimum=1, maximum=n)
    if isinstance(stride, str):
        check_option("stride", stride, _STRIDES)
        step = {"one": 1, "half": max(1, window // 2), "full": window}[stride]
    else:
        step = check_integer("stride", stride, minimum=1, maximum=window)
    starts = np.arange(0, n - window + 1, step)
    ends = starts + window
    ends[-1] = n
    middles = (starts + ends - 1) / 2
    return np.searchsorted((middles[:-1] + middles[1:]) / 2, np.arange(n))


def check_times(times: Any, n_samples: int) -> np.ndarray:
    """Return one period per sample, (n_samples,), of the kind that was given."""
    times = to_array("times", times)
    if times.ndim == 2 and times.shape[1] == 1:
        times = times[:, 0]
    if times.ndim != 1:
        raise ValueError(f"times must have shape (n_samples,), got {times.shape}")
    check_same_length(X=range(n_samples), times=times)
    if (times != times).any():  # NaN and NaT
        raise ValueError("times must not be missing, got NaN or NaT")
    return times


def find_periods(times: np.ndarray, n_least: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct times (T,), the position of each sample's among them (n,), and the samples of each (T,)."""
    try:
        periods, position, counts = np.unique(times, return_inverse=True, return_counts=True)
    except TypeError as error:
        raise TypeError(f"times must be sortable, got {shorten(times.tolist())} ({error})") from None
    if counts.min() < n_least:
        raise ValueError(
            f"times must give each period at least {n_least} samples, "
            f"got n_samples = {counts.min()} for {periods[counts.argmin()]}"
        )
    return periods, position.ravel(), counts


def distance_weights(counts: np.ndarray, gamma: float) -> np.ndarray:
    """Return gamma^|i - t| (T, N): how much period t looks at each sample of period i; 0 below 1e-6."""
    periods = np.arange(len(counts))
    distance = np.abs(np.repeat(periods, counts) - periods[:, None])
    weights = np.power(float(gamma), distance)
    return np.where(weights < SMALLEST_WEIGHT, 0.0, weights)


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation of every variable in every period, estimated with the weights of its window.

    Attributes
    ----------
    mean : ndarray of shape (T, p)
        Weighted means of the observed values, which samples are centred by.
    location : ndarray of shape (T, p)
        The means of the fitted model: the same drawn towards the mean that all periods share, and that towards zero,
        both by as much as sampling noise explains.
    spread : ndarray of shape (T, p)
        Weighted standard deviations, by which samples are divided; infinite where a variable does not vary.
    scale : ndarray of shape (T, p)
        The same without the bias of few samples, at least 1e-10: the standard deviations of the fitted model.
    """

    mean: np.ndarray
    location: np.ndarray
    spread: np.ndarray
    scale: np.ndarray

    @classmethod
    def estimate(cls, X: np.ndarray, weights: np.ndarray) -> Standardization:
        """Estimate from samples `X` (N, p), NaN where missing, and weights (T, N)."""
        observed = ~np.isnan(X)
        sums = weights @ observed
        if not sums.all():
            column = np.argwhere(sums == 0)[0][1]
            raise ValueError(f"X must have an observed value in every column and window, got none in column {column}")
        reference = np.nanmean(X, axis=0)  # large offsets would cost digits
        centred = np.where(observed, X - reference, 0.0)
        mean = (weights @ centred) / sums
        with np.errstate(over="ignore", invalid="ignore"):
            squares = [w @ (observed * (centred - m) ** 2) for w, m in zip(weights, mean, strict=True)]
        variance = np.stack(squares) / sums
        if not np.isfinite(variance).all():
            column = np.argwhere(~np.isfinite(variance))[0][1]
            raise ValueError(f"X must have finite variances, they overflow in column {column}")
        effective = sums**2 / (weights**2 @ observed)
        unbiased = variance * effective / np.maximum(effective - 1, SMALLEST_SCALE)
        varies = np.sqrt(variance) > _CONSTANT * np.abs(centred).max(axis=0)
        return cls(
            mean=mean + reference,
            location=_location(mean, reference, centred, observed, np.where(varies, variance, np.nan), weights),
            spread=np.where(varies, np.sqrt(variance), np.inf),
            scale=np.where(varies, np.maximum(np.sqrt(unbiased), SMALLEST_SCALE), SMALLEST_SCALE),
        )

    def apply(self, X: np.ndarray, periods: np.ndarray) -> np.ndarray:
        """Return `X` (n, p) on the model's scale, row by row with its period; 0 where missing."""
        Z = (X - self.mean[periods]) / self.spread[periods]
        return np.where(np.isnan(Z), 0.0, Z)


def _location(
    mean: np.ndarray,
    reference: np.ndarray,
    centred: np.ndarray,
    observed: np.ndarray,
    variance: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Return the means of the periods (T, p), shrunk twice by the positive-part factor of James and Stein.

    A mean of 16 samples costs the held-out likelihood 1/32 nats per variable, and more under an estimated covariance.
    `mean` and `centred` are relative to `reference`; `variance` is NaN where a variable does not vary, and a variable
    that ever does not keeps its means.
    """
    own = (weights.argmax(axis=0) == np.arange(len(weights))[:, None]).astype(float)  # all the same for gamma = 1
    precision = own @ observed / variance
    total = precision.sum(axis=0)
    common = (own @ centred / variance).sum(axis=0) / total
    shares = weights / weights.sum(axis=1, keepdims=True)
    noise = shares**2 @ own.T @ variance - 1 / total
    deviation = mean - common
    shrunk = _signal(common + reference, 1 / total, total) * (common + reference)
    shrunk = shrunk + _signal(deviation, noise, 1 / variance) * deviation
    return np.where(np.isnan(shrunk), mean + reference, shrunk)


def _signal(estimate: np.ndarray, noise: np.ndarray, weight: np.ndarray) -> float:
    """Return the share of the weighted square of `estimate` that its noise variance leaves, in [0, 1]; all (T, p)."""
    explained, scatter = np.nansum(noise * weight), np.nansum(np.where(np.isnan(noise), np.nan, estimate**2 * weight))
    return float(np.clip(1 - explained / scatter, 0.0, 1.0)) if scatter > 0 else 1.0
