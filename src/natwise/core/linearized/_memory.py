"""Say before starting what would not fit into memory."""

from __future__ import annotations

import math
import os


def physical_memory() -> float:
    """Return the bytes of main memory, or infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def check_fits(what: str, n_bytes: float, way_out: str) -> None:
    """Raise `ValueError` with the bytes needed when they exceed the machine's memory."""
    limit = physical_memory()
    if n_bytes > limit:
        raise ValueError(f"{what} needs {n_bytes:,.0f} bytes but this machine has {limit:,.0f}: {way_out}")
