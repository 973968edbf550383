"""natwise: what a model learns from its data, in nats.

The rooms (`natwise.structure`, `natwise.samples`, …) are named by the question they answer and load on first use;
importing natwise itself imports neither NumPy nor torch.
"""

import importlib
from typing import Any

_MODULES = (
    "audit",
    "core",
    "datasets",
    "registry",
    "report",
    "reproduce",
    "result",
    "testing",
    "structure",
    "samples",
    "supervision",
    "generalization",
    "shift",
    "graphs",
    "timeseries",
    "lm",
)

__all__ = ["Result", "__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("natwise")
    if name == "Result":
        from natwise.result import Result

        return Result
    if name in _MODULES:
        return importlib.import_module(f"natwise.{name}")
    raise AttributeError(f"module 'natwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
