"""The gallery of re-measured claims: `RESULTS.md` and `index.html` from plain entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from natwise.report.svg import svg as svg

_COLUMNS = (
    ("method", "key"),
    ("claim", "claim"),
    ("source", "source"),
    ("published", "published"),
    ("measured", "measured"),
    ("expected", "expect"),
    ("verdict", "verdict"),
    ("scale", "scale"),
    ("seconds", "seconds"),
    ("commit", "commit"),
    ("machine", "machine"),
)


def markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of claims as Markdown, a row per claim.

    `entries` are mappings with the keys of `_COLUMNS` and ``reason``.
    """
    lines = [
        "# Claims, re-measured",
        "",
        "Written by `natwise reproduce`; every number is a measurement of this installation.",
        "",
        "| " + " | ".join(title for title, _ in _COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
    ]
    for entry in entries:
        cells = {**entry, "verdict": entry["verdict"] + (f": {entry['reason']}" if entry["reason"] else "")}
        lines.append("| " + " | ".join(_cell(cells[name]) for _, name in _COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def html(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the gallery page: a card per claim with paper, numbers and picture, no script and no network."""
    from natwise.report.environment import environment

    return environment().get_template("gallery.html.jinja").render(entries=entries, columns=_COLUMNS)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
