"""The figures of the study."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from natwise.result import Result

BLUE, ORANGE, GREY = "#1f5fa8", "#d1660a", "#777777"


def _log_axes(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log", xlabel="training samples", ylabel="error rate")
    _plain_ticks(axes.xaxis, axes.yaxis)
    axes.legend(frameon=False)


def _plain_ticks(*axes: Axis) -> None:
    """Write 0.2 instead of 2 x 10^-1."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _draw_recovery(axes: Axes, result: Result) -> None:
    a = result.arrays
    axes.plot(a["n"], a["errors"], "o", color=GREY, label="exact curve")
    axes.plot(a["n"], a["piecewise"], color=BLUE, label="piecewise power law")
    axes.plot(a["n"], a["power_law"], "--", color=ORANGE, label="power law from the few-shot points")
    _log_axes(axes)


def _draw_band(axes: Axes, result: Result) -> None:
    a = result.arrays
    axes.fill_between(a["test_n"], a["low"], a["high"], color=BLUE, alpha=0.2, lw=0, label="95 % band")
    axes.plot(a["test_n"], a["mean"], color=BLUE, label="piecewise power law")
    axes.plot(a["test_n"], a["truth"], "--", color=ORANGE, label="truth")
    axes.plot(a["n"], a["errors"], ".", color=GREY, label="measured")
    axes.set_title(f"one of many: the bands hold the truth in {result.scalars['coverage']:.1%}", fontsize=10)
    _log_axes(axes)


def _draw_collected(axes: Axes, result: Result) -> None:
    names = list(result.arrays)
    axes.boxplot([result.arrays[name] for name in names], orientation="horizontal", showfliers=False)
    axes.set_yticks(range(1, len(names) + 1), [name.replace("_", " ") for name in names])
    axes.axvline(1, color=ORANGE, lw=1)
    axes.set(xscale="log", xlabel="data asked for or collected / data needed")
    _plain_ticks(axes.xaxis)


def _draw_families(axes: Axes, result: Result) -> None:
    names, ratio = result.params["families"], result.arrays["family_ratio"]
    axes.barh(names, ratio, color=BLUE)
    axes.axvline(1, color=ORANGE, lw=1)
    axes.set(xlabel="mean error of the forecast / that of the power law", ylabel="family left out of the bank")


def _draw_fine_tuning(axes: Axes, result: Result) -> None:
    a = result.arrays
    for kind, label, marker in (("pretr_ft", "pretrained", "o"), ("no_pretr_ft", "from scratch", "s")):
        axes.plot(a[f"{kind}_n"], a[f"{kind}_errors"], marker, color=GREY, label=f"measured, {label}")
        axes.plot(a[f"{kind}_n"], a[f"{kind}_meta"], color=BLUE, label=None if marker == "s" else "learned curvature")
        axes.plot(
            a[f"{kind}_n"], a[f"{kind}_power_law"], "--", color=ORANGE, label=None if marker == "s" else "power law"
        )
    _log_axes(axes)
    axes.axvline(100, color=GREY, lw=0.8, ls=":")
    axes.set(xlabel="training images per class (forecast right of the line)")


def _draw_allocation(axes: Axes, result: Result) -> None:
    labels = ["before", "uniform", "as before", "by curves"]
    errors = result.arrays["errors"]
    spread = errors.std(axis=0) / np.sqrt(len(errors))
    axes.bar(labels, errors.mean(axis=0), yerr=spread, color=[GREY, ORANGE, ORANGE, BLUE], capsize=4)
    axes.set(ylabel="mean error rate over the groups", xlabel=f"how {result.params['budget']} samples were divided")


DRAWINGS: dict[str, Callable[[Axes, Result], None]] = {
    "exact-recovery": _draw_recovery,
    "band-coverage": _draw_band,
    "collected-data": _draw_collected,
    "unseen-families": _draw_families,
    "fine-tuning": _draw_fine_tuning,
    "allocation": _draw_allocation,
}


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    drawing = Figure(figsize=(6.4, 4.0), layout="constrained")
    DRAWINGS[claim](drawing.subplots(), result)
    return drawing
