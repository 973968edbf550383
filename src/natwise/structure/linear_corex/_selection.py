"""The number of factors that the data support."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer
from natwise.result import Result, provenance
from natwise.structure._inputs import check_each
from natwise.structure.linear_corex._estimator import LinearCorEx

INDIFFERENCE = 0.01  # share of the best score that is not worth another factor


def select_n_components(
    X: Any,
    candidates: Iterable[int] | None = None,
    *,
    n_repeats: int = 1,
    random_state: RandomState = None,
    **parameters: Any,
) -> Result:
    """Fit several numbers of factors and choose the smallest that explains as much as any.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        The data.
    candidates : iterable of int, optional
        Numbers of factors to try. Default: 1, 2, 3, … until the score falls below 95 % of the best.
    n_repeats : int
        Fits of each candidate from different starts; the best counts.
    random_state : int, Generator, RandomState or None
        Seeds all fits.
    **parameters
        Passed to `LinearCorEx`.

    Returns
    -------
    Result
        Arrays ``n_components``, ``tc_no_overlap`` (the score, nats) and ``tc``, one row per candidate; scalar
        ``n_components``: the choice.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described, or `candidates` holds more factors than there are variables.

    Notes
    -----
    The score is sum_i max_j I(X_i ; Y_j) - sum_j I(Y_j ; X) (``TC_no_overlap``): what the factors explain, nothing
    counted twice. Superfluous factors copy single variables, which leaves the score as it is; so the smallest number
    within 1 % of the best is chosen (the original takes the best). To choose by held-out likelihood instead, use
    scikit-learn's ``GridSearchCV``: `LinearCorEx.score` is one.
    """
    check_integer("n_repeats", n_repeats, minimum=1)
    streams = Streams.of(random_state)
    X = check_array("X", X, shape=("n_samples", "n_features"), finite=False)
    possible = partial(check_integer, minimum=1, maximum=X.shape[1])
    chosen = range(1, X.shape[1] + 1) if candidates is None else check_each("candidates", candidates, possible)
    tried: list[int] = []
    scores: list[float] = []
    tcs: list[float] = []
    with provenance(data={"X": X}) as record:
        for m in chosen:
            fits = [
                LinearCorEx(m, random_state=streams.child(f"{m}-{k}").seed("fit"), **parameters).fit(X)
                for k in range(n_repeats)
            ]
            tried.append(m)
            scores.append(max(_tc_no_overlap(fit) for fit in fits))
            tcs.append(max(fit.tc_ for fit in fits))
            if candidates is None and scores[-1] < 0.95 * max(scores):
                break
    enough = (1 - INDIFFERENCE) * max(scores) if max(scores) > 0 else max(scores)
    return Result(
        "structure.linear_corex/select_n_components",
        arrays={"n_components": np.array(tried), "tc_no_overlap": np.array(scores), "tc": np.array(tcs)},
        scalars={"n_components": min(m for m, score in zip(tried, scores, strict=True) if score >= enough)},
        rows=tried,
        params={"n_repeats": n_repeats, **parameters},
        provenance=record,
    )


def _tc_no_overlap(fit: LinearCorEx) -> float:
    pairwise = fit.mutual_info_
    kept = pairwise.sum(axis=1) - fit.tcs_
    return float(pairwise.max(axis=0).sum() - kept.sum())
