"""Columns of any type to one numeric matrix, with a line per column on what was done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd

from natwise.core.validation import shorten
from natwise.datasets._text import MAX_NAME_LENGTH, as_numbers, clean_text, is_missing

MAX_CATEGORIES = 50
FREE_TEXT_LENGTH = 40
CLIP = 30.0
DATE_LAYOUTS = ("ISO8601", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y")
PILOT = 1000  # values that decide about the layout of dates
_Values: TypeAlias = np.ndarray | pd.Categorical | None
_INDEX_NAME = re.compile(r"^(unnamed: \d+|index|id|.*[_ ]id|row|row[_ ]?(number|id))$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A table's features as numbers.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
        NaN where missing. Numeric columns are centred at the median and scaled by the interquartile range (where
        that is 0, by the standard deviation), and clipped at 30 of these units; pixels share one scale; categories
        are one 0/1 column each.
    names : tuple of str
        One per column of `X`.
    numeric : ndarray of bool, shape (d,)
        Columns that are measured numbers or dates, not categories.
    kinds : tuple of str
        What became of each column of the table: ``numeric, date, category, constant, empty, id-like, free text``
        or ``unsupported``. The last five are left out.
    """

    X: np.ndarray
    names: tuple[str, ...]
    numeric: np.ndarray
    kinds: tuple[str, ...]


def encode(features: pd.DataFrame, *, is_image: bool = False) -> Encoded:
    """Turn the columns of a data frame into numbers.

    Raises ValueError when no column is usable, with a hint when that is because of free text.
    """
    columns: list[np.ndarray] = []
    names: list[str] = []
    numeric: list[bool] = []
    kinds: list[str] = []
    for name, column in features.items():
        kind, values = _column(str(name), column)
        kinds.append(kind)
        if values is None:
            continue
        if isinstance(values, pd.Categorical):
            indicators, labels = _one_hot(str(name), values)
            columns.append(indicators)
            names += labels
            numeric += [False] * len(labels)
        else:
            columns.append(values[:, None] if is_image else _scaled(values)[:, None])
            names.append(str(name))
            numeric.append(True)
    if not columns:
        raise ValueError(_nothing_left(kinds))
    X = np.concatenate(columns, axis=1, dtype=np.float32, casting="unsafe")
    if is_image:
        X = ((X - np.nanmean(X)) / (np.nanstd(X) or 1.0)).astype(np.float32)
    return Encoded(X, tuple(names), np.array(numeric), tuple(kinds))


def _column(name: str, column: pd.Series) -> tuple[str, _Values]:
    """Return the kind of a column and its values, None when it is left out."""
    if pd.api.types.is_complex_dtype(column.dtype):
        return "unsupported", None
    kind, values = ("numeric", _as_numbers(column)) if _is_numeric(column) else _text_column(column)
    if values is None:
        return kind, None
    if isinstance(values, pd.Categorical):
        constant = len(values.categories) == 1 and (values.codes == 0).all()
        return ("constant", None) if constant else (kind, values)
    present = values[~np.isnan(values)]
    if len(present) == 0:
        return "empty", None
    if (present == present[0]).all():
        return "constant", None
    return ("id-like", None) if kind == "numeric" and _is_index(name, values) else (kind, values)


def _text_column(column: pd.Series) -> tuple[str, _Values]:
    missing = is_missing(column)
    present = column[~missing]
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return "date", _days(column)
    if len(present) == 0:
        return "empty", None
    if not all(isinstance(value, (str, bytes, int, float, np.generic)) for value in present):
        return _mixed_objects(column, missing)
    text = present.astype(str)
    numbers = as_numbers(text)
    if numbers.notna().mean() >= 0.9:
        return "numeric", _as_numbers(numbers.reindex(column.index))
    for layout in DATE_LAYOUTS:
        if _dates(text.iloc[:PILOT], layout).notna().mean() < 0.95:
            continue
        dates = _dates(text, layout)
        if dates.notna().mean() >= 0.95:
            return "date", _days(dates.reindex(column.index))
    return _categories(column.where(~missing), text)


def _mixed_objects(column: pd.Series, missing: np.ndarray) -> tuple[str, np.ndarray | None]:
    numbers = pd.to_numeric(column.where(~missing), errors="coerce")
    if numbers.notna().sum() >= 0.9 * (~missing).sum():
        return "numeric", _as_numbers(numbers)
    return "unsupported", None


def _categories(column: pd.Series, text: pd.Series) -> tuple[str, _Values]:
    unique = text.nunique()
    if unique > max(MAX_CATEGORIES, len(text) // 20) and unique > 0.2 * len(text):
        return ("free text" if text.str.len().mean() > FREE_TEXT_LENGTH or _words(text) > 3 else "id-like"), None
    return "category", pd.Categorical(column.where(column.isna(), column.astype(str)))


def _words(text: pd.Series) -> float:
    return float(text.iloc[:200].str.count(r"\s+").mean()) + 1


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype)


def _as_numbers(column: pd.Series) -> np.ndarray:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _dates(text: pd.Series, layout: str) -> pd.Series:
    return pd.to_datetime(text, errors="coerce", format=layout, utc=True)


def _days(column: pd.Series) -> np.ndarray:
    days = (column - column.min()) / pd.Timedelta(days=1)
    return days.to_numpy(dtype=np.float64, na_value=np.nan)


def _is_index(name: str, values: np.ndarray) -> bool:
    """Return whether a numeric column is a row number or key: it would tell the order of the file, not the subject."""
    if np.isnan(values).any() or (values % 1 != 0).any() or len(np.unique(values)) < len(values):
        return False
    consecutive = values.max() - values.min() == len(values) - 1
    return bool(_INDEX_NAME.match(name)) or bool(consecutive and (np.diff(values) == 1).all())


def _scaled(values: np.ndarray) -> np.ndarray:
    low, middle, high = np.nanpercentile(values, [25, 50, 75])
    largest = np.nanmax(np.abs(values)) or 1.0
    spread = (high - low) / 1.349 or np.nanstd(values / largest) * largest
    with np.errstate(over="ignore"):
        return np.clip((values - middle) / (spread or 1.0), -CLIP, CLIP)


def _one_hot(name: str, values: pd.Categorical) -> tuple[np.ndarray, list[str]]:
    """Return an indicator per category, the rarest beyond the limit together; a missing value is 0 everywhere."""
    counts = np.bincount(values.codes[values.codes >= 0])
    frequent = np.argsort(-counts, kind="stable")[:MAX_CATEGORIES]
    indicators = (values.codes[:, None] == frequent[None, :]).astype(np.float32)
    labels = [f"{name} = {clean_text(values.categories[i])[:MAX_NAME_LENGTH]}" for i in frequent]
    if len(counts) > MAX_CATEGORIES:
        rest = (values.codes >= 0) & ~np.isin(values.codes, frequent)
        indicators = np.column_stack([indicators, rest.astype(np.float32)])
        labels.append(f"{name} = another")
    return indicators, labels


def _nothing_left(kinds: list[str]) -> str:
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    message = f"there are no usable features: of {len(kinds):,} columns {counts}"
    if "free text" in kinds:
        message += "; turn free text into numbers first (sentence embeddings, word counts)"
    return shorten(message, 300).strip("'\"")
