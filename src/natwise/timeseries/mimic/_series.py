"""Series of many stays as one table of numbers, from frames of pandas, polars or plain columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from natwise.core.validation import check_array, shorten
from natwise.datasets import mimic3

EPS = 1e-6  # hours; the tolerance of every comparison of times in the published code
_MISSING = {"", "nan", "NaN", "NA", "N/A", "n/a", "null", "NULL", "<NA>", "#N/A", "-nan", "-NaN"}


@dataclass(frozen=True)
class Series:
    """The events of some stays, one stay after the other.

    Attributes
    ----------
    hours : ndarray (n_rows,)
        Time of each row since admission, ascending within a stay.
    values : ndarray (n_rows, 17)
        NaN where nothing was observed; for a categorical variable the position among its categories.
    starts : ndarray (n_stays + 1,)
        First row of each stay, and the end.
    """

    hours: np.ndarray
    values: np.ndarray
    starts: np.ndarray

    @property
    def n_stays(self) -> int:
        """How many stays there are."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each stay."""
        return np.diff(self.starts)

    def chosen(self, rows: np.ndarray) -> Series:
        """Return the series with only the rows where `rows` is true."""
        starts = np.concatenate([[0], np.cumsum(rows)])[self.starts]
        return Series(self.hours[rows], self.values[rows], starts)


def read_frames(frames: Any, stays: Sequence[Any] | None = None) -> Series:
    """Return the series of frames with Hours and the 17 variables.

    Parameters
    ----------
    frames : sequence of DataFrame or mapping
        One per stay; extra columns are ignored. Values may be numbers or texts; NaN, None and "" are missing.
    stays : sequence, optional
        Their names, for messages. Default: positions.
    """
    if hasattr(frames, "columns") or isinstance(frames, (str, bytes)) or not hasattr(frames, "__len__"):
        raise TypeError(f"frames must be a list of frames, got {type(frames).__name__}")
    if len(frames) == 0:
        raise ValueError("frames must hold at least one stay, got none")
    names = [str(stay) for stay in (range(len(frames)) if stays is None else stays)]
    columns = [_columns(frame, name) for frame, name in zip(frames, names, strict=True)]
    lengths = np.array([len(hours) for hours, _ in columns])
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def locate(row: int) -> str:
        return names[int(np.searchsorted(starts, row, side="right")) - 1]

    hours = np.concatenate([hours for hours, _ in columns])
    numbers = [
        _encode(variable, [values[j] for _, values in columns], locate) for j, variable in enumerate(mimic3.variables())
    ]
    series = Series(hours, np.stack(numbers).T, starts)
    _check_order(series, locate)
    return series


def read_table(table: Any) -> Series:
    """Return the series of a polars table of stays one after the other, as ``timeseries/part-*.parquet`` holds them."""
    same = table["ICUSTAY_ID"].to_numpy()
    starts = np.concatenate([np.flatnonzero(np.diff(same, prepend=-1)), [len(same)]])

    def locate(row: int) -> str:
        return f"ICUSTAY_ID {same[row]}"

    values = _cast(table)
    for position, variable in enumerate(mimic3.variables()):
        column = table[variable.name]
        if np.isfinite(values[:, position]).sum() < len(column) - column.null_count():  # a text that is no plain value
            values[:, position] = _encode(variable, [column], locate)
    return Series(table["Hours"].to_numpy(), values, starts)


def _cast(table: Any) -> np.ndarray:
    """Return the variables as numbers (n_rows, 17), NaN also where a text is not exactly a number or a category."""
    import polars as pl

    columns = []
    for variable in mimic3.variables():
        column = pl.col(variable.name)
        if variable.categories:
            column = column.cast(pl.String).cast(pl.Enum(variable.categories), strict=False).to_physical()
        columns.append(column.cast(pl.Float64, strict=False))
    array: np.ndarray = table.select(columns).fill_null(np.nan).to_numpy(writable=True)
    return array


def _columns(frame: Any, stay: str) -> tuple[np.ndarray, list[Any]]:
    """Return the hours of a frame and its 17 columns."""
    names = list(frame.columns if hasattr(frame, "columns") else frame)
    missing = [name for name in ("Hours", *(v.name for v in mimic3.variables())) if name not in names]
    if missing:
        raise ValueError(f"frames must have the columns Hours and the 17 variables, stay {stay} lacks {missing}")
    hours = check_array("frames", np.asarray(frame["Hours"]), shape=("rows",), dtype=np.float64)
    return hours, [frame[variable.name] for variable in mimic3.variables()]


def _check_order(series: Series, locate: Callable[[int], str]) -> None:
    falls = np.diff(series.hours) < -EPS
    falls[series.starts[1:-1] - 1] = False
    if falls.any():
        row = int(np.argmax(falls)) + 1
        before, after = series.hours[row - 1 : row + 1]
        raise ValueError(f"frames must be sorted by Hours, got {after:g} after {before:g} in stay {locate(row)}")


def _encode(variable: mimic3.Variable, columns: list[Any], locate: Callable[[int], str]) -> np.ndarray:
    """Return one variable of all stays as float64; each distinct text is looked at once."""
    if not variable.categories and all(_is_numeric(column) for column in columns):
        return np.concatenate([np.asarray(column, dtype=np.float64) for column in columns])
    parse = partial(_category, _category_table(variable)) if variable.categories else _number
    codes, distinct = _distinct(columns)
    parsed = [np.nan if _is_missing(value) else parse(value) for value in distinct]
    wrong = next((i for i, number in enumerate(parsed) if number is None), None)
    if wrong is not None:
        stay = locate(int(np.argmax(codes == wrong)))
        known = f"one of {', '.join(variable.categories)}" if variable.categories else "a number"
        raise ValueError(f"frames must hold {known} in {variable.name}, got {shorten(distinct[wrong])} in stay {stay}")
    numbers: np.ndarray = np.array([*parsed, np.nan], dtype=np.float64)[codes]
    return numbers


def _is_numeric(column: Any) -> bool:
    dtype = getattr(column, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype.kind in "biuf"


def _is_polars(column: Any) -> bool:
    return type(column).__module__.startswith("polars.")


def _distinct(columns: list[Any]) -> tuple[np.ndarray, list[Any]]:
    """Return the position of every value among the distinct ones, which follow; the last position is for missing."""
    import pandas as pd

    if len(columns) == 1 and _is_polars(columns[0]):
        distinct = columns[0].unique().drop_nulls()
        table = dict(zip(distinct.to_list(), range(len(distinct)), strict=True))
        codes = columns[0].replace_strict(table, default=len(table)).to_numpy()
        return codes, list(table)
    values = np.concatenate([np.asarray(column, dtype=object) for column in columns])
    codes, uniques = pd.factorize(values)
    return np.where(codes < 0, len(uniques), codes), list(uniques)


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and value.strip() in _MISSING)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _category_table(variable: mimic3.Variable) -> dict[str | float, int]:
    """Return text -> position, and number -> position for categories that are numbers: "15", 15 and "15.0" are one."""
    table: dict[str | float, int] = {text: i for i, text in enumerate(variable.categories)}
    numbers = {_number(text): i for i, text in enumerate(variable.categories)}
    return table | {number: i for number, i in numbers.items() if number is not None}


def _category(table: dict[str | float, int], value: Any) -> int | None:
    if isinstance(value, str) and value.strip() in table:
        return table[value.strip()]
    number = _number(value)
    return None if number is None else table.get(number)
