"""Labels of any type to class codes, or to numbers with ranges for classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from natwise.core.validation import shorten
from natwise.datasets._text import as_numbers, clean_names

TASKS = ("auto", "classification", "regression")
MIN_ROWS = 20
MAX_LABEL_LENGTH = 1000
MAX_CLASSES = {True: 20, False: 100}  # of numbers with and without fractions; more, and 1 in 20 rows, are no classes
N_RANGES = 10


def encode_labels(labels: pd.Series, task: str) -> tuple[np.ndarray, tuple[str, ...], np.ndarray | None]:
    """Return codes (n,), class names, and for regression the numbers (n,), else None; refuse what can be neither.

    For regression, codes and classes are those of up to ten ranges with about as many rows each.
    """
    n = len(labels)
    if n < MIN_ROWS:
        raise ValueError(f"at least {MIN_ROWS} rows with a label are needed, got {n}")
    codes, uniques = pd.factorize(labels)
    names = [label_text(value) for value in uniques]
    longest = max(map(len, names))
    if longest > MAX_LABEL_LENGTH:
        raise ValueError(f"a label is {longest:,} characters long (at most {MAX_LABEL_LENGTH:,}): is it free text?")
    if len(names) == 1:
        raise ValueError(f"the labels hold one class only ({shorten(names[0])}); at least two are needed")
    numbers = as_numbers(pd.Series(names, dtype=object)).to_numpy(dtype=float)
    if task == "regression" or (task == "auto" and _is_measured(numbers, n)):
        return _ranges(names, numbers, codes)
    if len(names) > n // 2:
        raise ValueError(
            f"the labels hold nearly a class per row ({len(names):,} classes in {n:,} rows): is this an id column? "
            "For a number to be predicted, say so (task regression)"
        )
    order = sorted(range(len(names)), key=lambda i: (np.isnan(numbers[i]), np.nan_to_num(numbers[i]), names[i]))
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    classes, _ = clean_names([names[i] for i in order], limit=MAX_LABEL_LENGTH)
    return position[codes], tuple(classes), None


def label_text(value: Any) -> str:
    """Return a label as text: whole numbers without a point, bytes as UTF-8."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _is_measured(numbers: np.ndarray, n: int) -> bool:
    """Return whether the different labels are numbers too many to be classes, and not whole numbers that name rows."""
    if not np.isfinite(numbers).all():
        return False
    fractional = bool((numbers % 1 != 0).any())
    if not fractional and len(numbers) == n:
        return False
    return len(numbers) > max(MAX_CLASSES[fractional], n // 20)


def _ranges(names: list[str], numbers: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Return the range of each row, the ranges' names, and the numbers."""
    if not np.isfinite(numbers).all():
        wrong = names[int(np.flatnonzero(~np.isfinite(numbers))[0])]
        raise ValueError(f"for regression the labels must be finite numbers, got {shorten(wrong)}")
    target = numbers[codes]
    edges = np.unique(np.quantile(target, np.linspace(0, 1, N_RANGES + 1)[1:-1], method="inverted_cdf"))
    _, bins = np.unique(np.searchsorted(edges, target, side="left"), return_inverse=True)
    ends = [(target[bins == b].min(), target[bins == b].max()) for b in range(bins.max() + 1)]
    classes, _ = clean_names([f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}" for low, high in ends])
    return bins.astype(np.int64), tuple(classes), target
