"""Confidence intervals of the metrics by resampling the test samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_option, check_real
from natwise.result import Result

from ._metrics import check_binary, check_length_of_stay, length_of_stay_bucket, linear_kappa
from ._ranking import Ranking

LENGTH_METRICS = ("kappa", "mad", "mse", "mape")
LABEL_METRICS = ("ave_auc_macro", "ave_auc_micro", "ave_auc_weighted")
METRICS = (*Ranking.NAMES, *LABEL_METRICS, *LENGTH_METRICS)
_CELLS = 200_000  # resampled counts that are in memory at once: they fit the cache


def bootstrap_ci(
    y_true: Any,
    y_score: Any,
    metric: str = "auroc",
    *,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
    random_state: RandomState = None,
) -> Result:
    """Resample the test samples with replacement and return the spread of a metric.

    A resample is a number of occurrences per sample, drawn in the order of the scores, which are sorted once: it
    costs cumulative sums only. The values are those of the metric on the resampled data, to rounding.

    Parameters
    ----------
    y_true, y_score : array-like
        As for the metric: (n,), or (n, n_labels) for the areas of phenotyping.
    metric : str
        "auroc", "auprc", "average_precision", "minpse"; "ave_auc_macro", "ave_auc_micro", "ave_auc_weighted"; "kappa",
        "mad", "mse", "mape".
    n_resamples : int
        Published: 10,000 for mortality and phenotyping, 1,000 for the hourly tasks.
    confidence : float
        Share of resamples within the interval, in (0, 1).
    random_state : int, Generator, RandomState or None
        Draws the resamples.

    Returns
    -------
    Result
        Scalars ``value`` (of the data themselves), ``mean``, ``median``, ``std``, ``lower``, ``upper``, and
        ``n_undefined`` (resamples with one class only, left out); array ``values``.
    """
    check_option("metric", metric, METRICS)
    check_integer("n_resamples", n_resamples, minimum=1)
    confidence = check_real("confidence", confidence, minimum=0.0, maximum=1.0, exclusive=True)
    evaluate, n = _evaluator(metric, y_true, y_score)
    rng = Streams.of(random_state).numpy("bootstrap")
    per_chunk = max(1, _CELLS // n)
    chunks = [min(per_chunk, n_resamples - first) for first in range(0, n_resamples, per_chunk)]
    values = np.concatenate([evaluate(_counts(rng, size, n)) for size in chunks])
    defined = values[np.isfinite(values)]
    if not len(defined):
        raise ValueError(f"y_true must hold both classes often enough, got none of {n_resamples} resamples with both")
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(defined, [tail, 1 - tail])
    scalars = {
        "value": float(evaluate(np.ones((1, n)))[0]),
        "mean": float(defined.mean()),
        "median": float(np.median(defined)),
        "std": float(defined.std()),
        "lower": float(lower),
        "upper": float(upper),
        "n_undefined": float(len(values) - len(defined)),
    }
    params = {"metric": metric, "n_resamples": n_resamples, "confidence": confidence}
    return Result("timeseries.mimic/bootstrap", arrays={"values": defined}, scalars=scalars, params=params)


def _counts(rng: np.random.Generator, size: int, n: int) -> np.ndarray:
    """Return how often each sample occurs in each resample, float64 (size, n)."""
    draws = rng.integers(0, n, size=(size, n), dtype=np.int32)
    return np.stack([np.bincount(row, minlength=n) for row in draws]).astype(np.float64)


def _evaluator(metric: str, y_true: Any, y_score: Any) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """Return the function from counts (B, n) to values (B,), and n."""
    if metric in Ranking.NAMES:
        labels, scores = check_binary(y_true, y_score)
        return partial(Ranking(labels, scores).scores, metric), len(labels)
    if metric in LABEL_METRICS:
        y_true = check_array("y_true", y_true, shape=("n", "n_labels"), dtype=np.float64)
        y_score = check_array("y_score", y_score, shape=y_true.shape, dtype=np.float64)
        return partial(_areas, metric, y_true, y_score), len(y_true)
    hours, predicted = check_length_of_stay(y_true, y_score)
    if metric == "kappa":
        cell = 10 * length_of_stay_bucket(hours) + length_of_stay_bucket(predicted)
        cells = (cell[:, None] == np.arange(100)).astype(np.float64)
        return lambda counts: linear_kappa((counts @ cells).reshape(-1, 10, 10)), len(hours)
    error = hours - predicted
    values = {"mad": np.abs(error), "mse": error**2, "mape": 100 * np.abs(error / (hours + 0.1))}[metric]
    return lambda counts: counts @ values / counts.sum(axis=1), len(hours)


def _areas(metric: str, y_true: np.ndarray, y_score: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the areas of resampled data: labels and scores (n, n_labels), how often each row is drawn (draws, n)."""
    n_labels = y_true.shape[1]
    if metric == "ave_auc_micro":
        ranking = Ranking(y_true.ravel(), y_score.ravel())
        return ranking.scores("auroc", np.repeat(counts, n_labels, axis=1)[:, ranking.order])
    columns = [Ranking(*check_binary(y_true[:, label], y_score[:, label])) for label in range(n_labels)]
    areas = np.stack([ranking.scores("auroc", counts[:, ranking.order]) for ranking in columns], axis=1)
    if metric == "ave_auc_macro":
        return areas.mean(axis=1)
    positives = counts @ y_true
    return (areas * positives).sum(axis=1) / positives.sum(axis=1)
