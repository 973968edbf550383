"""The methods, read from their cards: `<room>/<method>/card.toml`. Nothing heavy is imported.

A method is one folder. Its card says what it is, what it exports and which claims its study re-measures; the
commands `list`, `show` and `reproduce`, the docs and the tests all read the cards.
"""

from __future__ import annotations

import functools
import importlib.util
import operator
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOMS = ("structure", "samples", "supervision", "generalization", "shift", "graphs", "timeseries", "lm")
SCALES = ("ci", "small", "paper")
EXTRAS = {"lm": "transformers", "clinical": "polars"}  # an extra, and the package that tells that it is installed
_ROOT = Path(__file__).parent
_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_NUMBER = r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)"


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, and what our measurement of it must satisfy.

    ``metric`` names a scalar of the study's result; ``expect`` is a condition on it such as ``">= 0.95"`` or
    ``"1.286 +- 0.001"``; ``scale`` holds the scales at which the study can be run and ``minutes`` what each
    takes on two cores (``paper``: on a GPU).
    """

    id: str
    source: str
    metric: str
    expect: str
    published: str
    scale: tuple[str, ...]
    minutes: Mapping[str, float]
    device: str = "cpu"

    def holds(self, value: float) -> bool:
        """Say whether the measured `value` satisfies ``expect``; NaN never does."""
        if match := re.fullmatch(rf"(>=|<=|>|<)\s*{_NUMBER}", self.expect.strip()):
            return bool(_COMPARISONS[match[1]](value, float(match[2])))
        if match := re.fullmatch(rf"{_NUMBER}\s*\+-\s*{_NUMBER}", self.expect.strip()):
            return abs(value - float(match[1])) <= float(match[2])
        raise ValueError(f"claim {self.id}: expect must be like '>= 0.95' or '1.3 +- 0.1', got {self.expect!r}")


@dataclass(frozen=True)
class Card:
    """What one method is: its `card.toml`, read."""

    key: str
    title: str
    summary: str
    paper: Mapping[str, Any]
    exports: tuple[str, ...]
    extras: tuple[str, ...]
    claims: tuple[Claim, ...]
    folder: Path

    @property
    def room(self) -> str:
        """The user's question that the method belongs to: the part of the key before the dot."""
        return self.key.split(".")[0]

    @property
    def state(self) -> str:
        """``"ready"``, or the extras that this installation lacks for it, such as ``"needs lm"``."""
        missing = [extra for extra in self.extras if importlib.util.find_spec(EXTRAS[extra]) is None]
        return f"needs {', '.join(missing)}" if missing else "ready"

    @property
    def venue(self) -> str:
        """Where the paper appeared, as its BibTeX entry says."""
        match = re.search(r"(?:booktitle|journal)\s*=\s*\{(.*?)\}", self.paper["bibtex"])
        return match[1] if match else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON types."""
        claims = [vars(claim) for claim in self.claims]
        plain = {**vars(self), "room": self.room, "state": self.state, "claims": claims}
        return {name: value for name, value in plain.items() if name != "folder"}


@functools.cache
def cards() -> tuple[Card, ...]:
    """Return the cards of all methods, room by room."""
    methods = [_read_card(path) for path in _ROOT.glob("*/*/card.toml")]
    return tuple(sorted(methods, key=lambda entry: (ROOMS.index(entry.room), entry.key)))


def card(key: str) -> Card:
    """Return the card of `room.method`; `ValueError` with near names when there is none."""
    from natwise.core.validation import suggest

    found = {entry.key: entry for entry in cards()}
    if key not in found:
        raise ValueError(f"there is no method {key!r}; `natwise list` shows all.{suggest(key, found)}")
    return found[key]


def _read_card(path: Path) -> Card:
    content = _read_toml(path)
    method, room = path.parent.name, path.parent.parent.name
    try:
        return Card(
            key=f"{room}.{method}",
            title=content["title"],
            summary=content["summary"],
            paper=content["paper"],
            exports=tuple(content["exports"]),
            extras=tuple(content["extras"]),
            claims=tuple(_read_claim(claim) for claim in content.get("claim", [])),
            folder=path.parent,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a complete card: {error}") from error


def _read_claim(entry: dict[str, Any]) -> Claim:
    scale, minutes = entry["scale"], entry["minutes"]
    scale = tuple(scale) if isinstance(scale, list) else (scale,)
    if not isinstance(minutes, dict):
        minutes = dict.fromkeys(scale, minutes)
    return Claim(**{**entry, "scale": scale, "minutes": minutes})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
