"""Text from outside: made safe to print, to draw and to save, without changing what can be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

MAX_NAME_LENGTH = 200
_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F}
_CONTROL = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n"), ord("\r")}
_COMMAS = (  # numbers such as 1,234.5, and such as 1,5 or 1.234,5: what to take out, and what is the point
    (re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?|[-+]?\d{1,3}(\.\d*)?"), ",", "."),
    (re.compile(r"[-+]?(\d{1,3}(\.\d{3})+|\d+)(,\d*)?([eE][-+]?\d+)?"), ".", ","),
)
_UNSAFE = dict.fromkeys(_BIDI | _CONTROL, "\N{REPLACEMENT CHARACTER}")


def clean_text(text: object) -> str:
    """Return `text` with control characters, bidirectional overrides and broken surrogates made visible."""
    valid = str(text).encode("utf-8", errors="replace").decode("utf-8")
    return valid.translate(_UNSAFE)


def clean_names(names: Iterable[object], limit: int = MAX_NAME_LENGTH) -> tuple[list[str], int]:
    """Return `names` as clean, unique text of at most `limit` characters, and how many had to change."""
    seen: set[str] = set()
    cleaned = []
    changed = 0
    for name in names:
        text = clean_text(name)
        if len(text) > limit:
            text = text[: limit - 1] + "…"
        base, count = text, 1
        while text in seen:
            count += 1
            text = f"{base} ({count})"
        seen.add(text)
        changed += text != str(name)
        cleaned.append(text)
    return cleaned, changed


def is_missing(values: Any) -> np.ndarray:
    """Return which entries are NaN, None, NaT or blank text."""
    column = pd.Series(values)
    missing = column.isna().to_numpy(dtype=bool)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return missing
    return missing | np.array([isinstance(value, str) and not value.strip() for value in column], dtype=bool)


def as_numbers(text: pd.Series) -> pd.Series:
    """Return text as numbers, NaN where it is none; commas of thousands or decimals count when nearly all fit."""
    numbers = pd.to_numeric(text, errors="coerce")
    present = [str(value).strip() for value in text[~is_missing(text)]]
    if not any("," in value for value in present[:1000]):
        return numbers
    for pattern, thousands, point in _COMMAS:
        if np.mean([bool(pattern.fullmatch(value)) for value in present]) >= 0.9:
            plain = [str(value).replace(thousands, "").replace(point, ".") for value in text]
            return pd.to_numeric(pd.Series(plain, index=text.index, dtype=object), errors="coerce")
    return numbers
