"""Series of many stays as one table of numbers, from frames of pandas, polars or plain columns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from natwise.core.validation import check_array, shorten
from natwise.datasets import mimic3

EPS = 1e-6  # hours; the tolerance of every comparison of times in the published code
_NEEDED = ["Hours", *(variable.name for variable in mimic3.variables())]
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
        if rows.all():
            return self
        starts = np.concatenate([[0], np.cumsum(rows)])[self.starts]
        return Series(self.hours[rows], self.values.T[:, rows].T, starts)  # a variable stays one piece of memory


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
    tables = [_objects(frame, name) for frame, name in zip(frames, names, strict=True)]
    starts = np.concatenate([[0], np.cumsum([len(table) for table in tables])])

    def locate(row: int) -> str:
        return names[int(np.searchsorted(starts, row, side="right")) - 1]

    hours, *columns = np.concatenate(tables).T
    values = np.stack([_encode(*pair, locate) for pair in zip(mimic3.variables(), columns, strict=True)])
    series = Series(_hours(hours), values.T, starts)
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
            values[:, position] = _encode(variable, column.to_numpy().astype(object), locate)
    return Series(table["Hours"].to_numpy(), values, starts)


def _cast(table: Any) -> np.ndarray:
    """Return the variables as numbers (n_rows, 17), NaN also where a text is not exactly a number or a category."""
    import polars as pl

    columns = []
    for variable in mimic3.variables():
        column = pl.col(variable.name)
        if variable.categories and table[variable.name].dtype.is_numeric():
            numbers = {key: i for key, i in _category_table(variable).items() if isinstance(key, float)}
            column = column.cast(pl.Float64).replace_strict(numbers, default=None, return_dtype=pl.Float64)
        elif variable.categories:
            column = column.cast(pl.Enum(variable.categories), strict=False).to_physical()
        columns.append(column.cast(pl.Float64, strict=False))
    array: np.ndarray = table.select(columns).to_numpy(writable=True)  # a null becomes NaN
    return array


def _hours(column: np.ndarray) -> np.ndarray:
    """Return the times as float64; texts of numbers are numbers here as in the other columns."""
    try:
        return check_array("frames", column.astype(np.float64), shape=("rows",))
    except TypeError:
        raise ValueError(f"frames must hold numbers in Hours, got {shorten(column.tolist())}") from None
    except ValueError as error:
        raise ValueError(f"frames must hold numbers in Hours: {error}") from None


def _objects(frame: Any, stay: str) -> np.ndarray:
    """Return Hours and the 17 variables of a frame as an array of objects (rows, 18)."""
    if not (hasattr(frame, "columns") or isinstance(frame, Mapping)):
        raise TypeError(
            f"frames must hold data frames or mappings of columns, got {type(frame).__name__} as stay {stay}"
        )
    present = list(frame.columns if hasattr(frame, "columns") else frame)
    missing = [name for name in _NEEDED if name not in present]
    if missing:
        raise ValueError(f"frames must have the columns Hours and the 17 variables, stay {stay} lacks {missing}")
    if hasattr(frame, "iloc"):  # pandas: all at once, one column after the other takes five times longer
        table: np.ndarray = frame.to_numpy(dtype=object)
        return table if present == _NEEDED else table[:, [present.index(name) for name in _NEEDED]]
    columns = [list(frame[name]) for name in _NEEDED]
    lengths = sorted({len(column) for column in columns})
    if len(lengths) > 1:
        raise ValueError(f"frames must hold columns of one length, stay {stay} has some of {lengths} rows")
    table = np.empty((lengths[0], len(_NEEDED)), dtype=object)
    for position, column in enumerate(columns):
        table[:, position] = column
    return table


def _check_order(series: Series, locate: Callable[[int], str]) -> None:
    falls = np.diff(series.hours) < -EPS
    falls[series.starts[1:-1] - 1] = False
    if falls.any():
        row = int(np.argmax(falls)) + 1
        before, after = series.hours[row - 1 : row + 1]
        raise ValueError(f"frames must be sorted by Hours, got {after:g} after {before:g} in stay {locate(row)}")


def check_ends(series: Series, ends: Any, name: str = "ends") -> np.ndarray:
    """Return the end of each stay in hours."""
    checked = check_array(name, ends, shape=(series.n_stays,), dtype=np.float64)
    if (checked < 0).any():
        raise ValueError(f"{name} must be >= 0, got {checked.min():g}")
    return checked


def _encode(variable: mimic3.Variable, column: np.ndarray, locate: Callable[[int], str]) -> np.ndarray:
    """Return one variable of all stays as float64; each distinct text is looked at once."""
    values = _Codes(variable).of(column)
    wrong = np.flatnonzero(np.isinf(values))
    if len(wrong):
        known = f"one of {', '.join(variable.categories)}" if variable.categories else "a number"
        found = shorten(column[wrong[0]])
        raise ValueError(f"frames must hold {known} in {variable.name}, got {found} in stay {locate(int(wrong[0]))}")
    return values


class _Codes(dict[Any, float]):
    """Value as it stands in a frame -> its number: NaN when it is missing, infinite when it is no value."""

    def __init__(self, variable: mimic3.Variable):
        self.variable = variable

    def __missing__(self, value: Any) -> float:
        if _is_missing(value):
            self[value] = np.nan
        else:
            parsed = _category(_category_table(self.variable), value) if self.variable.categories else _number(value)
            self[value] = np.inf if parsed is None else parsed
        return self[value]

    def of(self, column: np.ndarray) -> np.ndarray:
        """Return the numbers of a column of objects."""
        try:
            values: np.ndarray = column.astype(np.float64)
        except (TypeError, ValueError):  # a text among them, or None
            found = (self[value] if isinstance(value, Hashable) else np.inf for value in column.tolist())
            return np.fromiter(found, np.float64, len(column))
        if self.variable.categories:
            known = np.flatnonzero(~np.isnan(values))
            values[known] = [self[value] for value in values[known].tolist()]
        return values


def _is_missing(value: Any) -> bool:
    return value is None or (value.strip() if isinstance(value, str) else str(value)) in _MISSING


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


@cache
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
