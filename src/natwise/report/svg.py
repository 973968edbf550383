"""Matplotlib figures as inline SVG: deterministic, described in words, in the colours of the page around them."""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#12a4b6"  # stands for the text colour of the page; no figure uses it for anything else
_SETTINGS = {
    "svg.hashsalt": "natwise",
    "svg.fonttype": "none",
    "text.parse_math": False,  # names from the user's data hold dollar signs
    "axes.formatter.use_mathtext": False,
}


def svg(figure: Figure, *, fonttype: str = "path") -> str:
    """Return a matplotlib figure as an inline SVG element; the same figure gives the same text."""
    buffer = io.StringIO()
    settings: Any = {**_SETTINGS, "svg.fonttype": fonttype}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # browsers have more fonts
        figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def inline(figure: Figure, alternative: str) -> str:
    """Return a figure drawn with `INK` as an SVG element that takes the page's text colour, with alternative text."""
    text = svg(figure, fonttype="none").replace(INK, "currentColor")
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # several figures share a page
    opening, rest = text.split(">", 1)
    opening = re.sub(r' height="[^"]*"', "", opening)
    opening = re.sub(r' width="([^"]*)"', r' style="width: \1"', opening)
    words = escape(alternative)
    return f'{opening} role="img" aria-label="{words}"><title>{words}</title>{rest}'
