"""The gallery of re-measured claims: `RESULTS.md` and `index.html` from plain entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
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
        summary(entries),
        "",
        "| " + " | ".join(title for title, _ in _COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
    ]
    for entry in entries:
        cells = {**entry, "verdict": entry["verdict"] + (f": {entry['reason']}" if entry["reason"] else "")}
        lines.append("| " + " | ".join(_cell(cells[name]) for _, name in _COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def html(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the gallery page: a table of all claims and a card per method with paper, numbers and pictures.

    `entries` are mappings as `natwise.reproduce` makes them, those of one method next to each other. The page needs
    no script and no network: its filters are radio buttons that style sheets read.
    """
    from natwise.report.environment import environment

    template = environment().get_template("gallery.html.jinja")
    return template.render(
        entries=entries,
        methods=[list(group) for _, group in groupby(entries, key=lambda entry: entry["key"])],
        rooms=list(dict.fromkeys(str(entry["key"]).split(".")[0] for entry in entries)),
        verdicts=list(dict.fromkeys(str(entry["verdict"]) for entry in entries)),
        summary=summary(entries),
        columns=_COLUMNS,
    )


def summary(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return one sentence: how many claims of how many methods, and how many of each verdict."""
    methods = len({entry["key"] for entry in entries})
    verdicts = Counter(str(entry["verdict"]) for entry in entries)
    counts = [f"{count} {'hold' if verdict == 'holds' else verdict}" for verdict, count in verdicts.most_common()]
    return f"Claims: {len(entries)}, of methods: {methods}. {', '.join(counts) or 'Nothing measured yet'}."


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
