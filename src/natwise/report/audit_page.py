"""The report of an audit: one page from its results; a template section per question."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from natwise.report import figures
from natwise.report.environment import environment
from natwise.report.svg import inline
from natwise.result import Result

MAX_SENTENCES = 5
THUMBNAIL_PIXELS = 44


def summary(answers: Sequence[Result]) -> tuple[str, ...]:
    """Return the first sentences of the answers, at most five."""
    sentences = [sentence for answer in answers for sentence in answer.params.get("summary", ())]
    return tuple(sentences[:MAX_SENTENCES])


def html(answers: Sequence[Result], combined: Result) -> str:
    """Return the page: summary, a section per answer, how to run it again.

    `answers` are rendered by ``answers/<question>.html.jinja``, where the question is the end of their kind;
    `combined` carries the provenance.
    """
    env = environment()
    return env.get_template("audit.html.jinja").render(
        answers=answers,
        summary=summary(answers),
        record=combined.provenance,
        command=_command(combined.provenance),
        rows=combined.rows,
        draw=_draw,
        thumbnail=_thumbnail,
        count=lambda value: f"{value:,.0f}",
        percent=_percent,
        short=_short,
    )


def _draw(name: str, answer: Result) -> Markup:
    """Return the picture `name` of `figures` for an answer."""
    return Markup(inline(*getattr(figures, name)(answer)))


def _thumbnail(image: np.ndarray, words: str) -> Markup:
    """Return an image (h, w) or (h, w, c) of bytes as an `img` element with its content inside."""
    from matplotlib.image import imsave

    step = max(1, max(image.shape[:2]) // (2 * THUMBNAIL_PIXELS))
    pixels = image[::step, ::step]
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] not in (3, 4) else pixels
    buffer = io.BytesIO()
    imsave(buffer, pixels, cmap="gray", vmin=0, vmax=255, format="png")
    content = base64.b64encode(buffer.getvalue()).decode()
    size = THUMBNAIL_PIXELS
    return Markup('<img class="thumbnail" width="{}" height="{}" alt="{}" src="data:image/png;base64,{}">').format(
        size, size, words, content
    )


def _command(record: Any) -> str:
    """Return the command, or the call, that runs this audit again."""
    seed = record["seed"]
    if not record["arguments"]:
        return f"natwise.audit.run(X, y, minutes={record['minutes']:g}, random_state={seed})"
    options = ["--minutes", f"{record['minutes']:g}", *([] if seed is None else ["--seed", str(seed)])]
    if record.get("target") is not None:
        options += ["--target", f"{record['target']:g}"]
    return shlex.join(["natwise", "audit", *record["arguments"], *options])


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _short(text: object, limit: int = 60) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= limit else words[: limit - 1] + "…"
