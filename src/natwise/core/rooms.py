"""Rooms: packages whose names and method folders load on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lazy_loader


def open_room(name: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a room.

    The exported names stand in the stub beside `file`, one line per method; ``room.method`` reaches a method's folder
    without importing it first.
    """
    find, listed, exported = lazy_loader.attach_stub(name, file)
    folders = {path.parent.name for path in Path(file).parent.glob("*/card.toml")}

    def get(attribute: str) -> Any:
        return importlib.import_module(f"{name}.{attribute}") if attribute in folders else find(attribute)

    return get, listed, exported
