"""The report of an audit: one page from its results; a template section per question."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from natwise.report import figures
from natwise.report.environment import environment
from natwise.report.svg import inline
from natwise.result import Result

MAX_SENTENCES = 5
PRIORITY = (  # question, sentence, topic, and the setting that must hold: the first five make the summary
    ("label_issues", 0, "Labels", None),
    ("data_card", 0, "Data", "trouble"),
    ("change_points", 0, "Time", "changes"),
    ("shortcuts", 0, "Groups", None),
    ("data_requirements", 0, "More data", None),
    ("label_issues", 1, "Model", None),
    ("held_out_groups", 0, "New groups", None),
    ("data_card", 0, "Data", None),
    ("certificate", 0, "Trust", None),
    ("change_points", 0, "Time", None),
    ("sample_information", 0, "Rows", None),
    ("label_memory", 0, "Memory", None),
    ("latent_factors", 0, "Columns", None),
)
THUMBNAIL_PIXELS = 72


@dataclass(frozen=True)
class Line:
    """A line of the summary: the name of its question, what it is about, and a sentence."""

    question: str
    topic: str
    sentence: str


def summary(answers: Sequence[Result]) -> tuple[str, ...]:
    """Return the sentences of the executive summary, at most five."""
    return tuple(line.sentence for line in lines(answers))


def lines(answers: Sequence[Result]) -> list[Line]:
    """Return the executive summary: the five answers that matter most to act on, in the order of the page."""
    by_question = {_question(answer): answer.params for answer in answers}
    chosen: dict[tuple[str, int], Line] = {}
    for question, index, topic, condition in PRIORITY:
        params = by_question.get(question, {})
        sentences = params.get("summary", ())
        if index < len(sentences) and (condition is None or params[condition]) and len(chosen) < MAX_SENTENCES:
            chosen.setdefault((question, index), Line(question, topic, sentences[index]))
    order = list(by_question)
    return [chosen[key] for key in sorted(chosen, key=lambda key: (order.index(key[0]), key[1]))]


def html(answers: Sequence[Result], combined: Result) -> str:
    """Return the page: summary, a section per answer, how to run it again.

    `answers` are rendered by ``answers/<question>.html.jinja``, where the question is the end of their kind;
    `combined` carries the provenance.
    """
    env = environment()
    return env.get_template("audit.html.jinja").render(
        answers=answers,
        lines=lines(answers),
        record=combined.provenance,
        command=_command(combined.provenance),
        rows=combined.rows,
        draw=_draw,
        thumbnail=_thumbnail,
        count=lambda value: f"{value:,.0f}",
        percent=_percent,
        short=_short,
    )


def _question(answer: Result) -> str:
    return answer.kind.removeprefix("audit/")


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
    height, width = image.shape[:2]
    scale = THUMBNAIL_PIXELS / max(height, width)
    return Markup('<img class="thumbnail" width="{}" height="{}" alt="{}" src="data:image/png;base64,{}">').format(
        round(scale * width) or 1, round(scale * height) or 1, words, content
    )


def _command(record: Any) -> str:
    """Return the command, or the call, that runs this audit again."""
    seed, target, model = record["seed"], record.get("target"), record.get("model")
    if not record["arguments"]:
        options = [f"minutes={record['minutes']:g}", f"random_state={seed}"]
        options += [] if target is None else [f"target={target:g}"]
        options += [] if model is None else [f"model={model}"]
        return f"natwise.audit.run(X, y, {', '.join(options)})"
    words = ["natwise", "audit", *record["arguments"], "--minutes", f"{record['minutes']:g}"]
    words += [] if seed is None else ["--seed", str(seed)]
    words += [] if target is None else ["--target", f"{target:g}"]
    words += [] if model is None else ["--model", model]
    return shlex.join(words)


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _short(text: object, limit: int = 60) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= limit else words[: limit - 1] + "…"
