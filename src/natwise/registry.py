"""The methods, read from their cards: `<room>/<method>/card.toml`. Nothing heavy is imported.

A method is one folder. Its card says what it is, what it exports and which claims its study re-measures; `natwise
list`, `show`, `reproduce`, the docs and the tests all read the cards. Methods that are announced but not yet built
stand in `planned.toml`.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCALES = ("ci", "small", "paper")
_ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, and what our measurement of it must satisfy.

    ``metric`` names a scalar of the study's result; ``expect`` is a condition on it such as ``">= 0.95"`` or
    ``"1.286 +- 1e-3"``; ``scale`` holds the scales at which the study can be run and ``minutes`` what each takes
    on two cores (``paper``: on a GPU).
    """

    id: str
    source: str
    metric: str
    expect: str
    published: str
    scale: tuple[str, ...]
    minutes: Mapping[str, float]
    device: str = "cpu"


@dataclass(frozen=True)
class Card:
    """What one method is: read from its `card.toml`, or from `planned.toml` when it is not built yet."""

    key: str
    title: str
    summary: str
    state: str
    paper: Mapping[str, Any]
    exports: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    folder: Path | None = None

    @property
    def room(self) -> str:
        """The user's question that the method belongs to: the part of the key before the dot."""
        return self.key.split(".")[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON types."""
        return {
            "key": self.key,
            "room": self.room,
            "title": self.title,
            "summary": self.summary,
            "state": self.state,
            "paper": dict(self.paper),
            "exports": list(self.exports),
            "extras": list(self.extras),
            "claims": [
                {**vars(claim), "scale": list(claim.scale), "minutes": dict(claim.minutes)}
                for claim in self.claims
            ],
        }


@functools.cache
def cards() -> tuple[Card, ...]:
    """Return the cards of all methods, built ones first, each group in the order of `planned.toml`'s rooms."""
    built = [_read_card(path) for path in sorted(_ROOT.glob("*/*/card.toml"))]
    planned = [
        _planned_card(entry) for entry in _read_toml(_ROOT / "planned.toml").get("method", [])
    ]
    keys = {card.key for card in built}
    return tuple(built + [card for card in planned if card.key not in keys])


def card(key: str) -> Card:
    """Return the card of `room.method`; `ValueError` with near names when there is none."""
    from natwise.core.validation import suggest

    found = {entry.key: entry for entry in cards()}
    if key not in found:
        raise ValueError(f"there is no method {key!r}.{suggest(key, found)} See `natwise list`.")
    return found[key]


def bibtex(entry: Card) -> str:
    """Return the paper's BibTeX entry."""
    return str(entry.paper.get("bibtex", "")).strip()


def _read_card(path: Path) -> Card:
    content = _read_toml(path)
    method, room = path.parent.name, path.parent.parent.name
    try:
        return Card(
            key=f"{room}.{method}",
            title=content["title"],
            summary=content["summary"],
            state="ready",
            paper=content["paper"],
            exports=tuple(content["exports"]),
            extras=tuple(content["extras"]),
            claims=tuple(_read_claim(claim) for claim in content.get("claim", [])),
            folder=path.parent,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a complete card: {error}") from error


def _read_claim(entry: dict[str, Any]) -> Claim:
    scale = entry["scale"]
    minutes = entry["minutes"]
    scale = tuple(scale) if isinstance(scale, list) else (scale,)
    if not isinstance(minutes, dict):
        minutes = dict.fromkeys(scale, minutes)
    return Claim(**{**entry, "scale": scale, "minutes": minutes})


def _planned_card(entry: dict[str, Any]) -> Card:
    paper = {name: entry[name] for name in ("year", "arxiv") if name in entry}
    return Card(entry["key"], entry["title"], entry["summary"], "planned", paper)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
