"""Files under ``$NATWISE_DATA``: real data that natwise may use but does not ship."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from natwise.core.validation import check_path

ENVIRONMENT_VARIABLE = "NATWISE_DATA"
_recorded: ContextVar[dict[str, str] | None] = ContextVar("natwise_local_files", default=None)


class DataNotFoundError(FileNotFoundError):
    """A study or test needs a local data file that is not here; the message names it."""


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of a local data file such as ``"tabular/big5_first1000.npz"``.

    Parameters
    ----------
    name : str
        Path relative to the data folder.
    data_dir : path, optional
        The data folder. Default: the environment variable ``NATWISE_DATA``.

    Raises
    ------
    DataNotFoundError
        If no folder is given, or the file is not in it; the message names the file.
    TypeError
        If `data_dir` is no path.
    """
    if data_dir is not None:
        check_path("data_dir", data_dir)
    folder = data_dir or os.environ.get(ENVIRONMENT_VARIABLE)
    if not folder:
        raise DataNotFoundError(f"{name} is needed: set {ENVIRONMENT_VARIABLE} to the folder that holds it")
    path = Path(folder) / name
    if not path.is_file():
        raise DataNotFoundError(f"{name} is needed but is not in {folder}")
    if (recorded := _recorded.get()) is not None and name not in recorded:
        recorded[name] = digest(path)
    return path


@contextmanager
def recording() -> Iterator[dict[str, str]]:
    """Collect the files that `find` hands out inside the block: name -> SHA-256 of the content."""
    found: dict[str, str] = {}
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


def digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
