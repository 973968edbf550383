"""Measure a learning curve: the error of an estimator trained on ever larger parts of the user's data."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import joblib
import numpy as np
from sklearn.base import clone, is_regressor

from natwise.core.labels import check_labels
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_real, shorten
from natwise.result import Result, provenance

from ._curve import MIN_SIZES

DEFAULT_N_SIZES = 8
MIN_ROWS = 20

Fit = tuple[int, int, np.ndarray, np.ndarray, np.ndarray]  # size, repeat, train rows, test rows, wrong


def measure_learning_curve(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    sizes: Sequence[int] | None = None,
    repeats: int = 3,
    groups: Any = None,
    test_fraction: float = 0.25,
    time_limit: float | None = None,
    n_jobs: int | None = None,
    random_state: RandomState = None,
) -> Result:
    """Train `estimator` on nested subsets of the data and measure its error on held-out rows, also per group.

    Every repeat splits the data anew; its training sets are nested and keep the shares of classes and groups.

    Parameters
    ----------
    estimator : scikit-learn classifier
        Cloned for every fit.
    X : array-like of shape (n_samples, n_features)
    y : array-like of shape (n_samples,)
        Class labels.
    sizes : sequence of int, optional
        Total training-set sizes, at least three. Default: eight geometric ones up to what is not held out.
    repeats : int
        Splits per size.
    groups : array-like of shape (n_samples,), optional
        Sub-population of every row; each needs at least four rows.
    test_fraction : float
        Part of the data that is held out in each repeat, in (0, 1).
    time_limit : float, optional
        Seconds. Except the three smallest, a size is started only if its predicted time still fits.
    n_jobs : int, optional
        Fits at the same time, through joblib.
    random_state : int, generator or None

    Returns
    -------
    Result
        One row per fit. Arrays: ``n``, ``errors``, ``sample_weight`` (1 / binomial variance of ln error); with groups
        also ``group_n``, ``group_errors``, ``group_weight`` of shape (n_fits, n_groups), named by
        ``params["groups"]``. An error of 0 on m rows counts as 0.5 / m; ``warnings`` says so.

    Raises
    ------
    TypeError, ValueError
        No classifier; lengths differ, labels are missing, fewer than two classes, too few rows, sizes that do not fit.
    """
    _check_estimator(estimator)
    _check_options(repeats, test_fraction, time_limit, n_jobs)
    X, codes, y, names, group_index = _check_data(X, y, groups)
    streams = Streams.of(random_state)
    strata = group_index * (codes.max() + 1) + codes  # a class within a group
    splits = [_split(strata, test_fraction, streams.numpy(f"split-{i}")) for i in range(repeats)]
    _check_groups_tested(splits, names, group_index)
    checked = _check_sizes(sizes, len(splits[0][0]), len(np.unique(strata)))
    with provenance(data={"y": y}) as record:
        fits, skipped = _run(estimator, X, y, splits, checked, streams, time_limit, n_jobs)
        arrays, floored = _tabulate(fits, group_index, len(names))
    return Result(
        "samples.data_requirements/learning_curve",
        arrays=arrays if len(names) > 1 else {name: arrays[name] for name in ("n", "errors", "sample_weight")},
        rows=[f"{size}/{repeat}" for size, repeat, *_ in fits],
        params={"estimator": type(estimator).__name__, "groups": names.tolist(), "test_fraction": test_fraction},
        provenance=record,
        warnings=[f"{floored} errors of 0 were floored at half a mistake"] * bool(floored)
        + [f"no time left for sizes {skipped}"] * bool(skipped),
    )


def _check_options(repeats: int, test_fraction: float, time_limit: float | None, n_jobs: int | None) -> None:
    check_integer("repeats", repeats, minimum=1)
    check_real("test_fraction", test_fraction, minimum=0, maximum=1, exclusive=True)
    if n_jobs is not None:
        check_integer("n_jobs", n_jobs)
    if time_limit is not None:
        check_real("time_limit", time_limit, minimum=0, exclusive=True)


def _check_estimator(estimator: Any) -> None:
    usable = hasattr(estimator, "fit") and hasattr(estimator, "predict") and not inspect.isclass(estimator)
    if not usable or is_regressor(estimator):
        raise TypeError(f"estimator must be a classifier such as LogisticRegression(), got {shorten(estimator)}")


def _check_data(X: Any, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return X, class numbers (n,), labels (n,), the names of the groups, and the group (n,) of every row."""
    X = check_array("X", X, shape=("n_samples", "n_features"))
    if len(X) < MIN_ROWS:
        raise ValueError(f"X must have at least {MIN_ROWS} rows, got {len(X)}")
    classes, codes = np.unique(check_labels("y", y, len(X)), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least two classes, got {classes.tolist()}")
    groups = np.zeros(len(X), dtype=int) if groups is None else check_labels("groups", groups, len(X), kinds="biufU")
    names, index = np.unique(groups, return_inverse=True)
    counts = np.bincount(index)
    if counts.min() < 4:
        raise ValueError(f"groups must have at least 4 rows each, got {counts.min()} in {names[counts.argmin()]!r}")
    return X, codes, classes[codes], names, index


def _split(strata: np.ndarray, test_fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the pool, in an order whose every prefix has the shares of the whole, and the test rows."""
    position = np.empty(len(strata))
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        position[rows] = (np.arange(len(rows)) + rng.random() * (np.arange(len(rows)) > 0)) / len(rows)
    order = np.argsort(position, kind="stable")
    n_test = max(1, round(test_fraction * len(order)))
    pool = order[: len(order) - n_test]
    return pool, order[len(order) - n_test :]


def _check_groups_tested(splits: list[tuple[np.ndarray, np.ndarray]], names: np.ndarray, index: np.ndarray) -> None:
    for _, test in splits:
        if missing := set(range(len(names))) - set(index[test].tolist()):
            raise ValueError(f"group {names[missing.pop()]!r} has too few rows per class to be tested")


def _check_sizes(sizes: Sequence[int] | None, n_pool: int, n_strata: int) -> np.ndarray:
    if sizes is None:
        smallest = min(max(2 * n_strata, 10), n_pool // 4)
        return np.unique(np.geomspace(smallest, n_pool, DEFAULT_N_SIZES).round().astype(int))
    checked = np.unique(check_array("sizes", sizes, shape=("n_sizes",), dtype=np.int64))
    if len(checked) < MIN_SIZES or checked[0] < 2 or checked[-1] > n_pool:
        raise ValueError(
            f"sizes must hold at least {MIN_SIZES} distinct sizes between 2 and the {n_pool} rows of the pool, "
            f"got {checked.tolist()}"
        )
    return checked


def _run(
    estimator: Any,
    X: np.ndarray,
    y: np.ndarray,
    splits: list[tuple[np.ndarray, np.ndarray]],
    sizes: np.ndarray,
    streams: Streams,
    time_limit: float | None,
    n_jobs: int | None,
) -> tuple[list[Fit], list[int]]:
    """Return the fits, and the sizes left out for lack of time."""
    start = time.perf_counter()
    fits: list[Fit] = []
    last = 0.0
    for i, size in enumerate(sizes.tolist()):
        elapsed = time.perf_counter() - start
        predicted = last * (size / sizes[i - 1]) ** 2
        if time_limit is not None and i >= MIN_SIZES and elapsed + predicted > time_limit:
            return fits, sizes[i:].tolist()
        wrong = joblib.Parallel(n_jobs=n_jobs)(
            joblib.delayed(_wrong)(estimator, X, y, pool[:size], test, streams.seed(f"fit-{size}-{repeat}") % 2**31)
            for repeat, (pool, test) in enumerate(splits)
        )
        fits += [(size, r, pool[:size], test, wrong[r]) for r, (pool, test) in enumerate(splits)]
        last = time.perf_counter() - start - elapsed
    return fits, []


def _wrong(estimator: Any, X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Return which test rows (n_test,) a fresh copy of the estimator gets wrong; one class alone is predicted as is."""
    if len(np.unique(y[train])) < 2:
        return y[test] != y[train][0]
    model = clone(estimator)
    seeds = {name: seed for name in model.get_params() if name.split("__")[-1] == "random_state"}
    return model.set_params(**seeds).fit(X[train], y[train]).predict(X[test]) != y[test]


def _tabulate(fits: list[Fit], group_index: np.ndarray, n_groups: int) -> tuple[dict[str, np.ndarray], int]:
    """Return the arrays of the result and how many errors were floored."""
    tables = []
    for members in (np.ones(len(group_index), dtype=bool), *(group_index == g for g in range(n_groups))):
        n = np.array([members[train].sum() for _, _, train, _, _ in fits])
        n_test = np.array([members[test].sum() for *_, test, _ in fits])
        mistakes = np.array([wrong[members[test]].sum() for *_, test, wrong in fits])
        size = np.array([size for size, *_ in fits])
        tables.append((n, *_error_and_weight(size, mistakes, n_test), mistakes == 0))
    n, errors, weight, zero = (np.stack(column, axis=1) for column in zip(*tables, strict=True))
    arrays = {"n": n[:, 0], "errors": errors[:, 0], "sample_weight": weight[:, 0]}
    arrays |= {"group_n": n[:, 1:], "group_errors": errors[:, 1:], "group_weight": weight[:, 1:]}
    return arrays, int(zero[:, 0].sum() if n_groups == 1 else zero[:, 1:].sum())


def _error_and_weight(size: np.ndarray, mistakes: np.ndarray, n_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return error rates floored at half a mistake, and 1 / binomial variance of their logarithm.

    The variance is computed from the mean error of all repeats of a size: from a single repeat, lucky draws would
    be weighted differently from unlucky ones.
    """
    errors = np.maximum(mistakes, 0.5) / n_test
    pooled = np.array([errors[size == s].mean() for s in size])
    return errors, n_test * pooled / np.maximum(1 - pooled, 0.5 / n_test)
