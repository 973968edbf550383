"""Pictures of the parts, negative ones included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from natwise.shift.failure_modes._modes import FailureModes

COLORS = ("#3f7fd4", "#d9822b", "#5a9e4b", "#b04a6a")
LABELS = ("under-\nfitting", "insepara-\nbility", "misalign-\nment", "non-\ninvariance")
NAMES = ("underfitting", "inseparability", "misalignment", "non-invariance")
DOMAINS = ("among training\ndomains (d₀)", "with the test\ndomain (d₁)", "within\nclasses (d₂)")


def draw(modes: FailureModes) -> Figure:
    """Return the steps from 0 to the test error, and those of distinguishability where it was measured."""
    from matplotlib.figure import Figure

    both = hasattr(modes, "distinguishability_")
    figure = Figure(figsize=(9.5 if both else 5.4, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if both else 1, squeeze=False, width_ratios=[5, 3.5] if both else [1])[0]
    steps(panels[0], modes.parts_, modes.se_, LABELS, "test error")
    panels[0].axhline(modes.majority_error_, color="0.5", linestyle=":", label="majority class")
    panels[0].set_ylabel(f"{modes.metric.replace('_', ' ')} (share of rows)")
    panels[0].legend(fontsize="small")
    if both:
        steps(panels[1], modes.distinguishability_, modes.distinguishability_se_, DOMAINS, None)
        panels[1].set_ylabel("accuracy of telling domains apart,\nabove chance")
    return figure


def steps(
    axes: Axes, parts: np.ndarray, errors: np.ndarray, labels: Sequence[str], total: str | None, first: float = 0.0
) -> None:
    """Draw each of the parts (p,), with its standard error, as a bar from where the last one ended."""
    ends = first + np.cumsum(parts)
    starts = ends - parts
    places = np.arange(len(parts))
    colors = COLORS[: len(parts)]
    axes.bar(places, parts, bottom=starts, color=colors, width=0.7)
    axes.errorbar(places, ends, yerr=errors, fmt="none", ecolor="black", capsize=4)
    for place, (end, start, part) in enumerate(zip(ends, starts, parts, strict=True)):
        top = max(end + errors[place], start)
        axes.annotate(f"{part:+.3f}", (place, top), (0, 3), textcoords="offset points", ha="center", fontsize="small")
        axes.hlines(end, place - 0.35, place + 1.35 if total or place + 1 < len(parts) else place + 0.35, color="0.3")
    if total:
        axes.bar(len(parts), ends[-1] - first, bottom=first, color="0.6", width=0.7)
        axes.annotate(
            f"{ends[-1]:.3f}", (len(parts), ends[-1]), (0, 3), textcoords="offset points", ha="center", fontsize="small"
        )
    axes.set_xticks(range(len(parts) + bool(total)), [*labels, total] if total else list(labels))
    axes.axhline(first, color="black", linewidth=0.8)
    axes.margins(y=0.15)


def stacked(axes: Axes, x: np.ndarray, parts: np.ndarray) -> None:
    """Draw parts (len(x), 4) as areas: positive ones stacked above zero, negative ones below, their sum as a line."""
    for sign in (1.0, -1.0):
        heights = sign * np.clip(sign * parts, 0, None)
        edges = np.cumsum(np.column_stack([np.zeros(len(x)), heights]), axis=1)
        for i, (color, label) in enumerate(zip(COLORS, NAMES, strict=True)):
            name = label if sign > 0 else None
            axes.fill_between(x, edges[:, i], edges[:, i + 1], color=color, label=name, linewidth=0)
    axes.plot(x, parts.sum(axis=1), color="black", label="test error")
    axes.axhline(0, color="black", linewidth=0.8)
