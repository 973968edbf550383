"""The penalties that the data support."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from sklearn.model_selection import StratifiedKFold

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_real
from natwise.result import Result, provenance
from natwise.structure._inputs import check_each
from natwise.structure.tcorex._estimator import TCorEx
from natwise.structure.tcorex._periods import check_times, find_periods


def select_smoothness(
    X: Any,
    times: Any,
    n_components: int = 2,
    *,
    l1: Iterable[float] = (0.0, 0.03, 0.1, 0.3, 1.0),
    gamma: Iterable[float] = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8),
    n_splits: int = 4,
    n_jobs: int | None = None,
    random_state: RandomState = None,
    **parameters: Any,
) -> Result:
    """Choose `l1` and `gamma` of `TCorEx` by the likelihood of samples that were held out from each period.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        The samples.
    times : array-like of shape (n_samples,)
        The period of each sample.
    n_components : int
        Number of latent factors.
    l1, gamma : iterable of float
        The values to try; all pairs are.
    n_splits : int
        Parts into which each period is split; each is held out once. A period needs so many samples, four for two.
    n_jobs : int, optional
        Fits at a time, as in joblib, whose backends (Dask, Ray) can spread them over machines.
    random_state : int, Generator, RandomState or None
        Seeds the splits and the fits.
    **parameters
        Passed to `TCorEx`.

    Returns
    -------
    Result
        Arrays ``l1``, ``gamma``, ``score`` (mean held-out log-likelihood, nats) and ``standard_error`` over the splits,
        one row per pair; scalars ``l1`` and ``gamma``: the choice, and its ``score``.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.
    """
    pairs = list(product(check_each("l1", l1, _check_positive), check_each("gamma", gamma, _check_share)))
    streams = Streams.of(random_state)
    X = check_array("X", X, shape=("n_samples", "n_features"), finite=False)
    times = check_times(times, len(X))
    splits = _splits(times, check_integer("n_splits", n_splits, minimum=2), streams.seed("splits"))
    models = [TCorEx(n_components, l1=a, gamma=g, random_state=streams.seed("fit"), **parameters) for a, g in pairs]
    with provenance(data={"X": X}) as record:
        held_out = Parallel(n_jobs=n_jobs)(
            delayed(_held_out)(model, X, times, train, test) for model, (train, test) in product(models, splits)
        )
    scores = np.reshape(held_out, (len(pairs), n_splits))
    best = int(scores.mean(axis=1).argmax())
    return Result(
        "structure.tcorex/select_smoothness",
        arrays={
            "l1": np.array([a for a, _ in pairs]),
            "gamma": np.array([g for _, g in pairs]),
            "score": scores.mean(axis=1),
            "standard_error": scores.std(axis=1, ddof=1) / np.sqrt(n_splits),
        },
        scalars={"l1": pairs[best][0], "gamma": pairs[best][1], "score": float(scores[best].mean())},
        rows=[f"l1={a:g} gamma={g:g}" for a, g in pairs],
        params={"n_components": n_components, "n_splits": n_splits, **parameters},
        provenance=record,
    )


_check_positive = partial(check_real, minimum=0)
_check_share = partial(check_real, minimum=0, maximum=1)


def _splits(times: np.ndarray, n_splits: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows to fit and those to hold out, of each split; two of each period (n,) at least remain to fit."""
    period = find_periods(times, n_splits if n_splits > 2 else 4)[1]
    return list(StratifiedKFold(n_splits, shuffle=True, random_state=seed).split(period, period))


def _held_out(model: TCorEx, X: np.ndarray, times: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Return the score of samples X (n, p), (n,) that the rows `test` are, of a model of the rows `train`."""
    return model.fit(X[train], times[train]).score(X[test], times[test])
