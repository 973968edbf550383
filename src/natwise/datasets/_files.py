"""Files to data frames: CSV of any separator and encoding, Parquet, NPZ; nothing in them is ever executed."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from natwise.core.io import MAX_ARCHIVE_BYTES, load_npz
from natwise.core.validation import shorten

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
PARQUET_SUFFIXES = (".parquet", ".pq")
MISSING = ("", "NA", "N/A", "n/a", "na", "NaN", "nan", "-nan", "null", "NULL", "None", "none", "?", "#N/A", "<NA>", "-")
_SEPARATORS = (",", ";", "\t", "|")
_FEATURES = ("X", "x", "features", "data", "images", "embeddings", "Z")
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True, eq=False)
class RawTable:
    """A file's columns as read; `repeated` names columns that stand in the file more than once."""

    frame: pd.DataFrame
    image_shape: tuple[int, ...] | None = None
    repeated: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def read_file(path: str | os.PathLike[str], named: Sequence[str | None] = ()) -> RawTable:
    """Read a table file; `named` are columns to keep as text exactly as written (labels, ids).

    Raises OSError when the file cannot be read, ValueError naming it when it is damaged or of an unknown kind.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    kept = [name for name in named if name is not None]
    name = path.name.lower()
    if name.endswith(CSV_SUFFIXES):
        return _read_csv(path, kept)
    if name.endswith(PARQUET_SUFFIXES):
        return _read_parquet(path)
    if name.endswith(".npz"):
        return _read_npz(path, kept)
    raise ValueError(f"{path} must end in {', '.join((*CSV_SUFFIXES[:3], *PARQUET_SUFFIXES, '.npz'))}")


def _read_csv(path: Path, named: list[str]) -> RawTable:
    text, notes = _decode(_content(path))
    if not text.strip():
        raise ValueError(f"{path} is empty")
    separator = _sniff_separator(text[: 2**18])
    try:
        header = pd.read_csv(io.StringIO(text), sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False)
        names = header.iloc[0].tolist()
        repeated = frozenset(name for name, count in Counter(names).items() if count > 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)
            frame = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                index_col=False,
                dtype=dict.fromkeys(named, "object"),
                keep_default_na=False,
                na_values={name: [""] if name in named else list(MISSING) for name in names},
                low_memory=False,
                decimal="," if separator == ";" else ".",
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path} is no readable table: {shorten(str(error).strip(), 200)}") from None
    if repeated:
        notes.append(f"Column names that appear more than once, and now have a number: {len(repeated):,}.")
    return RawTable(frame, repeated=repeated, notes=tuple(notes))


def _content(path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_ARCHIVE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no readable gzip file: {error}") from None
    if len(content) > MAX_ARCHIVE_BYTES:
        raise ValueError(f"{path} unpacks to more than {MAX_ARCHIVE_BYTES:,} bytes")
    return content


def _decode(content: bytes) -> tuple[str, list[str]]:
    """Return the text of a file in UTF-8, UTF-16 with a mark, or Windows-1252, without NUL characters."""
    notes = []
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        notes.append("The file is not valid UTF-8; it was read as Windows-1252.")
    if "\0" in text:
        notes.append(f"NUL characters that were removed: {text.count(chr(0)):,}.")
        text = text.replace("\0", "")
    return text, notes


def _sniff_separator(sample: str) -> str:
    """Return the separator that splits the first records into the most fields of equal number."""

    def agreement(separator: str) -> tuple[float, int]:
        try:
            rows = list(itertools.islice(filter(None, csv.reader(io.StringIO(sample), delimiter=separator)), 50))
        except csv.Error:
            return 0.0, 0
        width = len(rows[0]) if rows else 0
        return (float(np.mean([len(row) == width for row in rows])), width) if width > 1 else (0.0, 0)

    scores = {separator: agreement(separator) for separator in _SEPARATORS}
    return max(scores, key=lambda separator: scores[separator])


def _read_parquet(path: Path) -> RawTable:
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises many kinds for damaged input
        raise ValueError(f"{path} is no readable Parquet file: {shorten(str(error).strip(), 200)}") from None
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    return RawTable(_spread(frame.set_axis([str(name) for name in frame.columns], axis=1)))


def _spread(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with every column of equally long vectors (embeddings) as a column per number."""
    parts = []
    for name, column in frame.items():
        first = column.iloc[0] if len(column) and column.dtype == object else None
        if not isinstance(first, np.ndarray) or first.ndim != 1 or first.dtype.kind not in "biuf" or not len(first):
            parts.append(column.to_frame())
            continue
        try:
            vectors = np.stack(column.to_list()).astype(np.float32)
        except (TypeError, ValueError):  # of different lengths, or missing: left out later
            parts.append(column.to_frame())
            continue
        parts.append(pd.DataFrame(vectors, columns=[f"{name}_{i}" for i in range(len(first))], index=frame.index))
    return pd.concat(parts, axis=1) if parts else frame


def read_vectors(path: str | os.PathLike[str], n_rows: int, of: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a matrix (n_rows, p) from a ``.npy`` file, or from ``.npz`` under a name such as X, as columns."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix.lower() == ".npz":
        arrays = load_npz(path)
        vectors = arrays[_feature_key(path, arrays, [], n_rows)]
    else:
        try:
            vectors = np.load(path, allow_pickle=False)
        except Exception as error:  # numpy raises many kinds for damaged input
            raise ValueError(f"{path} is no readable .npy file: {shorten(str(error).strip(), 200)}") from None
    if vectors.ndim != 2 or vectors.dtype.kind not in "biuf":
        raise ValueError(f"{path} must hold numbers of shape (n, p), got {vectors.dtype} of shape {vectors.shape}")
    if len(vectors) != n_rows:
        raise ValueError(f"{path} holds {len(vectors):,} vectors, but {of} {n_rows:,} rows")
    return pd.DataFrame(vectors).add_prefix("v")


def _read_npz(path: Path, named: list[str]) -> RawTable:
    arrays = load_npz(path)
    label = named[0] if named else None
    n = len(arrays[label]) if label in arrays and arrays[label].ndim else None
    key = _feature_key(path, arrays, named, n)
    X = arrays[key]
    image_shape = X.shape[1:] if X.ndim in (3, 4) else None
    frame = pd.DataFrame(X.reshape(len(X), -1), columns=_feature_names(arrays, X, image_shape))
    extra = {name: arrays[name] for name in named if name in arrays}
    for name, values in extra.items():
        if values.shape != (len(X),):
            raise ValueError(f"{path}: {name} must have shape ({len(X)},) like {key}, got {values.shape}")
    if set(extra) & set(frame.columns):
        frame = frame.add_prefix(f"{key}_")
    frame = pd.concat([frame, pd.DataFrame(extra, index=frame.index)], axis=1)
    known = {key, *named, "feature_names", "names", "columns"}
    unused = [name for name in arrays if name not in known]
    notes = [f"Arrays that were not used: {', '.join(map(shorten, unused[:10]))}."] if unused else []
    return RawTable(frame, image_shape=image_shape, notes=tuple(notes))


def _feature_key(path: Path, arrays: dict[str, np.ndarray], named: list[str], n: int | None) -> str:
    fitting = [
        name
        for name, array in arrays.items()
        if array.ndim in (2, 3, 4) and name not in named and (n is None or len(array) == n)
    ]
    preferred = [name for name in _FEATURES if name in fitting]
    if preferred or len(fitting) == 1:
        return (preferred or fitting)[0]
    problem = "several arrays could be" if fitting else "no array is"
    listed = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:10])
    raise ValueError(f"{path}: {problem} the features; name it X, shape (n, p) or (n, h, w[, c]). It has {listed}")


def _feature_names(arrays: dict[str, np.ndarray], X: np.ndarray, image_shape: Any) -> list[str]:
    width = int(np.prod(X.shape[1:]))
    for key in ("feature_names", "columns", "names"):
        if key in arrays and arrays[key].shape == (width,):
            return [str(name) for name in arrays[key]]
    prefix = "pixel_" if image_shape else "x"
    return [f"{prefix}{i}" for i in range(width)]
