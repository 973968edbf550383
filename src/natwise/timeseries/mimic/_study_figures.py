"""Figures of the study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from natwise.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _compared(axes: Axes, result: Result) -> None:
    tasks = result.params.get("tasks", ["series, lists and counters"])
    n = result.arrays["compared_by_task"] if "compared_by_task" in result.arrays else [result.scalars["compared"]]
    wrong = result.arrays["wrong_by_task"] if "wrong_by_task" in result.arrays else [result.scalars["mismatches"]]
    names = [task.replace("_", " ") for task in tasks]
    equal = [a - b for a, b in zip(n, wrong, strict=True)]
    axes.barh(names, equal, height=0.5, color="tab:blue", label="equal")
    axes.barh(names, wrong, height=0.5, left=equal, color="tab:red", label="different")
    axes.set_ylim(-0.7, len(names) + 0.4)
    axes.set_xlabel("compared with the published code's")
    axes.legend(loc="upper right", ncols=2)


def _speed(axes: Axes, result: Result) -> None:
    names = ["published code\n(100 patients)", "natwise\n(60 patients, samples too)"]
    _bars(axes, names, [result.scalars["original_cpu_seconds"], result.scalars["cpu_seconds"]], "CPU seconds")


def _areas(axes: Axes, result: Result) -> None:
    parts = ("train", "val", "test")
    for offset, suffix, label in ((-0.2, "_published_code", "published code"), (0.2, "", "natwise")):
        values = [result.scalars[f"{part}{suffix}"] for part in parts]
        bars = axes.bar([i + offset for i in range(3)], values, width=0.38, label=label)
        axes.bar_label(bars, fmt="%.3f")
    axes.set_xticks(range(3), ["training", "validation", "test"])
    axes.set_ylim(0.5, 1.1)
    axes.set_ylabel("AUROC of logistic regression")
    axes.legend(loc="upper right", ncols=2)


def _epochs(axes: Axes, result: Result) -> None:
    names = ["a pass per\nhourly sample", "a pass per stay\n(deep supervision)"]
    _bars(axes, names, result.arrays["seconds"].tolist(), "CPU seconds per epoch")


def _scores(axes: Axes, result: Result) -> None:
    axes.plot([0, 1], [0, 1], color="lightgrey", zorder=0)
    axes.scatter(result.arrays["scores_per_sample"], result.arrays["scores_one_pass"], s=6)
    highest = float(result.arrays["scores_one_pass"].max())
    axes.set_xlim(0, 1.05 * highest)
    axes.set_ylim(0, 1.05 * highest)
    axes.set_xlabel("probability, each hour by itself")
    axes.set_ylabel("probability, one pass per stay")


def _bars(axes: Axes, names: list[str], values: list[float], label: str) -> None:
    bars = axes.bar(names, values, width=0.5)
    axes.bar_label(bars, fmt="%.2f")
    axes.set_ylabel(label)
    axes.margins(y=0.12)


DRAWINGS = {
    "published-fixtures": _compared,
    "original-pipeline": _compared,
    "build-speed": _speed,
    "logistic-regression": _areas,
    "deep-supervision": _epochs,
    "deep-supervision-auroc": _scores,
}


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.0, 3.6), layout="constrained")
    DRAWINGS[claim](drawing.subplots(), result)
    return drawing
