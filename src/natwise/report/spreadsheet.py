"""CSV text that is safe to open in a spreadsheet: no cell begins a formula."""

from __future__ import annotations

import io
import re

import pandas as pd

_FORMULA = re.compile(r"^\s*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$")


def csv_text(frame: pd.DataFrame) -> str:
    """Return a frame as CSV (commas, line feeds, UTF-8); text that a spreadsheet would run gets a leading apostrophe.

    Numbers stay numbers, also negative ones that are written as text.
    """
    safe = pd.DataFrame({defuse(str(name)): column.map(_cell) for name, column in frame.items()})
    buffer = io.StringIO()
    safe.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def defuse(text: str) -> str:
    """Return `text`, with an apostrophe in front when a spreadsheet would take it for a formula."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.match(text) else text


def _cell(value: object) -> object:
    if isinstance(value, str):
        return defuse(value)
    return float(f"{value:.6g}") if isinstance(value, float) else value
