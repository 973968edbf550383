"""Scores of forecasts, with intervals by resampling blocks of days."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_real, check_same_length, shorten
from natwise.result import Result
from natwise.timeseries.event_precursors._dataset import check_times


def event_metrics(y: Any, probability: Any, *, threshold: float = 0.5) -> dict[str, float]:
    """Return how good forecasts are.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels, 0 or 1.
    probability : array-like of shape (n,)
        Forecasts in [0, 1].
    threshold : float
        An event is forecast above it.

    Returns
    -------
    dict
        ``auc``, ``average_precision``, ``brier``, ``accuracy``, ``precision``, ``recall``, ``f1``, ``base_rate``. What
        has no defined value (the AUC of one class, the precision of no forecast) is 0.5 for the AUC and 0 else.

    Examples
    --------
    >>> round(event_metrics([0, 1, 1, 0], [0.1, 0.9, 0.4, 0.2])["auc"], 3)
    1.0
    """
    y, probability = _checked(y, probability)
    check_real("threshold", threshold, minimum=0.0, maximum=1.0)
    forecast = probability > threshold
    hits = float((forecast & (y == 1)).sum())
    precision, recall = hits / max(1, forecast.sum()), hits / max(1, (y == 1).sum())
    return {
        "auc": area_under_curve(y, probability),
        "average_precision": _average_precision(y, probability),
        "brier": float(np.square(probability - y).mean()),
        "accuracy": float((forecast == (y == 1)).mean()),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "base_rate": float(y.mean()),
    }


def area_under_curve(y: np.ndarray, score: np.ndarray) -> float:
    """Return the chance that an event scores above a non-event, y and score (n,), ties half; 0.5 for one class."""
    n_events = int((y == 1).sum())
    if n_events in (0, len(y)):
        return 0.5
    above = rankdata(score)[y == 1].sum() - n_events * (n_events + 1) / 2
    return float(above / (n_events * (len(y) - n_events)))


def compare_forecasts(
    y: Any,
    forecasts: Mapping[str, Any],
    dates: Any,
    *,
    block_days: int = 14,
    n_resamples: int = 1000,
    level: float = 0.95,
    random_state: RandomState = None,
) -> Result:
    """Compare forecasts of the same rows by their AUC, with intervals from a block bootstrap.

    Rows overlap in time, and days of unrest come in runs, so that rows are not independent: blocks of consecutive days
    are drawn with replacement, with all rows (series) of these days, until the period is full. The same draws serve
    all forecasts, so that differences are paired.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels, 0 or 1.
    forecasts : mapping of str to array-like of shape (n,)
        Probabilities or scores by name; the first is compared with each other one.
    dates : sequence of dates of length n
        Target day of each row.
    block_days : int
        Length of a block.
    n_resamples : int
        Number of draws.
    level : float
        Of the percentile intervals.
    random_state : int, Generator, RandomState, Streams or None
        Seeds the draws.

    Returns
    -------
    Result
        Scalars ``<name>_auc``, ``…_se``, ``…_low``, ``…_high``, and ``<first>_minus_<name>`` with the same endings;
        array ``auc`` (n_resamples, n_forecasts).

    Raises
    ------
    TypeError, ValueError
        For wrong labels, scores that are not finite, or lengths that differ.
    """
    if not isinstance(forecasts, Mapping) or not forecasts:
        raise TypeError(f"forecasts must be a mapping of at least one name to scores, got {shorten(forecasts)}")
    scores = np.stack([_checked(y, values, name, probabilities=False)[1] for name, values in forecasts.items()])
    y = _checked(y, scores[0], probabilities=False)[0]
    days = check_times("dates", dates)
    check_same_length(y=y, dates=days)
    check_integer("block_days", block_days, minimum=1)
    check_integer("n_resamples", n_resamples, minimum=2)
    check_real("level", level, minimum=0.0, maximum=1.0, exclusive=True)
    rng = Streams.of(random_state).numpy("bootstrap")
    draws = np.empty((n_resamples, len(scores)))
    for draw, rows in zip(draws, _block_draws(days, block_days, n_resamples, rng), strict=True):
        draw[:] = [area_under_curve(y[rows], score[rows]) for score in scores]
    names = list(forecasts)
    scalars: dict[str, float] = {}
    values = [area_under_curve(y, score) for score in scores]
    for i, name in enumerate(names):
        scalars |= _interval(f"{name}_auc", values[i], draws[:, i], level)
        if i:
            scalars |= _interval(f"{names[0]}_minus_{name}", values[0] - values[i], draws[:, 0] - draws[:, i], level)
    params = {"block_days": block_days, "n_resamples": n_resamples, "level": level, "names": names, "n": len(y)}
    return Result("timeseries.event_precursors/comparison", arrays={"auc": draws}, scalars=scalars, params=params)


def _block_draws(days: pd.DatetimeIndex, length: int, n: int, rng: np.random.Generator) -> Any:
    """Yield rows of resampled periods: blocks of `length` successive distinct days, joined end to end in a circle."""
    number, first = np.unique(days.asi8, return_inverse=True)
    order, edges = np.argsort(first, kind="stable"), np.searchsorted(np.sort(first), np.arange(len(number) + 1))
    rows_of = np.split(order, edges[1:-1])
    for _ in range(n):
        starts = rng.integers(len(number), size=-(-len(number) // length))
        drawn = (starts[:, None] + np.arange(length)).ravel()[: len(number)] % len(number)
        yield np.concatenate([rows_of[day] for day in drawn])


def _interval(name: str, value: float, draws: np.ndarray, level: float) -> dict[str, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return {name: value, f"{name}_se": draws.std(ddof=1), f"{name}_low": low, f"{name}_high": high}


def _average_precision(y: np.ndarray, probability: np.ndarray) -> float:
    """Return the average precision of forecasts (n,) of labels (n,); 0 without an event."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(y, probability)) if (y == 1).any() else 0.0


def _checked(
    y: Any, scores: Any, name: str = "probability", *, probabilities: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores (n,) as float64."""
    y = check_array("y", y, shape=("n",), dtype=np.float64)
    scores = check_array(name, scores, shape=(len(y),), dtype=np.float64)
    if not len(y) or not np.isin(y, (0, 1)).all():
        raise ValueError(f"y must be labels 0 or 1, at least one, got {shorten(y)}")
    if probabilities and ((scores < 0) | (scores > 1)).any():
        raise ValueError(f"{name} must be in [0, 1], got {scores[(scores < 0) | (scores > 1)][0]}")
    return y, scores
