"""Files that are written whole or not at all, and archives that are read without running code."""

from __future__ import annotations

import math
import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from natwise.core.validation import shorten

MAX_ARCHIVE_BYTES = 16 * 2**30


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    When the block raises, or the process is killed, `path` keeps its old content (or stays absent). The
    parent folder is made when it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuse, before long work, a folder that cannot be made or written into; nothing is made yet.

    Raises `OSError` naming the folder.
    """
    path = Path(path)
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{path} cannot be a folder: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: there is no permission to write into {nearest}")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8 with the line ends it has."""
    write_bytes(path, content.encode("utf-8", errors="backslashreplace"))


def load_npz(path: str | os.PathLike[str], *, max_bytes: int = MAX_ARCHIVE_BYTES) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file without unpickling.

    Raises `OSError` when the file cannot be read, and `ValueError` naming the file when it is no archive, is
    damaged, holds Python objects, or would unpack to more than `max_bytes`.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_claims(archive, max_bytes)
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # zipfile, zlib and numpy raise many kinds for damaged input
            raise ValueError(f"{path} is no readable .npz file: {error}") from error


def save_torch(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain containers atomically, for `load_torch`.

    Raises `OSError` when it cannot be written.
    """
    import torch

    with atomic_path(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save(content, file)
        except RuntimeError as error:  # torch's name for a full disk
            raise OSError(f"{path} cannot be written: {shorten(error, 200)}") from error


def load_torch(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a dict that `save_torch` wrote, tensors onto the CPU, without unpickling anything but plain data.

    Raises `OSError` when the file cannot be opened, and `ValueError` naming the file when it is damaged, holds other
    objects than tensors and plain containers, or holds no dict.
    """
    import torch

    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:  # torch does not look at the checksums that it wrote
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of {damaged} does not match")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged input
            raise ValueError(f"{path} is no readable file of tensors: {shorten(error, 200)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no readable file of tensors: it holds a {type(content).__name__}, not a dict")
    return content


def _check_claims(archive: zipfile.ZipFile, max_bytes: int) -> None:
    """Refuse what is no array, and what claims more bytes than are allowed or are there, before reading it."""
    if not archive.infolist():
        raise ValueError("it holds no arrays")
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max_bytes:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, more than the limit of {max_bytes:,}")
    for member in archive.infolist():
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} claims shape {shape} but has {member.file_size:,} bytes")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
