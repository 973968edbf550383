"""Series of many stays as one table of numbers, from frames of pandas, polars or plain columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from natwise.core.validation import check_array, shorten
from natwise.datasets import mimic3

if TYPE_CHECKING:
    import pandas as pd

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
    import pandas as pd

    names = [str(stay) for stay in (range(len(frames)) if stays is None else stays)]
    tables = [_columns(frame, name) for frame, name in zip(frames, names, strict=True)]
    starts = np.concatenate([[0], np.cumsum([len(table) for table in tables])])

    def locate(row: int) -> str:
        return names[int(np.searchsorted(starts, row, side="right")) - 1]

    table = tables[0] if len(tables) == 1 else pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)
    hours = _hours(table["Hours"])
    values = np.stack([_encode(variable, table[variable.name], locate) for variable in mimic3.variables()], axis=1)
    series = Series(hours, values, starts)
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
            values[:, position] = _encode(variable, column.to_pandas(), locate)
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
    array: np.ndarray = table.select(columns).fill_null(np.nan).to_numpy(writable=True)
    return array


def _hours(column: pd.Series) -> np.ndarray:
    """Return the times as float64; texts of numbers are numbers here as in the other columns."""
    import pandas as pd

    try:
        numbers = pd.to_numeric(column)
    except (TypeError, ValueError):
        raise ValueError(f"frames must hold numbers in Hours, got {shorten(list(column))}") from None
    return check_array("frames", numbers, shape=("rows",), dtype=np.float64)


def _columns(frame: Any, stay: str) -> pd.DataFrame:
    """Return Hours and the 17 variables of a frame."""
    import pandas as pd

    needed = ["Hours", *(variable.name for variable in mimic3.variables())]
    present = set(frame.columns if hasattr(frame, "columns") else frame)
    missing = [name for name in needed if name not in present]
    if missing:
        raise ValueError(f"frames must have the columns Hours and the 17 variables, stay {stay} lacks {missing}")
    if isinstance(frame, pd.DataFrame):
        return frame[needed]
    return pd.DataFrame({name: list(frame[name]) for name in needed})


def _check_order(series: Series, locate: Callable[[int], str]) -> None:
    falls = np.diff(series.hours) < -EPS
    falls[series.starts[1:-1] - 1] = False
    if falls.any():
        row = int(np.argmax(falls)) + 1
        before, after = series.hours[row - 1 : row + 1]
        raise ValueError(f"frames must be sorted by Hours, got {after:g} after {before:g} in stay {locate(row)}")


def _encode(variable: mimic3.Variable, column: pd.Series, locate: Callable[[int], str]) -> np.ndarray:
    """Return one variable of all stays as float64; each distinct text is looked at once."""
    import pandas as pd

    if not variable.categories and isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        numbers = column.to_numpy(dtype=np.float64)
        if not np.isinf(numbers).any():
            return numbers
    codes, distinct = pd.factorize(column)
    parse = partial(_category, _category_table(variable)) if variable.categories else _number
    parsed = [np.nan if _is_missing(value) else parse(value) for value in distinct]
    if None in parsed:
        wrong = parsed.index(None)
        stay = locate(int(np.argmax(codes == wrong)))
        known = f"one of {', '.join(variable.categories)}" if variable.categories else "a number"
        raise ValueError(f"frames must hold {known} in {variable.name}, got {distinct[wrong]!r} in stay {stay}")
    return np.array([*parsed, np.nan], dtype=np.float64)[codes]  # code -1 stands for a gap


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and value.strip() in _MISSING)


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
