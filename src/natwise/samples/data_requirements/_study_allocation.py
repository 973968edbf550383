"""Divide a budget among four groups by their measured curves, collect it for real, and compare with uniform."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import make_classification
from sklearn.neighbors import KNeighborsClassifier

from natwise.core.random import Streams
from natwise.study import Found, Setting

from ._measure import measure_learning_curve
from ._meta import MetaPiecewisePowerLaw
from ._planner import allocate_budget

START = np.array([500, 500, 120, 120])
SEPARATION = (2.0, 0.8, 2.0, 0.8)
BUDGET = 1200
N_TEST = 800


def measure(setting: Setting) -> Found:
    """Return the mean error over groups after collecting: by curves, uniformly, and in the shares of the start."""
    worlds = 10 if setting.scale == "ci" else 20
    errors = np.array([_one_world(setting.streams.child(i)) for i in range(worlds)])
    before, uniform, proportional, ours = errors.T
    scalars = {
        "share_of_uniform": ours.mean() / uniform.mean(),
        "share_of_proportional": ours.mean() / proportional.mean(),
        "error_before": before.mean(),
        "error_uniform": uniform.mean(),
        "error_proportional": proportional.mean(),
        "error_by_curves": ours.mean(),
        "worlds_better_than_uniform": float((ours < uniform).mean()),
    }
    return Found({"errors": errors}, scalars, {"worlds": worlds, "budget": BUDGET, "start": START.tolist()})


def _one_world(streams: Streams) -> tuple[float, float, float, float]:
    groups = [_group(g, streams.seed(f"group-{g}") % 2**31) for g in range(len(START))]
    X, y, group = _take(groups, START)
    model = KNeighborsClassifier(5)
    curve = measure_learning_curve(model, X, y, groups=group, repeats=5, random_state=streams.child("curve"))
    weights = np.full(len(START), 1 / len(START))
    curves = [
        MetaPiecewisePowerLaw().fit(curve.arrays["group_n"][:, g], curve.arrays["group_errors"][:, g])
        for g in range(len(START))
    ]
    choices = (
        np.zeros(len(START), dtype=int),
        np.full(len(START), BUDGET // len(START)),
        (BUDGET * START / START.sum()).astype(int),
        allocate_budget(curves, weights, BUDGET),
    )
    return tuple(_error(model, groups, START + extra) for extra in choices)  # type: ignore[return-value]


def _group(g: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a supply of rows of one group: its own clusters, marked by an indicator column."""
    X, y = make_classification(
        4000,
        n_features=12,
        n_informative=8,
        n_redundant=0,
        n_clusters_per_class=3,
        class_sep=SEPARATION[g],
        random_state=seed,
    )
    return np.hstack([X, 5.0 * np.tile(np.arange(len(START)) == g, (len(X), 1))]), y


def _take(groups: list[tuple[np.ndarray, np.ndarray]], counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the first rows of each group; the test rows stand at the end."""
    X = np.vstack([X[:count] for (X, _), count in zip(groups, counts, strict=True)])
    y = np.concatenate([y[:count] for (_, y), count in zip(groups, counts, strict=True)])
    return X, y, np.repeat(np.arange(len(groups)), counts)


def _error(model: Any, groups: list[tuple[np.ndarray, np.ndarray]], counts: np.ndarray) -> float:
    X, y, _ = _take(groups, counts)
    model.fit(X, y)
    return float(np.mean([(model.predict(X[-N_TEST:]) != y[-N_TEST:]).mean() for X, y in groups]))
