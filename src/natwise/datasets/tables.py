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

from natwise.core.validation import check_option, check_same_length, shorten, suggest, to_array
from natwise.datasets._files import RawTable, read_file, read_vectors
from natwise.datasets._labels import TASKS, encode_labels, label_text
from natwise.datasets._text import clean_names, clean_text, is_missing
from natwise.datasets.images import read_image_folder


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
        Numbers in numeric order, other labels in alphabetical order. For regression, up to ten ranges of the target
        with about as many rows each.
    ids : tuple of str or int
        The user's own name of each row; without an id column the row number in the file, from 0.
    group, time : ndarray of str, shape (n,), optional
        Site and date of each row.
    test : DataFrame, optional
        Features of a second file, to be checked for overlap.
    planted : ndarray of bool, shape (n,), optional
        Which labels are known to be wrong.
    target : ndarray of float64, shape (n,), optional
        For regression: the number to predict.
    texts : ndarray of str, shape (n,), optional
        What each row says, shown beside it; not a feature.
    image_shape : tuple of int, optional
        Height, width and channels, when the columns are the pixels of an image in row-major order.
    image_files : tuple of str
        The file of each row's image, when images came from a folder.
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
    target: np.ndarray | None = None
    texts: np.ndarray | None = None
    image_shape: tuple[int, ...] | None = None
    image_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, rows={len(self)}, columns={self.features.shape[1]}, classes={len(self.classes)})"


def load_table(
    path: str | os.PathLike[str],
    label: str | None = None,
    *,
    group: str | None = None,
    id: str | None = None,
    time: str | None = None,
    text: str | None = None,
    vectors: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    task: str = "auto",
) -> Table:
    """Read a labelled table from a CSV, Parquet or NPZ file, or from a folder of images.

    Parameters
    ----------
    path : path
        ``.csv``, ``.tsv`` or ``.txt`` (also ``.gz``), ``.parquet`` or ``.pq``, or ``.npz``. Separator and encoding of
        text files are found out. An NPZ file holds features ``X`` of shape (n, p) or images (n, h, w[, c]), and
        one array of length n per named column. A folder holds a sub-folder of images per class.
    label : str
        The column (NPZ: the array) with the labels. Rows without a label are left out, and `Table.notes` says so.
        A folder of images has none.
    group, id, time : str, optional
        Columns with the site, the name and the date of each row; they are not used as features.
    text : str, optional
        The column with what each row says, shown beside suspicious rows and not used as a feature.
    vectors : path, optional
        A ``.npy`` file, or ``.npz`` with an array ``X``, of shape (n, p): the features of the rows (embeddings, say)
        instead of the file's columns.
    test : path, optional
        A second file (or folder) of the same kind, whose rows are checked for overlap.
    task : {"auto", "classification", "regression"}
        What the labels are; auto takes many different numbers for regression.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If the file is damaged, a named column is missing, or the labels cannot be audited: fewer than 20 rows, one
        class, a class per row, no features.
    """
    start = clock.perf_counter()
    named = {"label": label, "group": group, "id": id, "time": time, "text": text}
    given = {**named, "vectors": vectors, "test": test, "task": None if task == "auto" else task}
    if Path(path).is_dir():
        table = _load_images(path, {role: value for role, value in given.items() if value is not None})
    elif label is None:
        raise ValueError("--label is needed: the name of the column with the labels")
    else:
        table = _load_file(path, {role: column for role, column in named.items() if column is not None}, given)
    options = [(f"--{role}", os.fspath(value)) for role, value in given.items() if value is not None]
    arguments = [os.fspath(path), *(part for option in options for part in option)]
    return dataclasses.replace(table, arguments=tuple(arguments), seconds=clock.perf_counter() - start)


def _load_file(path: str | os.PathLike[str], named: dict[str, str], given: dict[str, Any]) -> Table:
    raw = read_file(path, list(named.values()))
    for role, column in named.items():
        _check_column(raw, role, column, path)
    used = set(named.values())
    columns = {role: raw.frame[column] for role, column in named.items()}
    features, image_shape = raw.frame.drop(columns=list(used)), raw.image_shape
    vectors, test = given["vectors"], given["test"]
    if vectors is not None:
        if test is not None:
            raise ValueError("--vectors and --test cannot be given together: the test file has no vectors")
        features, image_shape = read_vectors(vectors, len(features), path), None
    return make_table(
        features,
        columns["label"],
        group=columns.get("group"),
        ids=columns.get("id"),
        time=columns.get("time"),
        texts=columns.get("text"),
        test=None if test is None else _test_features(test, used, features),
        name=Path(path).name,
        image_shape=image_shape,
        notes=raw.notes,
        task=given["task"] or "auto",
    )


def _load_images(path: str | os.PathLike[str], given: dict[str, Any]) -> Table:
    unknown = [f"--{role}" for role in given if role != "test"]
    if unknown:
        raise ValueError(f"{path} is a folder of images, one sub-folder per class; leave out {' and '.join(unknown)}")
    images = read_image_folder(path)
    features, shape = _as_frame(images.pixels)
    test = None
    if "test" in given:
        test = _as_frame(read_image_folder(given["test"], shape=images.pixels.shape[1:]).pixels)[0]
    table = make_table(
        features,
        images.labels,
        ids=images.ids,
        test=test,
        name=Path(path).absolute().name,
        image_shape=shape,
        notes=images.notes,
        task="classification",
    )
    return dataclasses.replace(table, image_files=images.files)


def make_table(
    X: Any,
    y: Any,
    *,
    ids: Any = None,
    group: Any = None,
    time: Any = None,
    test: pd.DataFrame | None = None,
    planted: np.ndarray | None = None,
    texts: Any = None,
    name: str = "data",
    image_shape: tuple[int, ...] | None = None,
    notes: Sequence[str] = (),
    task: str = "auto",
) -> Table:
    """Check features and labels and make a `Table` of them.

    Parameters
    ----------
    X : DataFrame or array-like of shape (n, p), or images of shape (n, h, w) or (n, h, w, c)
        Features; missing values, text and dates are allowed.
    y : array-like of shape (n,)
        Labels: text, numbers or booleans.
    ids, group, time, texts : array-like of shape (n,), optional
        Name, site and date of each row, and what it says.
    task : {"auto", "classification", "regression"}
        What the labels are; auto takes many different numbers for regression.

    The other parameters are those of `Table`. Raises ValueError or TypeError as `load_table`.
    """
    check_option("task", task, TASKS)
    features, shape = _as_frame(X)
    labels = _as_column("y", y)
    check_same_length(X=features, y=labels, ids=ids, group=group, time=time, planted=planted, texts=texts)
    if ids is None:
        ids = features.index if isinstance(X, pd.DataFrame) else range(len(features))
    keep = ~is_missing(labels)
    notes = list(notes)
    if not keep.all():
        notes.append(f"Rows without a label were left out: {int((~keep).sum()):,}.")
    codes, classes, target = encode_labels(labels[keep], task)
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
        group=None if group is None else _as_text("group", group)[keep],
        time=None if time is None else _as_text("time", time)[keep],
        test=test,
        planted=None if planted is None else np.asarray(planted, dtype=bool)[keep],
        target=target,
        texts=None if texts is None else _as_text("texts", texts)[keep],
        image_shape=image_shape or shape,
        notes=tuple(notes),
    )


def _check_column(raw: RawTable, role: str, column: str, path: Any) -> None:
    names = list(raw.frame.columns)
    if column in raw.repeated:
        raise ValueError(f"the {role} column {shorten(column)} appears more than once in {path}: give it one name")
    if column not in names:
        alike = [name for name in names if name.strip().casefold() == column.strip().casefold()]
        hint = suggest(alike[0] if alike else column, names)
        hint = hint or " ".join([f" It has {', '.join(shorten(name, 30) for name in names[:10])}.", *raw.notes])
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
    array = to_array("X", X)
    if array.ndim == 0:
        raise TypeError(f"X must be a data frame or a dense array, got {type(X).__name__}")
    if array.ndim in (3, 4):
        shape = array.shape[1:]
        return pd.DataFrame(array.reshape(len(array), -1)).add_prefix("pixel_"), shape
    if array.ndim != 2:
        raise ValueError(f"X must have shape (n, p), (n, h, w) or (n, h, w, c), got {array.shape}")
    if array.dtype.kind == "c":
        raise TypeError("X must hold real numbers or text, got complex numbers")
    return pd.DataFrame(array).add_prefix("x"), None


def _as_column(name: str, values: Any) -> pd.Series:
    if not isinstance(values, pd.Series):
        values = to_array(name, values)
        if values.ndim != 1:
            raise ValueError(f"{name} must have shape (n,), got {values.shape}")
        values = pd.Series(values, dtype=object if values.dtype.kind in "OSU" else None)  # text may be invalid Unicode
    return values.reset_index(drop=True)


def _as_text(name: str, values: Any) -> np.ndarray:
    column = _as_column(name, values)
    missing = is_missing(column)
    text = np.array([clean_text(label_text(value)) for value in column], dtype=object)
    text[missing] = ""
    return text


def _as_ids(ids: Any, keep: np.ndarray) -> tuple[str | int, ...]:
    values = _as_column("ids", ids)
    missing = is_missing(values)
    return tuple(f"row {i}" if missing[i] else _plain_id(values.iloc[i]) for i in np.flatnonzero(keep))


def _plain_id(value: Hashable) -> str | int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    return clean_text(label_text(value))
