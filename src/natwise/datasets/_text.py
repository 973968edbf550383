"""Text from outside: made safe to print, to draw and to save, without changing what can be shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

MAX_NAME_LENGTH = 200
_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F}
_CONTROL = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n"), ord("\r")}
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
