"""The questions of the audit, in the order in which the reader should act on them, and the time each may take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.questions import (
    certificate,
    change_points,
    data_card,
    data_requirements,
    held_out_groups,
    label_issues,
    label_memory,
    latent_factors,
    sample_information,
    shortcuts,
)
from natwise.result import Result

Answer = Callable[[Context, Deadline], Result]

QUESTIONS: dict[str, tuple[str, Answer, float]] = {  # name: title, answer, weight of its share of the time
    "label_issues": ("Suspicious labels", label_issues.answer, 8.0),
    "data_card": ("Data card", data_card.answer, 1.0),
    "sample_information": ("What single rows tell", sample_information.answer, 4.0),
    "change_points": ("Changes over time", change_points.answer, 10.0),
    "shortcuts": ("Groups and shortcuts", shortcuts.answer, 3.0),
    "data_requirements": ("How much more data", data_requirements.answer, 4.0),
    "held_out_groups": ("Groups the model never saw", held_out_groups.answer, 3.0),
    "certificate": ("Generalisation certificate", certificate.answer, 3.0),
    "label_memory": ("What the labels teach", label_memory.answer, 2.0),
    "latent_factors": ("Latent factors of the features", latent_factors.answer, 2.0),
}


def asked(context: Context) -> list[str]:
    """Return the names of the questions that make sense for this table, in order."""
    time, group = context.table.time, context.table.group
    needed = {"change_points": time, "shortcuts": group, "held_out_groups": group}
    return [name for name in QUESTIONS if name not in needed or needed[name] is not None]


def answers(context: Context, deadline: Deadline, *, progress: bool = False) -> Iterator[Result]:
    """Yield one result per question, in order; each may take its share of what is left of the time."""
    from rich.console import Console
    from rich.progress import track

    names = asked(context)
    weights = [QUESTIONS[name][2] for name in names]
    console = Console(stderr=True)
    shown = track(names, "auditing", console=console, disable=not (progress and console.is_terminal))
    for i, name in enumerate(shown):
        result = _respond(name, context, deadline.share(weights[i] / sum(weights[i:])))
        context.answered[name] = result
        yield result


def _respond(name: str, context: Context, deadline: Deadline) -> Result:
    title, respond, _ = QUESTIONS[name]
    start = time.perf_counter()
    allowed = deadline.left()
    try:
        result = respond(context, deadline)
    except Unanswered as reason:
        result = Result(f"audit/{name}", params={"unanswered": str(reason)})
    spent = {"seconds": round(time.perf_counter() - start, 3), "seconds_allowed": round(allowed, 3)}
    params = {"title": title, "model_is_own": context.own is not None, **result.params}
    return dataclasses.replace(result, params=params, provenance={**result.provenance, **spent})


def combine(answered: tuple[Result, ...], ids: tuple[Any, ...], provenance: dict[str, Any]) -> Result:
    """Put all answers into one result: arrays and scalars under ``question/name``, settings under the question."""
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, float] = {}
    for result in answered:
        name = result.kind.removeprefix("audit/")
        arrays |= {f"{name}/{key}": value for key, value in result.arrays.items()}
        scalars |= {f"{name}/{key}": value for key, value in result.scalars.items()}
    return Result(
        "audit",
        arrays=arrays,
        scalars=scalars,
        rows=ids,
        params={result.kind.removeprefix("audit/"): result.params for result in answered},
        provenance=provenance,
        warnings=[f"{result.kind.removeprefix('audit/')}: {text}" for result in answered for text in result.warnings],
    )
