"""Pictures of the study; the first tells the whole result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from natwise.result import Result

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"
PALE_BLUE, PALE_ORANGE = "#cfe4f1", "#f8d9c5"


def draw(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    if claim in ("silent-samples", "constant-gap"):
        return _draw_story(result)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    DRAWINGS[claim](figure.add_subplot(), result)
    return figure


def _draw_story(result: Result) -> Figure:
    figure = Figure(figsize=(9.2, 6.6), layout="constrained")
    axes = figure.subplots(2, 2)
    titles = ("A run: right on all training points", "Another run: wrong on all of them")
    for k, title in enumerate(titles):
        _draw_run(axes[0, k], result.arrays["training_points"][k], result.arrays["losses"][k])
        axes[0, k].set_title(title, fontsize=11)
    _draw_information(axes[1, 0], result.arrays["information"])
    _draw_gaps(axes[1, 1])
    return figure


def _draw_run(axes: Axes, training: np.ndarray, losses: np.ndarray) -> None:
    """Draw all points of {0, 1}^4 as a square: colour is right or wrong, rings are the training points."""
    side = round(len(losses) ** 0.5)
    y, x = np.divmod(np.arange(len(losses)), side)
    for value, pale, dark, name in ((0, PALE_BLUE, BLUE, "right"), (1, PALE_ORANGE, ORANGE, "wrong")):
        chosen = losses == value
        axes.scatter(x[chosen], y[chosen], s=620, marker="s", color=pale, edgecolor="none")
        for i in np.flatnonzero(chosen):
            axes.text(x[i], y[i], name, ha="center", va="center", fontsize=8, color=dark)
    axes.scatter(x[training], y[training], s=620, marker="o", facecolor="none", edgecolor="black", linewidth=1.8)
    train_error, true_error = losses[training].mean(), losses.mean()
    axes.set_xlabel(
        f"the 16 points; rings: training set\ntraining error {train_error:g}, true error {true_error:g}, "
        f"gap {true_error - train_error:+g}"
    )
    axes.set(xlim=(-0.7, side - 0.3), ylim=(-0.7, side - 0.3), xticks=[], yticks=[], aspect="equal")


def _draw_information(axes: Axes, information: np.ndarray) -> None:
    names = ["one\nsample", "two", "three", "all four"]
    bars = axes.bar(names, information, color=[ORANGE, BLUE, BLUE, BLUE], width=0.6)
    axes.bar_label(bars, [f"{value:.2f}" for value in information], padding=2)
    axes.set(ylabel="information with the hypothesis (nats)", ylim=(0, 1.15 * information.max()))
    axes.set_title("One sample tells nothing, two tell something", fontsize=11)


def _draw_gaps(axes: Axes) -> None:
    axes.bar([-0.5, 0.5], [0.5, 0.5], width=0.06, color=BLUE)
    axes.axvline(0, color=ORANGE, lw=2)
    axes.text(0.03, 0.62, "expected gap = 0 =\nwhat single samples bound", color=ORANGE, fontsize=9)
    axes.set(xlabel="gap = true error − training error", ylabel="probability", xlim=(-0.8, 0.8), ylim=(0, 0.8))
    axes.set_title("The gap: never near its mean", fontsize=11)


def _draw_pairs(axes: Axes, result: Result) -> None:
    place = np.arange(len(result.params["cases"]))
    axes.plot(result.arrays["formula"], place, "o", ms=11, mfc="none", mec=ORANGE, label="formula")
    axes.plot(result.arrays["measured"], place, ".", color=BLUE, label="enumerated")
    axes.set_yticks(place, result.params["cases"])
    axes.axvline(result.scalars["log_2"], color=GREY, ls=":", label="log 2, the limit")
    axes.set(xlabel="information of a pair of samples (nats)")
    axes.legend()


def _draw_slack(axes: Axes, result: Result) -> None:
    squared, bound, constructed = (result.arrays[name] for name in ("squared_gap", "pairwise", "constructed"))
    axes.plot(squared[~constructed], bound[~constructed], ".", color=GREY, alpha=0.6, label="random problems")
    axes.plot(squared[constructed], bound[constructed], "o", color=BLUE, label="parities, balanced labellings")
    axes.plot([0, 0.5], [0, 0.5], color=ORANGE, label="bound = squared gap")
    axes.set(xlabel="expected squared gap", ylabel="pair bound, tight constant")
    axes.legend()


def _draw_analogue(axes: Axes, result: Result) -> None:
    names = {
        "squared_gap": "expected\nsquared gap",
        "samplewise_analogue": "single samples\n(no bound)",
        "pairwise_tight": "pairs",
        "full_sample": "all samples",
    }
    values = [result.scalars[name] for name in names]
    bars = axes.bar(list(names.values()), values, color=[GREY, ORANGE, BLUE, BLUE])
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2)
    axes.axhline(values[0], color=GREY, ls=":")
    axes.set(ylabel="squared gap, or what claims to bound it", ylim=(0, 1.1 * max(values)))


def _draw_posterior(axes: Axes, result: Result) -> None:
    names = {
        "probability_private_coin": "mean gap,\nthe learner's coin",
        "probability_private_coin_rms": "r.m.s. gap,\nthe learner's coin",
        "probability": "mean gap,\nthe data's coin",
    }
    bars = axes.bar(list(names.values()), [result.scalars[name] for name in names], color=[GREY, BLUE, BLUE], width=0.5)
    axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.set(ylabel="probability, over training sets, that it is 1/2", ylim=(0, 1.15))


DRAWINGS: dict[str, Callable[[Axes, Result], None]] = {
    "pair-formula": _draw_pairs,
    "pair-bound": _draw_slack,
    "samplewise-analogue": _draw_analogue,
    "posterior-mean": _draw_posterior,
}
