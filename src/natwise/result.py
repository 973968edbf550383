"""`Result`: the one result type of natwise, and its file.

A result file is a safetensors file whose JSON header carries everything that is not an array, and a SHA-256
over every byte of the file. Loading never runs code, never allocates more than the file holds, and refuses a
file in which a single bit has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import numbers
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
MAX_HEADER_BYTES = 64 * 2**20
_PREFIX = b'{"__metadata__":{"natwise":"{\\"digest\\": \\"'
_NO_DIGEST = b"0" * 64
_DIGEST = slice(8 + len(_PREFIX), 8 + len(_PREFIX) + len(_NO_DIGEST))


@dataclass(frozen=True, eq=False)
class Result:
    """What a method found: arrays, numbers, and how they came about.

    Parameters
    ----------
    kind : str
        What was computed, such as ``"samples.unique_information"``.
    arrays : mapping of str to ndarray
        Numeric or boolean arrays of any shape; they are copied. An array whose first axis has ``len(rows)``
        entries is a per-row array.
    scalars : mapping of str to float
        Single numbers; NaN and infinity are kept.
    rows : sequence of str or int
        The name of each row of the per-row arrays (the user's ids); empty when nothing is per row.
    params : mapping
        The settings that produced the result: JSON-like values (text, numbers, booleans, None, lists, dicts).
    provenance : mapping
        Seed, versions, device, seconds, commit, data fingerprint: see `provenance`.
    warnings : sequence of str
        What the reader must know before using the numbers.

    Raises
    ------
    TypeError
        If an array is not numeric, or a setting is not JSON-like; the message names the entry.

    Examples
    --------
    >>> result = Result("demo", arrays={"score": [0.5, 0.1]}, scalars={"mean": 0.3}, rows=["a", "b"])
    >>> result.to_frame()
       score
    a    0.5
    b    0.1
    >>> result[:1].rows
    ('a',)
    """

    kind: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    rows: Sequence[str | int] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not self.kind:
            raise TypeError(f"kind must be a non-empty str, got {self.kind!r}")
        canonical = {
            "arrays": {_array_name(k): _frozen_array(f"arrays[{k!r}]", v) for k, v in self.arrays.items()},
            "scalars": {str(k): _scalar(f"scalars[{k!r}]", v) for k, v in self.scalars.items()},
            "rows": tuple(_plain(f"rows[{i}]", row) for i, row in enumerate(self.rows)),
            "params": _plain("params", dict(self.params)),
            "provenance": _plain("provenance", dict(self.provenance)),
            "warnings": tuple(str(w) for w in self.warnings),
        }
        for name, value in canonical.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        same_header = json.dumps(self._header()) == json.dumps(other._header())  # NaN equals NaN
        return same_header and all(
            self.arrays[name].dtype == other.arrays[name].dtype
            and self.arrays[name].shape == other.arrays[name].shape
            and self.arrays[name].tobytes() == other.arrays[name].tobytes()
            for name in self.arrays
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {array.shape}" for name, array in self.arrays.items())
        scalars = ", ".join(f"{name}={value:.6g}" for name, value in self.scalars.items())
        return f"Result({self.kind!r}, arrays=[{arrays}], scalars=[{scalars}], rows={len(self.rows)})"

    def __getitem__(self, index: slice | np.ndarray | Sequence[int]) -> Result:
        """Return the result with only the chosen rows: a slice, a boolean mask or a list of positions."""
        if not isinstance(index, slice):
            index = np.asarray(index)
        rows = np.empty(len(self.rows), dtype=object)
        rows[:] = self.rows
        arrays = {name: array[index] if self._is_per_row(array) else array for name, array in self.arrays.items()}
        return dataclasses.replace(self, arrays=arrays, rows=rows[index].tolist())

    def to_frame(self) -> pd.DataFrame:
        """Return the per-row arrays as a data frame indexed by `rows`, or the scalars as one row without rows.

        An array of shape (n, k) gives the columns name_0 … name_k-1.
        """
        import pandas as pd

        if not self.rows:
            return pd.DataFrame([dict(self.scalars)], index=[self.kind])
        columns: dict[str, np.ndarray] = {}
        for name, array in self.arrays.items():
            if not self._is_per_row(array):
                continue
            flat = array.reshape(len(self.rows), -1)
            names = [name] if array.ndim == 1 else [f"{name}_{i}" for i in range(flat.shape[1])]
            columns.update(zip(names, flat.T, strict=True))
        return pd.DataFrame(columns, index=list(self.rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to one safetensors file, whole or not at all.

        Raises `ValueError` when what is not an array would exceed the header limit of 64 MiB.
        """
        from safetensors.numpy import save

        from natwise.core.io import atomic_path

        text = json.dumps({"digest": _NO_DIGEST.decode(), **self._header()})
        if len(text) > MAX_HEADER_BYTES // 2:  # quotes double in the file
            raise ValueError(f"rows and params of {self.kind} exceed {MAX_HEADER_BYTES // 2:,} bytes")
        content = memoryview(save(dict(self.arrays), metadata={"natwise": text}))
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for part in (content[: _DIGEST.start], _digest(content), content[_DIGEST.stop :]):
                file.write(part)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Read a result file.

        Raises
        ------
        OSError
            If the file cannot be opened.
        ValueError
            If it is no natwise result, was truncated or altered, or has another schema; the message names
            the file.
        """
        path = Path(path)
        with path.open("rb") as file:
            try:
                text = _read_text(file, path.stat().st_size)
                file.seek(0)
                return cls._from_bytes(file.read(), text)
            except (ValueError, TypeError, LookupError, RecursionError, AttributeError) as error:
                raise ValueError(f"{path} cannot be read as a natwise result: {error}") from error

    @classmethod
    def _from_bytes(cls, content: bytes, text: str) -> Result:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if content[_DIGEST] != _digest(memoryview(content)):
            raise ValueError("its checksum does not match: the file was altered")
        header = json.loads(text)
        if header.pop("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}, which this version reads")
        try:
            arrays = load(content)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        del header["digest"]
        return cls(arrays={name: arrays[name] for name in header.pop("arrays")}, **header)

    def _header(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "arrays": list(self.arrays),
            "scalars": dict(self.scalars),
            "rows": list(self.rows),
            "params": self.params,
            "provenance": self.provenance,
            "warnings": list(self.warnings),
        }

    def _is_per_row(self, array: np.ndarray) -> bool:
        return bool(self.rows) and array.ndim > 0 and len(array) == len(self.rows)


@contextmanager
def provenance(
    *, seed: int | None = None, device: str = "cpu", data: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Collect how a result came about; `seconds` is filled in when the block ends.

    Parameters
    ----------
    seed : int, optional
        The seed of the run.
    device : str
        Where it ran.
    data : mapping of str to array, optional
        Inputs to fingerprint.

    Yields
    ------
    dict
        ``seed, device, machine, versions, commit, dirty, fingerprint, seconds``.

    Examples
    --------
    >>> with provenance(seed=0) as record:
    ...     total = sum(range(10))
    >>> result = Result("demo", scalars={"total": total}, provenance=record)
    """
    from natwise import _source

    record: dict[str, Any] = {
        "seed": seed,
        "device": str(device),
        "machine": _source.machine(),
        "versions": _source.versions(),
        **_source.commit(),
        "fingerprint": fingerprint(data) if data is not None else None,
    }
    start = time.perf_counter()
    try:
        yield record
    finally:
        record["seconds"] = round(time.perf_counter() - start, 3)


def fingerprint(data: Mapping[str, Any]) -> str:
    """Return a SHA-256 over the names, dtypes, shapes and bytes of the arrays in `data` (any shapes)."""
    digest = hashlib.sha256()
    for name in sorted(data):
        array = np.ascontiguousarray(data[name])
        if array.dtype == object:
            array = array.astype(str)
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def _array_name(name: Any) -> str:
    if name == "__metadata__" or not str(name).isprintable():
        raise ValueError(f"arrays must have printable names other than '__metadata__', got {name!r}")
    return str(name)


def _frozen_array(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must be a boolean, integer or float array of at most 64 bits, got dtype {array.dtype}")
    if array.flags.writeable or not array.dtype.isnative or not array.flags.c_contiguous:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    array.flags.writeable = False
    return array


def _scalar(name: str, value: Any) -> float:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (numbers.Real, np.bool_)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def _plain(name: str, value: Any) -> Any:
    """Return `value` as plain JSON types, or say which entry is not."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 1):
        return [_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    raise TypeError(f"{name} must be text, a number, a boolean, None, a list or a dict, got {type(value).__name__}")


def _read_text(file: BinaryIO, size: int) -> str:
    """Return natwise's part of the header; every length is compared with the file before it is believed."""
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError(f"its header claims {length:,} bytes but the file has {size:,}")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header of {length:,} bytes exceeds the limit of {MAX_HEADER_BYTES:,}")
    content = file.read(length)
    if not content.startswith(_PREFIX):
        raise ValueError("it is no safetensors file, or one that natwise did not write")
    header = json.loads(content)
    text = header.pop("__metadata__")["natwise"]
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if expected != size:
        raise ValueError(f"it should have {expected:,} bytes but has {size:,} (truncated?)")
    return text


def _digest(content: memoryview) -> bytes:
    """Return the SHA-256 of a file's content, in hexadecimal, with zeros in the place of the digest itself."""
    digest = hashlib.sha256(content[: _DIGEST.start])
    digest.update(_NO_DIGEST)
    digest.update(content[_DIGEST.stop :])
    return digest.hexdigest().encode()
