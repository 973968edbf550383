"""Which group is served worst, which features tell the group rather than the label, and what reweighting would gain."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.models import N_FOLDS, make_folds, timed
from natwise.core.random import Streams
from natwise.result import Result

MAX_ROWS, MAX_COLUMNS, MAX_GROUPS = 5000, 500, 12
PILOT_ROWS = 300
MIN_GROUP = 20
MIN_CELL = 10  # rows with one label in one group: fewer say nothing about an accuracy
MIN_SECONDS = 1.0
BOOTSTRAPS = 500
CONFIDENCE = 0.9
N_DIRECTIONS = 3
TELLING = 0.6  # area under the ROC curve from which a column tells the group
SHOWN = 8


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of cells that are large enough: which they are, numbers without gaps, label and group as codes."""

    rows: np.ndarray
    X: np.ndarray
    labels: np.ndarray
    sites: np.ndarray
    classes: list[str]
    names: list[str]

    @property
    def cells(self) -> np.ndarray:
        """The number of each row's pair of label and site, (n,)."""
        return self.labels * len(self.names) + self.sites

    def only(self, kept: np.ndarray) -> _Rows:
        """Return the chosen rows: a mask (n,) or positions (kept,)."""
        return _Rows(self.rows[kept], self.X[kept], self.labels[kept], self.sites[kept], self.classes, self.names)


def answer(context: Context, deadline: Deadline) -> Result:
    """Return accuracy by label and group, what tells the group, and the gain of reweighting."""
    from natwise.shift import SpuriousFeatureReport

    if not context.n_classes:
        raise Unanswered("It is for classes: accuracy by label and group. The label of this table is a number.")
    deadline.require(MIN_SECONDS)
    streams = context.streams.child("shortcuts")
    given = _rows(context)
    found = _affordable(given, streams, deadline)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # cells without rows are left out on purpose; the last digit does not matter
            plain, fair = _out_of_fold(found, context, streams)
            report = SpuriousFeatureReport(N_DIRECTIONS, random_state=streams.seed("report"))
            report.fit(found.X, found.labels, attribute=found.sites)
    except ValueError as reason:
        raise Unanswered(f"The groups cannot be told from the labels: {reason}.") from None
    accuracy = _by_cell(plain == found.labels, found), _by_cell(fair == found.labels, found)
    gain = _gain(plain == found.labels, fair == found.labels, found, streams)
    names = [context.encoded.names[i] for i in _columns(context)]
    told = report.coordinates_.arrays
    order = np.argsort(-told["attribute_auc_given_class"], kind="stable")
    arrays = {
        "plain_accuracy": accuracy[0],
        "reweighted_accuracy": accuracy[1],
        "columns": order[:SHOWN],
        "group_auc": told["attribute_auc_given_class"][order[:SHOWN]],
        "label_auc": told["class_auc_given_attribute"][order[:SHOWN]],
        "direction_group_auc": report.direction_scores_.arrays["attribute_auc_given_class"],
        "direction_label_auc": report.direction_scores_.arrays["class_auc_given_attribute"],
        "cell_rows": np.bincount(found.cells, minlength=len(accuracy[0])),
    }
    model, scalars = _audited(context, given)
    scalars |= gain | {
        "association": report.scalars_["association"],
        "group_probe": report.scalars_["attribute_probe"],
        "group_probe_se": float(np.sqrt(0.25 / len(found.rows))),
        "telling_columns": int((told["attribute_auc_given_class"] > TELLING).sum()),
    }
    cell_names = [f"{label}, {name}" for label in found.classes for name in found.names]
    worst = [int(g) for g in np.argsort(model["model_accuracy"], kind="stable") if model["model_count"][g] >= MIN_CELL]
    return Result(
        "audit/shortcuts",
        arrays=arrays | model,
        scalars=scalars,
        params={
            "rows": len(found.rows),
            "left_out": len(context.table) - len(given.rows),
            "cells": cell_names,
            "worst": worst,
            "groups": found.names,
            "names": [names[i] for i in order[:SHOWN]],
            "n_columns": len(names),
            "directions": [[names[i] for i in np.argsort(-np.abs(v), kind="stable")[:4]] for v in report.directions_],
            "summary": _summary(scalars, cell_names, worst, context.a_model),
        },
    )


def _columns(context: Context) -> np.ndarray:
    """Return the columns used (p,): those that vary, the first of many."""
    X = context.encoded.X
    return np.flatnonzero(np.nanmax(X, axis=0, initial=-np.inf) > np.nanmin(X, axis=0, initial=np.inf))[:MAX_COLUMNS]


def _rows(context: Context) -> _Rows:
    """Return the rows whose label is not rare in their group; small groups become one, as do those beyond twelve."""
    table = context.table
    if table.group is None:
        raise Unanswered("It needs the group of each row: name its column with --group.")
    names, index, counts = np.unique(np.asarray(table.group, dtype=str), return_inverse=True, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_GROUPS])
    kept = kept[counts[kept] >= MIN_GROUP]
    position = np.full(len(names), len(kept))
    position[kept] = np.arange(len(kept))
    shown = [*names[kept].tolist(), *(["all others"] if len(kept) < len(names) else [])]
    sites = position[index]
    cells = table.labels * len(shown) + sites
    rows = np.flatnonzero(np.bincount(cells)[cells] >= MIN_CELL)
    if len(np.unique(sites[rows])) < 2 or len(np.unique(table.labels[rows])) < 2:
        raise Unanswered(f"It needs two groups and two labels with {MIN_CELL} rows each.")
    X = np.nan_to_num(context.encoded.X[np.ix_(rows, _columns(context))])
    return _Rows(rows, X, table.labels[rows], sites[rows], list(table.classes), shown)


def _affordable(given: _Rows, streams: Streams, deadline: Deadline) -> _Rows:
    """Return a random part, the same share of every cell, whose cross-validation should end before the deadline."""
    order = streams.numpy("rows").permutation(len(given.rows))
    pilot = given.only(order[:PILOT_ROWS])
    if len(np.unique(pilot.labels)) < 2:
        return given.only(np.sort(order[:MAX_ROWS]))
    _, seconds = timed(lambda: _head("erm", pilot, pilot.X))
    allowed = 0.5 * deadline.left() / (4 * N_FOLDS * max(seconds, 1e-3))
    n_rows = int(min(MAX_ROWS, len(order), max(PILOT_ROWS, PILOT_ROWS * allowed)))
    found = given.only(np.sort(order[:n_rows]))
    return found.only(np.bincount(found.cells)[found.cells] >= MIN_CELL)


def _head(method: str, train: _Rows, X: np.ndarray) -> np.ndarray:
    from natwise.shift import LastLayerRetrainer

    return LastLayerRetrainer(method).fit(train.X, train.labels, attribute=train.sites).predict(X)


def _out_of_fold(found: _Rows, context: Context, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Return what a plain and a reweighted head predict for every row (n,), fitted without its fold."""
    folds = make_folds(found.cells, context.row_hashes[found.rows], streams.numpy("folds"))
    plain, fair = np.empty_like(found.labels), np.empty_like(found.labels)
    for fold in np.unique(folds):
        train, held = found.only(folds != fold), folds == fold
        plain[held], fair[held] = (_head(method, train, found.X[held]) for method in ("erm", "reweight"))
    return plain, fair


def _by_cell(right: np.ndarray, found: _Rows) -> np.ndarray:
    """Return the accuracy of every cell (cells,), NaN for those without rows, from right or wrong (n,)."""
    size = len(found.classes) * len(found.names)
    count = np.bincount(found.cells, minlength=size)
    hits = np.bincount(found.cells, weights=right, minlength=size)
    return np.divide(hits, count, out=np.full(size, np.nan), where=count > 0)


def _gain(plain: np.ndarray, fair: np.ndarray, found: _Rows, streams: Streams) -> dict[str, float]:
    """Return the worst cell's accuracy with both heads, right or wrong (n,), and the gain with its interval."""
    _, cells = np.unique(found.cells, return_inverse=True)
    by_cell = [np.flatnonzero(cells == cell) for cell in range(cells.max() + 1)]
    rng = streams.numpy("bootstrap")

    def worst(rows: list[np.ndarray]) -> tuple[float, float]:
        """Return the least accuracy of both heads over cells, each given by its rows (m,)."""
        return min(plain[r].mean() for r in rows), min(fair[r].mean() for r in rows)

    draws = [worst([rng.choice(r, len(r)) for r in by_cell]) for _ in range(BOOTSTRAPS)]
    low, high = np.quantile([b - a for a, b in draws], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    before, after = worst(by_cell)
    return {
        "plain_worst": float(before),
        "reweighted_worst": float(after),
        "gain": float(after - before),
        "gain_low": float(low),
        "gain_high": float(high),
        "plain_overall": float(plain.mean()),
        "reweighted_overall": float(fair.mean()),
    }


def _audited(context: Context, given: _Rows) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the accuracy of the audit's model, on rows it never saw, by cell with 95 % intervals, and in the worst."""
    from natwise.shift import group_metrics

    predicted = context.answered["label_issues"].arrays["suggested_label"]
    right = (predicted == context.table.labels)[given.rows]
    size = len(given.classes) * len(given.names)
    metrics = group_metrics(np.ones(len(right), dtype=int), right.astype(int), given.cells)
    arrays = {name: np.full(size, np.nan) for name in ("model_accuracy", "model_low", "model_high")}
    arrays["model_count"] = np.zeros(size)
    for name in arrays:
        arrays[name][np.unique(given.cells)] = metrics.arrays[name.replace("model", "group")]
    s = metrics.scalars
    return arrays, {
        "model_overall": float((predicted == context.table.labels).mean()),
        "model_worst": s["worst_group_accuracy"],
        "model_worst_low": s["worst_group_low"],
        "model_worst_high": s["worst_group_high"],
    }


def _summary(s: dict[str, float], cells: list[str], worst: list[int], a_model: str) -> list[str]:
    sentence = (
        f"Rows of label and group “{cells[worst[0]]}” are served worst: {a_model} is right for "
        f"{100 * s['model_worst']:.0f} % of them (95 % interval {100 * s['model_worst_low']:.0f} to "
        f"{100 * s['model_worst_high']:.0f} %), "
        f"against {100 * s['model_overall']:.0f} % of all."
    )
    if s["gain_low"] > 0:
        sentence += f" Reweighting a linear model gains {100 * s['gain']:.0f} points in its worst group."
    return [sentence]
