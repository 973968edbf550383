"""The learning curve of a number: the share of its variance that models of growing parts of the table miss."""

from __future__ import annotations

import time
import warnings

import numpy as np

from natwise.audit.context import Context, one_thread
from natwise.audit.models import fit_predict
from natwise.core.random import Streams
from natwise.result import Result

MAX_ROWS = 5000
REPEATS = 3
N_SIZES = 8
SMALLEST = 20
TEST_SHARE = 0.25


def numeric_curve(context: Context, streams: Streams, seconds: float) -> Result:
    """Return training sizes ``n``, ``errors`` (unexplained shares, at most 1) and ``sample_weight`` per fit.

    Three splits of at most 5000 rows, nested training sets; except the three smallest, a size is started only if its
    predicted time still fits into `seconds`. The weights are 1 / variance of ln error, from the scatter of squares.
    """
    X, y = np.nan_to_num(context.encoded.X), context.labels
    splits = [streams.numpy(f"split-{i}").permutation(len(y))[:MAX_ROWS] for i in range(REPEATS)]
    n_test = max(round(TEST_SHARE * len(splits[0])), 1)
    sizes = np.unique(np.geomspace(SMALLEST, len(splits[0]) - n_test, N_SIZES).round().astype(int))
    found: list[tuple[int, float, float]] = []
    skipped: list[int] = []
    start, last = time.perf_counter(), 0.0
    for i, size in enumerate(sizes.tolist()):
        elapsed = time.perf_counter() - start
        if i >= 3 and elapsed + last * (size / sizes[i - 1]) ** 2 > seconds:
            skipped = sizes[i:].tolist()
            break
        for repeat, order in enumerate(splits):
            test, train = order[:n_test], order[n_test : n_test + size]
            found.append((size, *_unexplained(context, X, y, train, test, streams.seed(f"fit-{size}-{repeat}"))))
        last = time.perf_counter() - start - elapsed
    n, errors, weight = map(np.array, zip(*found, strict=True))
    return Result(
        "audit/numeric_curve",
        arrays={"n": n, "errors": np.clip(errors, 1e-9, 1.0), "sample_weight": weight},
        warnings=[f"no time left for sizes {skipped}"] if skipped else [],
    )


def _unexplained(
    context: Context, X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> tuple[float, float]:
    """Return the mean squared error of predictions (n,) over the variance, and 1 / the variance of its logarithm."""
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")  # convergence to the last digit does not matter here
        predicted = fit_predict(context.kernel_or_own, X[train], y[train], X[test], 0, seed)[:, 0]
    squares = (y[test] - predicted) ** 2
    return squares.mean() / y[test].var(), len(test) * squares.mean() ** 2 / max(squares.var(), 1e-12)
