"""Which columns go together? Linear CorEx groups them by the hidden factors that explain their correlations."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from natwise.audit.context import Context, Deadline, Unanswered, one_thread
from natwise.core.random import Streams
from natwise.result import Result

CANDIDATES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
ENOUGH = 0.9  # of the gain in held-out likelihood from one factor to the best number
MAX_ROWS = 5000
MAX_COLUMNS = 2000
REFITS = 3


def answer(context: Context, deadline: Deadline) -> Result:
    """Return total correlation (nats) per factor and the mutual information of every column with every factor."""
    streams = context.streams.child("latent_factors")
    X, columns, n_numeric = _numeric(context, streams)
    scores = _held_out(X, streams, deadline.share(0.5))
    m = _fewest(scores)
    model = _fit(X, m, streams.child("fit"))
    shuffled = _fit(np.stack([streams.numpy(f"shuffle-{i}").permutation(x) for i, x in enumerate(X.T)], 1), m, streams)
    agreement, spread = _stability(X, model, streams, deadline)
    order = np.lexsort((-model.mutual_info_[model.labels_, np.arange(X.shape[1])], model.labels_))
    return Result(
        "audit/latent_factors",
        arrays={
            "mutual_information": np.asarray(model.mutual_info_, dtype=np.float64),
            "factor": np.asarray(model.labels_),
            "order": order,
            "total_correlations": np.asarray(model.tcs_, dtype=np.float64),
            "columns": columns,
            "candidates": np.array(list(scores)),
            "held_out_log_likelihood": np.array(list(scores.values())),
        },
        scalars={
            "total_correlation": float(model.tc_),
            "total_correlation_se": spread,
            "total_correlation_shuffled": float(shuffled.tc_),
            "agreement": agreement,
            "factors": m,
        },
        params={
            "names": [context.encoded.names[i] for i in columns],
            "image_shape": context.table.image_shape,
            "image_columns": _image_columns(context, columns),
            "rows": len(X),
            "numeric_columns": n_numeric,
            "at_limit": m == max(scores),
            "groups": _groups(context, columns, model.labels_, order, m),
            "summary": _summary(float(model.tc_), spread, float(shuffled.tc_), m, X.shape[1]),
        },
        warnings=_warnings(context, X, n_numeric),
    )


def _numeric(context: Context, streams: Streams) -> tuple[np.ndarray, np.ndarray, int]:
    """Return a subsample of rows and of varying numeric columns, which columns these are, and how many there were."""
    columns = np.flatnonzero(context.encoded.numeric)
    n_numeric = len(columns)
    n = len(context.table)
    rows = np.sort(streams.numpy("rows").permutation(n)[:MAX_ROWS])
    columns = np.sort(streams.numpy("columns").permutation(columns)[:MAX_COLUMNS])
    X = context.encoded.X[np.ix_(rows, columns)].astype(np.float64)
    present = ~np.isnan(X)
    spread = np.where(present, X, np.inf).min(axis=0) < np.where(present, X, -np.inf).max(axis=0)
    varying = spread & (present.sum(axis=0) >= 10)
    if varying.sum() < 3:
        raise Unanswered(f"It needs at least 3 numeric columns that vary; this table has {int(varying.sum())}.")
    return X[:, varying], columns[varying], n_numeric


def _fit(X: np.ndarray, m: int, streams: Streams) -> Any:
    from natwise.structure import LinearCorEx

    model = LinearCorEx(m, gaussianize="outliers", missing_values=np.nan, random_state=streams.seed(f"corex-{m}"))
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")  # convergence to the last digit does not matter for a picture
        return model.fit(X)


def _candidates(X: np.ndarray) -> list[int]:
    return [m for m in CANDIDATES if m <= max(X.shape[1] // 2, 1)]


def _held_out(X: np.ndarray, streams: Streams, deadline: Deadline) -> dict[int, float]:
    """Return the mean log-likelihood of a quarter of X (n, p), for more and more factors until it falls twice."""
    rows = streams.numpy("held-out").permutation(len(X))
    test, train = np.split(rows, [len(rows) // 4])
    X = X[:, _varies(X[train])]
    scores: dict[int, float] = {}
    slowest = 0.0
    for m in _candidates(X):
        if scores and 2 * slowest > deadline.left():
            break
        start = time.perf_counter()
        scores[m] = float(_fit(X[train], m, streams).score(X[test]))
        slowest = max(slowest, time.perf_counter() - start)
        values = list(scores.values())
        if len(values) > 2 and max(values[-2:]) < max(values):
            break
    return scores


def _fewest(scores: dict[int, float]) -> int:
    """Return the fewest factors that give most of the gain in held-out likelihood."""
    first, best = next(iter(scores.values())), max(scores.values())
    return next(m for m, score in scores.items() if score >= first + ENOUGH * (best - first))


def _varies(X: np.ndarray) -> np.ndarray:
    filled = np.where(np.isnan(X), np.inf, X), np.where(np.isnan(X), -np.inf, X)
    return filled[0].min(axis=0) < filled[1].max(axis=0)


def _stability(X: np.ndarray, model: Any, streams: Streams, deadline: Deadline) -> tuple[float, float]:
    """Refit on random halves; return the mean adjusted Rand index of the groups, and the spread of total correlation.

    The standard deviation over halves, divided by sqrt(2), stands for that over samples of the full size.
    """
    from sklearn.metrics import adjusted_rand_score

    indices, totals = [], []
    for run in range(REFITS):
        if run and not deadline.left():
            break
        half = streams.numpy(f"half-{run}").permutation(len(X))[: max(len(X) // 2, 10)]
        varies = _varies(X[half])
        refit = _fit(X[np.ix_(half, varies)], min(model.n_components, int(varies.sum())), streams.child(f"half-{run}"))
        indices.append(adjusted_rand_score(model.labels_[varies], refit.labels_))
        totals.append(refit.tc_)
    spread = float(np.std(totals, ddof=1) / np.sqrt(2)) if len(totals) > 1 else float("nan")
    return float(np.mean(indices)), spread


def _groups(context: Context, columns: np.ndarray, factor: np.ndarray, order: np.ndarray, m: int) -> list[list[str]]:
    """Return the names of each factor's columns, strongest first."""
    return [[context.encoded.names[columns[i]] for i in order if factor[i] == j] for j in range(m)]


def _summary(total: float, spread: float, shuffled: float, m: int, p: int) -> list[str]:
    if total < 2 * shuffled:
        return [f"The {p:,} numeric columns hang together hardly more than shuffled ones ({total:.2f} nats)."]
    amount = f"{total:.2f}" + (f" ± {spread:.2f}" if np.isfinite(spread) else "")
    factors = "one hidden factor" if m == 1 else f"{m} hidden factors"
    return [f"The {p:,} numeric columns share {amount} nats of information, best grouped by {factors}."]


def _image_columns(context: Context, columns: np.ndarray) -> list[int]:
    """Return the pixel of each column (p,), when the table holds images."""
    if context.table.image_shape is None:
        return []
    pixel = {name: i for i, name in enumerate(context.table.features.columns)}
    return [pixel[context.encoded.names[i]] for i in columns]


def _warnings(context: Context, X: np.ndarray, n_numeric: int) -> list[str]:
    found = []
    left_out = len(context.encoded.numeric) - n_numeric
    if left_out:
        found.append(f"{left_out:,} category columns (0 or 1) were left out: the method is for numbers.")
    if len(X) < len(context.table):
        found.append(f"{len(X):,} of {len(context.table):,} rows were used, chosen at random.")
    if X.shape[1] == MAX_COLUMNS < n_numeric:
        found.append(f"{MAX_COLUMNS:,} of {n_numeric:,} numeric columns were used, chosen at random.")
    return found
