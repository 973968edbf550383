"""How much more data, and of which group? The error of a default model on growing parts of the table, extrapolated."""

from __future__ import annotations

import math
import warnings
from typing import Any

import joblib
import numpy as np

from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.models import N_FOLDS
from natwise.audit.numeric_curve import MAX_ROWS, numeric_curve
from natwise.result import Result

MIN_ROWS = 60
MIN_SECONDS = 1.0
REPEATS = 3
CONFIDENCE = 0.9
LESS_ERROR = 0.75  # of the present error: the goal when the user names none
BUDGET = 0.1  # of the rows: the number of new ones that is divided among groups
MIN_GROUP = 20
MAX_GROUPS = 12


def answer(context: Context, deadline: Deadline) -> Result:
    """Return the measured learning curve, its forecast with a band, and how to divide new rows among groups."""
    from natwise.samples import MetaPiecewisePowerLaw

    n_rows = len(context.table)
    if n_rows < MIN_ROWS:
        raise Unanswered(f"It needs at least {MIN_ROWS} rows; this table has {n_rows}.")
    deadline.require(MIN_SECONDS)
    members, names = _groups(context)
    measured = _measure(context, members, len(names), deadline)
    n, errors, weight = (measured.arrays[name] for name in ("n", "errors", "sample_weight"))
    try:
        curve = MetaPiecewisePowerLaw().fit(n, errors, weight)
    except ValueError as reason:
        raise Unanswered(f"The measured errors do not form a learning curve: {reason}.") from None
    grid = np.geomspace(n.min(), 10 * n_rows, 80)
    low, high = curve.predict_interval(grid, CONFIDENCE)
    goal = LESS_ERROR * float(curve.predict(n_rows)) if context.target is None else 1 - context.target
    scalars = {"goal_error": goal, **_forecast(curve, n_rows), **_needed(curve, goal)}
    division = _division(measured, members, names, round(BUDGET * n_rows) or 1)
    return Result(
        "audit/data_requirements",
        arrays={"n": n, "errors": errors, "grid": grid, "forecast": curve.predict(grid), "low": low, "high": high}
        | division,
        scalars=scalars,
        params={
            "rows": n_rows,
            "target": context.target,
            "names": names if division else [],
            "group_kind": "group" if context.table.group is not None else "class",
            "largest_measured": int(n.max()),
            "is_regression": not context.n_classes,
            "summary": [_sentence(scalars, n_rows, context)],
        },
        warnings=[f"{text[0].upper()}{text[1:]}." for text in measured.warnings],
    )


def _groups(context: Context) -> tuple[np.ndarray, list[str]]:
    """Return the group (or class) of every row and their names; small groups, and all beyond twelve, become one."""
    table = context.table
    given = table.group if table.group is not None else np.array(table.classes, dtype=object)[table.labels]
    names, index, counts = np.unique(np.asarray(given, dtype=str), return_inverse=True, return_counts=True)
    kept = np.argsort(-counts, kind="stable")[:MAX_GROUPS]
    kept = np.sort(kept[counts[kept] >= MIN_GROUP])
    position = np.full(len(names), len(kept))
    position[kept] = np.arange(len(kept))
    members = position[index]
    return members, [*names[kept].tolist(), *(["all others"] if (members == len(kept)).any() else [])]


def _measure(context: Context, members: np.ndarray, n_groups: int, deadline: Deadline) -> Result:
    from natwise.samples import measure_learning_curve

    streams = context.streams.child("data_requirements")
    if not context.n_classes:
        return numeric_curve(context, streams, 0.6 * deadline.left())
    X, labels = context.encoded.X, context.table.labels
    rows = np.sort(streams.numpy("rows").permutation(len(labels))[:MAX_ROWS])
    smallest = np.bincount(members[rows], minlength=n_groups).min()
    with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=min(joblib.cpu_count(), N_FOLDS)):
        warnings.simplefilter("ignore")  # convergence to the last digit does not matter here
        return measure_learning_curve(
            context.kernel_or_own(X.shape[1], 0),
            np.nan_to_num(X[rows]),
            labels[rows],
            repeats=REPEATS,
            groups=members[rows] if smallest >= MIN_GROUP else None,
            time_limit=max(0.6 * deadline.left(), 0.1),
            random_state=streams,
        )


def _forecast(curve: Any, n_rows: int) -> dict[str, float]:
    """Return the errors at the rows there are and at twice as many, with their intervals."""
    sizes = np.array([n_rows, 2 * n_rows])
    middle, (low, high) = curve.predict(sizes), curve.predict_interval(sizes, CONFIDENCE)
    found: dict[str, float] = {}
    for i, name in enumerate(("error_now", "error_doubled")):
        found |= {name: float(middle[i]), f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    return found


def _needed(curve: Any, goal: float) -> dict[str, float]:
    """Return the rows that the goal needs with both ends of the interval; infinite when that cannot be said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says "cannot say" itself
        needed = curve.required_samples(goal)
        low, high = curve.required_interval(goal, CONFIDENCE)
    return {"needed": needed, "needed_low": low, "needed_high": high}


def _division(measured: Result, members: np.ndarray, names: list[str], budget: int) -> dict[str, np.ndarray]:
    """Return how to divide new rows among groups so that the error over all rows falls most; nothing for one group."""
    from natwise.samples import PowerLaw, allocate_budget

    if "group_n" not in measured.arrays or len(names) < 2:
        return {}
    columns = zip(*(measured.arrays[f"group_{name}"].T for name in ("n", "errors", "weight")), strict=True)
    try:
        curves = [PowerLaw().fit(*column) for column in columns]
    except ValueError:  # the error of a group does not fall with its rows: no forecast, no division
        return {}
    counts = np.bincount(members, minlength=len(names))
    return {
        "group_rows": counts,
        "group_error": np.array([curve.predict(curve.largest_size_) for curve in curves]),
        "group_error_interval": np.array(
            [np.ravel(curve.predict_interval([curve.largest_size_], CONFIDENCE)) for curve in curves]
        ),
        "new_rows": allocate_budget(curves, counts / counts.sum(), budget),
    }


def _sentence(scalars: dict[str, float], n_rows: int, context: Context) -> str:
    goal, needed = scalars["goal_error"], scalars["needed"]
    wanted = "a quarter fewer errors" if context.n_classes else "a quarter less unexplained variance"
    if context.target is not None:
        wanted = f"{'an accuracy' if context.n_classes else 'an R²'} of {100 * (1 - goal):.1f} %"
    if needed <= n_rows:
        return f"The forecast reaches {wanted} with the rows there are."
    if not math.isfinite(needed):
        return f"More rows like these are not forecast to bring {wanted}."
    low, high = _round(max(scalars["needed_low"], 1)), _round(scalars["needed_high"])
    interval = f"{low:,.0f} to {high:,.0f}" if math.isfinite(high) else f"from {low:,.0f}, without upper end"
    times = f"{_round(needed / n_rows):,g} times these"
    return f"For {wanted}, about {_round(needed):,.0f} rows are needed, {times} (90 % interval {interval})."


def _round(rows: float) -> float:
    """Return a number of rows with two digits that count: a forecast knows no more."""
    return float(f"{rows:.2g}")
