"""When does the way in which columns depend on one another change over time, and which columns move."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import rankdata

from natwise.audit.context import OUT_OF_TIME, Context, Deadline, Unanswered, one_thread
from natwise.audit.models import timed
from natwise.core.random import Streams
from natwise.datasets.encoding import DATE_LAYOUTS
from natwise.result import Result

MIN_PERIOD = 40  # rows
MAX_PERIODS = 12
MAX_ROWS = 6000
MAX_COLUMNS = 200
MIN_PRESENT = 20  # values per column and period: enough that no shuffle leaves a period without any
PROBE_COLUMNS = 10
SHUFFLES = 19  # a score above all of them has a chance of 1 in 20
MIN_SECONDS = 2.0
MIDNIGHT = " 00:00:00"  # what dates in a Parquet file end with
READABLE = 0.95  # of the times
SHARE_OF_TIME = 0.8  # for the first round of shuffles
SHOWN = 8
L1, GAMMA = 0.1, 0.1
MAX_FACTORS = 8

_Fit: TypeAlias = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class _Series:
    """Rows in the order of time: numbers (n, p), which columns these are, the period of each row, its first time."""

    X: np.ndarray
    columns: np.ndarray
    periods: np.ndarray
    starts: list[str]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class _Found:
    """Steps that exceed chance, and for every step the usual change of shuffled rows, the largest, and one column's.

    `complete` says whether the search for further changes came to its end.
    """

    steps: list[int]
    typical: np.ndarray
    limit: np.ndarray
    column_limit: np.ndarray
    complete: bool = True


def answer(context: Context, deadline: Deadline) -> Result:
    """Return how much the dependence among numeric columns changed from period to period, against shuffled times."""
    streams = context.streams.child("change_points")
    series = _series(context, streams, deadline)
    fit = partial(_changes, series.X, m=_factors(series.X.shape[1]), streams=streams)
    scores, by_column = fit(series.periods)
    beyond = _search(scores, series.periods, fit, streams, deadline)
    names = [context.encoded.names[i] for i in series.columns]
    found = [
        {
            "step": step,
            "start": series.starts[step + 1],
            "score": scores[step],
            "moved": [names[i] for i in _moved(by_column[step], beyond.column_limit[step])],
            "n_moved": (by_column[step] > beyond.column_limit[step]).sum(),
        }
        for step in sorted(beyond.steps)
    ]
    notes = [] if beyond.complete else ["Time allowed no search for further changes."]
    return Result(
        "audit/change_points",
        arrays={
            "scores": scores,
            "typical": beyond.typical,
            "limit": beyond.limit,
            "column_scores": by_column,
            "columns": series.columns,
            "period_rows": np.bincount(series.periods),
        },
        scalars={"changes": len(found)},
        params={
            "starts": series.starts,
            "names": names,
            "changes": found,
            "rows": len(series.X),
            "factors": _factors(series.X.shape[1]),
            "shuffles": SHUFFLES,
            "summary": _summary(found, len(series.starts)),
        },
        warnings=series.notes + notes,
    )


def _search(scores: np.ndarray, periods: np.ndarray, fit: _Fit, streams: Streams, deadline: Deadline) -> _Found:
    """Return the steps of scores (n, p) in periods (n,) that exceed chance, the largest first.

    After each find, times are shuffled only before and after it: rows from both sides, mixed, would depend on one
    another less than those of either, and make ordinary steps look large. The two periods beside it stay as they are,
    since the change may have come in the middle of one.
    """
    part = np.zeros(len(scores) + 1, dtype=np.int64)  # of each period: rows are shuffled within a part; -1 are not
    found = _Found([], *np.full((3, len(scores)), np.nan))
    while (within := (part[1:] == part[:-1]) & (part[1:] >= 0)).any():
        null = _null(within, part, periods, fit, streams.child(f"round-{len(found.steps)}"), deadline)
        if null is None and not found.steps:
            raise Unanswered(OUT_OF_TIME)
        if null is None:
            return dataclasses.replace(found, complete=False)
        found.typical[within], found.limit[within], found.column_limit[within] = null
        step = int(np.where(within, scores, -np.inf).argmax())
        if scores[step] <= found.limit[step]:
            break
        found.steps.append(step)
        later = (np.arange(len(part)) > step) & (part == part[step])
        part[later] = part.max() + 1
        part[step : step + 2] = -1
    return found


def _null(
    within: np.ndarray, part: np.ndarray, periods: np.ndarray, fit: _Fit, streams: Streams, deadline: Deadline
) -> tuple[float, float, float] | None:
    """Return the usual change of the steps `within` parts when rows are shuffled, the largest, and that of a column.

    None when there is no time.
    """
    seen, slowest = [], 0.0
    for run in range(SHUFFLES):
        if deadline.left() <= slowest:
            return None
        rng = streams.numpy(f"shuffle-{run}")
        (scores, by_column), seconds = timed(lambda: fit(_shuffled(periods, part, rng)))  # noqa: B023  # runs at once
        seen.append((np.median(scores[within]), scores[within].max(), by_column[within].max()))
        slowest = max(slowest, seconds)
    typical, largest, largest_column = np.array(seen).T
    return float(np.median(typical)), float(largest.max()), float(largest_column.max())


def _shuffled(periods: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the periods of the rows (n,), shuffled within each part."""
    shuffled = periods.copy()
    for p in np.unique(part[part >= 0]):
        rows = part[periods] == p
        shuffled[rows] = rng.permutation(periods[rows])
    return shuffled


def _series(context: Context, streams: Streams, deadline: Deadline) -> _Series:
    """Return rows with a time, in its order, cut into periods, and as many numeric columns as time allows."""
    if context.table.time is None:
        raise Unanswered("It needs the date of each row: name its column with --time.")
    texts = np.asarray(context.table.time, dtype=object)
    moments, notes = _moments(texts)
    rows = np.flatnonzero(~np.isnan(moments))
    if len(rows) < len(texts):
        notes.append(f"{len(texts) - len(rows):,} rows without a readable time were left out.")
    if len(rows) > MAX_ROWS:
        notes.append(f"{MAX_ROWS:,} of {len(rows):,} rows were used, chosen at random.")
        rows = streams.numpy("rows").choice(rows, MAX_ROWS, replace=False)
    rows = rows[np.argsort(moments[rows], kind="stable")]
    periods = _periods(moments[rows])
    if not len(periods) or periods[-1] == 0:
        raise Unanswered(f"It needs at least two periods of {MIN_PERIOD} rows with different times.")
    columns = _columns(context, rows, periods)
    X = context.encoded.X[np.ix_(rows, columns)].astype(np.float64)
    allowed = _affordable(X, periods, streams, deadline)
    if allowed < len(columns):
        notes.append(f"{allowed:,} of {len(columns):,} numeric columns were used, chosen at random.")
        kept = np.sort(streams.numpy("columns").choice(len(columns), allowed, replace=False))
        X, columns = X[:, kept], columns[kept]
    starts = [str(texts[rows[np.argmax(periods == t)]]).removesuffix(MIDNIGHT) for t in range(periods[-1] + 1)]
    return _Series(X, columns, periods, starts, notes)


def _moments(texts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the times as numbers (of days, when they are dates), NaN where there is none, and what was guessed."""
    present = texts != ""
    column = pd.Series(texts, dtype=object).where(present)
    if not present.any():
        raise Unanswered("The column with the times is empty.")
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    if np.isfinite(numbers[present]).mean() >= READABLE:
        return np.where(np.isfinite(numbers), numbers, np.nan), []
    for layout in (*DATE_LAYOUTS, "mixed"):
        dates = _dates(column, layout)
        if dates[present].notna().mean() >= READABLE:
            ambiguous = layout == "%m/%d/%Y" and _dates(column, "%d/%m/%Y")[present].notna().mean() >= READABLE
            notes = ["Times such as 03/04/2021 were read as month/day/year."] if ambiguous else []
            return ((dates - dates.min()) / pd.Timedelta(days=1)).to_numpy(dtype=np.float64, na_value=np.nan), notes
    raise Unanswered(f"The times, such as {texts[present][0][:30]!r}, cannot be read as numbers or dates.")


def _dates(column: pd.Series, layout: str) -> pd.Series:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of guessing: what was guessed is checked by counting
        return pd.to_datetime(column, errors="coerce", format=layout, utc=True)


def _periods(moments: np.ndarray) -> np.ndarray:
    """Return the period of each row (n,) of sorted times (n,); rows of one time share a period, with enough rows."""
    size = max(MIN_PERIOD, math.ceil(len(moments) / MAX_PERIODS))
    counts = np.unique(moments, return_counts=True)[1]
    period, filled, of_time = 0, 0, []
    for count in counts:
        if filled >= size:
            period, filled = period + 1, 0
        of_time.append(period)
        filled += count
    if filled < MIN_PERIOD and period:  # too few rows at the end: they join the period before
        of_time = [min(t, period - 1) for t in of_time]
    return np.repeat(np.array(of_time, dtype=np.int64), counts)


def _columns(context: Context, rows: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """Return which numeric columns (p,) vary and have values in every period, of rows (n,) in periods (n,)."""
    columns = np.flatnonzero(context.encoded.numeric)
    X = context.encoded.X[np.ix_(rows, columns)]
    enough = [(~np.isnan(X[periods == t])).sum(axis=0) >= MIN_PRESENT for t in range(periods[-1] + 1)]
    filled = np.where(np.isnan(X), np.inf, X), np.where(np.isnan(X), -np.inf, X)
    columns = columns[np.all(enough, axis=0) & (filled[0].min(axis=0) < filled[1].max(axis=0))]
    if len(columns) < 3:
        raise Unanswered(f"It needs at least 3 numeric columns with values in every period; there are {len(columns)}.")
    return columns


def _affordable(X: np.ndarray, periods: np.ndarray, streams: Streams, deadline: Deadline) -> int:
    """Return how many columns can be fitted often enough in time; a fit of few columns calibrates, to be safe."""
    deadline.require(MIN_SECONDS)
    few, first = X[:, :PROBE_COLUMNS], periods < 2
    _changes(few[first], periods[first], 1, streams)  # imports and starts what the timing must not count
    _, seconds = timed(lambda: _changes(few, periods, _factors(few.shape[1]), streams))
    times = SHARE_OF_TIME * deadline.left() / (seconds * (SHUFFLES + 1))
    if times < 1:
        raise Unanswered(OUT_OF_TIME)
    return min(X.shape[1], MAX_COLUMNS, int(few.shape[1] * times))


def _factors(p: int) -> int:
    """Return a number of factors for `p` columns: a few too many do little harm, and cost time."""
    return int(np.clip(p // 4, 2, MAX_FACTORS))


def _changes(X: np.ndarray, periods: np.ndarray, m: int, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Return the change from each period to the next, of all columns together and of each (steps, p)."""
    from natwise.structure import TCorEx

    model = TCorEx(m, l1=L1, gamma=GAMMA, missing_values=np.nan, random_state=streams.seed("tcorex"))
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")  # convergence to the last digit does not matter against a null
        by_column = model.fit(_normal_scores(X, periods), times=periods).feature_change_scores()
    return np.linalg.norm(by_column, axis=1), by_column  # the first are model.change_scores()


def _normal_scores(X: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """Replace each column's values by Gaussian quantiles of their ranks in the period: only dependence is left."""
    found = np.full(X.shape, np.nan)
    for t in range(periods.max() + 1):
        part = X[periods == t]
        count = (~np.isnan(part)).sum(axis=0)
        found[periods == t] = ndtri((rankdata(part, axis=0, nan_policy="omit") - 0.5) / count)
    return found


def _moved(scores: np.ndarray, limit: float) -> np.ndarray:
    """Return the columns (moved,) that moved more than any by chance, strongest first; else the three most moved."""
    beyond = int((scores > limit).sum())
    return np.argsort(-scores, kind="stable")[: min(beyond or 3, SHOWN)]


def _summary(changes: list[dict], n_periods: int) -> list[str]:
    if not changes:
        return [f"How the columns hang together does not change over {n_periods} periods of time, beyond chance."]
    first = max(changes, key=lambda change: change["score"])
    others = f", the largest of {len(changes)} changes" if len(changes) > 1 else ""
    moved = ", ".join(name[:30] for name in first["moved"][:3])
    return [f"How the columns hang together changes from {first['start'][:30]} on{others}: {moved} move most."]
