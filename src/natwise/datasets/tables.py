"""Labelled tables: a user's CSV, Parquet or NPZ file, or arrays, checked and ready for the audit."""

from __future__ import annotations

import dataclasses
import os
import time as clock
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from natwise.core.validation import check_same_length, shorten, suggest
from natwise.datasets._files import RawTable, read_file
from natwise.datasets._text import clean_names, clean_text, is_missing

MIN_ROWS = 20
MAX_LABEL_LENGTH = 1000


@dataclass(frozen=True, eq=False)
class Table:
    """A labelled data set.

    Parameters
    ----------
    name : str
        Where it came from: a file name, or the name of a bundled set.
    features : DataFrame of shape (n, p)
        The columns as they were given; nothing is encoded yet. Unique text names.
    labels : ndarray of int64, shape (n,)
        Position in `classes`; every row has a label.
    classes : tuple of str
        Numbers in numeric order, other labels in alphabetical order.
    ids : tuple of str or int
        The user's own name of each row; without an id column the row number in the file, from 0.
    group, time : ndarray of str, shape (n,), optional
        Site and date of each row.
    test : DataFrame, optional
        Features of a second file, to be checked for overlap.
    planted : ndarray of bool, shape (n,), optional
        Which labels are known to be wrong.
    image_shape : tuple of int, optional
        Height, width and channels, when the columns are the pixels of an image in row-major order.
    notes : tuple of str
        What was left out or changed while reading.
    arguments : tuple of str
        Command-line arguments that load this table again.
    seconds : float
        The time that loading took.
    """

    name: str
    features: pd.DataFrame
    labels: np.ndarray
    classes: tuple[str, ...]
    ids: tuple[str | int, ...]
    group: np.ndarray | None = None
    time: np.ndarray | None = None
    test: pd.DataFrame | None = None
    planted: np.ndarray | None = None
    image_shape: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, rows={len(self)}, columns={self.features.shape[1]}, classes={len(self.classes)})"


def load_table(
    path: str | os.PathLike[str],
    label: str,
    *,
    group: str | None = None,
    id: str | None = None,
    time: str | None = None,
    test: str | os.PathLike[str] | None = None,
) -> Table:
    """Read a labelled table from a CSV, Parquet or NPZ file.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv`` or ``.txt`` (also ``.gz``), ``.parquet`` or ``.pq``, or ``.npz``. Separator and encoding of
        text files are found out. An NPZ file holds features ``X`` of shape (n, p) or images (n, h, w[, c]), and
        one array of length n per named column.
    label : str
        The column (NPZ: the array) with the labels. Rows without a label are left out, and `Table.notes` says so.
    group, id, time : str, optional
        Columns with the site, the name and the date of each row; they are not used as features.
    test : path, optional
        A second file of the same kind, whose rows are checked for overlap.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If the file is damaged, a named column is missing, or the labels cannot be audited: fewer than 20 rows, one
        class, a class per row, a continuous target, no features.
    """
    start = clock.perf_counter()
    raw = read_file(path, [label, group, id, time])
    named = {"label": label, "group": group, "id": id, "time": time}
    for role, column in named.items():
        if column is not None:
            _check_column(raw, role, column, path)
    used = {column for column in named.values() if column is not None}
    features = raw.frame.drop(columns=list(used))
    columns = {role: None if column is None else raw.frame[column] for role, column in named.items()}
    table = make_table(
        features,
        columns["label"],
        group=columns["group"],
        ids=columns["id"],
        time=columns["time"],
        test=None if test is None else _test_features(test, used, features),
        name=Path(path).name,
        image_shape=raw.image_shape,
        notes=raw.notes,
    )
    given = [("--group", group), ("--id", id), ("--time", time), ("--test", None if test is None else os.fspath(test))]
    arguments = [os.fspath(path), "--label", label]
    arguments += [part for option, value in given if value is not None for part in (option, value)]
    return dataclasses.replace(table, arguments=tuple(arguments), seconds=clock.perf_counter() - start)


def make_table(
    X: Any,
    y: Any,
    *,
    ids: Any = None,
    group: Any = None,
    time: Any = None,
    test: pd.DataFrame | None = None,
    planted: np.ndarray | None = None,
    name: str = "data",
    image_shape: tuple[int, ...] | None = None,
    notes: Sequence[str] = (),
) -> Table:
    """Check features and labels and make a `Table` of them.

    Parameters
    ----------
    X : DataFrame or array-like of shape (n, p), or images of shape (n, h, w) or (n, h, w, c)
        Features; missing values, text and dates are allowed.
    y : array-like of shape (n,)
        Labels of a classification task: text, numbers or booleans.
    ids, group, time : array-like of shape (n,), optional
        Name, site and date of each row.

    The other parameters are those of `Table`. Raises ValueError or TypeError as `load_table`.
    """
    features, shape = _as_frame(X)
    labels = _as_column("y", y)
    check_same_length(X=features, y=labels, ids=ids, group=group, time=time, planted=planted)
    if ids is None:
        ids = features.index if isinstance(X, pd.DataFrame) else range(len(features))
    keep = ~is_missing(labels)
    notes = list(notes)
    if not keep.all():
        notes.append(f"Rows without a label were left out: {int((~keep).sum()):,}.")
    codes, classes = _encode_labels(labels[keep])
    names, renamed = clean_names(features.columns)
    if renamed:
        notes.append(f"Column names that were cut, cleaned or made unique: {renamed:,}.")
    features = features[keep].reset_index(drop=True).set_axis(names, axis=1)
    if features.shape[1] == 0:
        raise ValueError("there are no features: the file holds no column besides the named ones")
    return Table(
        name=clean_text(name),
        features=features,
        labels=codes,
        classes=classes,
        ids=_as_ids(ids, keep),
        group=None if group is None else _as_text(group)[keep],
        time=None if time is None else _as_text(time)[keep],
        test=test,
        planted=None if planted is None else np.asarray(planted, dtype=bool)[keep],
        image_shape=image_shape or shape,
        notes=tuple(notes),
    )


def _check_column(raw: RawTable, role: str, column: str, path: Any) -> None:
    names = list(raw.frame.columns)
    if column in raw.repeated:
        raise ValueError(f"the {role} column {shorten(column)} appears more than once in {path}: give it one name")
    if column not in names:
        hint = suggest(column, names) or f" It has {', '.join(shorten(name, 30) for name in names[:10])}"
        raise ValueError(f"{path} has no column {shorten(column)} for the {role}.{hint}")


def _test_features(path: str | os.PathLike[str], used: set[str], features: pd.DataFrame) -> pd.DataFrame:
    raw = read_file(path, list(used))
    missing = [name for name in features.columns if name not in raw.frame.columns]
    if missing:
        raise ValueError(f"the test file {path} lacks {len(missing):,} columns, among them {shorten(missing[0])}")
    names, _ = clean_names(features.columns)
    return raw.frame[list(features.columns)].set_axis(names, axis=1)


def _as_frame(X: Any) -> tuple[pd.DataFrame, tuple[int, ...] | None]:
    if isinstance(X, pd.DataFrame):
        return X, None
    if hasattr(X, "detach"):
        X = X.detach().cpu().numpy()
    array = np.asarray(X)
    if array.ndim in (3, 4):
        shape = array.shape[1:]
        return pd.DataFrame(array.reshape(len(array), -1)).add_prefix("pixel_"), shape
    if array.ndim != 2:
        raise ValueError(f"X must have shape (n, p), (n, h, w) or (n, h, w, c), got {array.shape}")
    if array.dtype.kind == "c":
        raise TypeError("X must hold real numbers or text, got complex numbers")
    return pd.DataFrame(array).add_prefix("x"), None


def _as_column(name: str, values: Any) -> pd.Series:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if not isinstance(values, pd.Series):
        values = np.asarray(values)
        if values.ndim != 1:
            raise ValueError(f"{name} must have shape (n,), got {values.shape}")
        values = pd.Series(values, dtype=object if values.dtype.kind in "OSU" else None)  # text may be invalid Unicode
    return values.reset_index(drop=True)


def _as_text(values: Any) -> np.ndarray:
    column = _as_column("values", values)
    missing = is_missing(column)
    text = np.array([clean_text(_label_text(value)) for value in column], dtype=object)
    text[missing] = ""
    return text


def _as_ids(ids: Any, keep: np.ndarray) -> tuple[str | int, ...]:
    values = _as_column("ids", ids)
    missing = is_missing(values)
    return tuple(f"row {i}" if missing[i] else _plain_id(values.iloc[i]) for i in np.flatnonzero(keep))


def _plain_id(value: Hashable) -> str | int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    return clean_text(_label_text(value))


def _encode_labels(labels: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return codes and class names; refuse what is no classification task."""
    n = len(labels)
    if n < MIN_ROWS:
        raise ValueError(f"at least {MIN_ROWS} rows with a label are needed, got {n}")
    codes, uniques = pd.factorize(labels)
    names = [_label_text(value) for value in uniques]
    longest = max(map(len, names))
    if longest > MAX_LABEL_LENGTH:
        raise ValueError(f"a label is {longest:,} characters long (at most {MAX_LABEL_LENGTH:,}): is it free text?")
    numbers = pd.to_numeric(pd.Series(names, dtype=object), errors="coerce").to_numpy(dtype=float)
    _check_classes(n, names, numbers)
    order = sorted(range(len(names)), key=lambda i: (np.isnan(numbers[i]), np.nan_to_num(numbers[i]), names[i]))
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    classes, _ = clean_names([names[i] for i in order], limit=MAX_LABEL_LENGTH)
    return position[codes], tuple(classes)


def _check_classes(n: int, names: list[str], numbers: np.ndarray) -> None:
    k = len(names)
    if k == 1:
        raise ValueError(f"the labels hold one class only ({shorten(names[0])}); at least two are needed")
    numeric = bool(np.isfinite(numbers).all())
    fractional = numeric and bool((numbers % 1 != 0).any())
    if numeric and k > max(20 if fractional else 100, n // 20):
        raise ValueError(
            f"the labels look continuous ({k:,} different numbers in {n:,} rows); regression is not audited: "
            "cut the target into classes first"
        )
    if k > n // 2:
        raise ValueError(f"the labels hold nearly a class per row ({k:,} classes in {n:,} rows): is this an id column?")


def _label_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)
