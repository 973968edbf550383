"""Figures of the study."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from natwise.result import Result

BOUNDS = (
    ("fcmi", "f-CMI"),
    ("ld_cmi", "loss difference"),
    ("hellinger", "Hellinger"),
    ("kl", "binary KL"),
    ("fast_rate", "fast rate"),
    ("interpolation", "interpolation"),
)
COLOURS = ("#3f7fd4", "#6b4fa3", "#8c6d31", "#d9822b", "#2a9d5c", "#b8325a")


def draw(claim: str, result: Result) -> Figure:
    """Return the figure of a claim."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    if claim in ("over-n", "mnist-over-n"):
        _bounds_over_n(figure.add_subplot(), result)
    elif claim == "plug-in-bias":
        _bias(figure, result)
    elif claim == "sgld":
        _langevin(figure, result)
    else:
        _bars(figure.add_subplot(), result)
    return figure


def _bars(axes: Axes, result: Result) -> None:
    """Show gap, bounds, and what each bound reads at zero information."""
    s = result.scalars
    shown = [(name, label) for name, label in BOUNDS if name in s]
    on_gap = {name: s[name] - (s["train_error"] if name in ("kl", "interpolation") else 0.0) for name, _ in shown}
    place = np.arange(len(shown))
    axes.bar(place, list(on_gap.values()), width=0.6, color=COLOURS[0], label="bound on the gap")
    marked = [i for i, (name, _) in enumerate(shown) if name != "kl"]  # shuffling changes the training error in it
    null = [s[f"{shown[i][0]}_null"] for i in marked]
    axes.scatter(place[marked], null, color="black", marker="_", s=300, zorder=3, label="with shuffled splits")
    axes.axhline(s["gap"], color=COLOURS[3], linewidth=2, label=f"measured gap {s['gap']:.3f}")
    axes.axhline(s["published_fcmi"], color="grey", linestyle=":", label=f"published f-CMI {s['published_fcmi']:.3f}")
    axes.set_xticks(place, [label for _, label in shown], rotation=20)
    axes.set(ylabel="test error less training error", title=f"MNIST 4 against 9, n = {result.params['n']}")
    axes.set_ylim(0, 1.35 * max(s["published_fcmi"], *on_gap.values()))
    axes.legend(frameon=False, ncols=2)


def _bounds_over_n(axes: Axes, result: Result) -> None:
    a = result.arrays
    for (name, label), colour in zip(BOUNDS, COLOURS, strict=True):
        on_test = name in ("kl", "interpolation")
        if name == "interpolation" and a["train_error"].max() > 0:
            continue
        style = "--" if name == "ld_cmi" else "-"  # often the same as f-CMI
        on_gap = a[name] - on_test * a["train_error"]
        axes.plot(a["n"], on_gap, style, color=colour, marker="o", markersize=4, label=label)
    axes.plot(a["n"], a["null"], color="grey", linestyle=":", label="f-CMI, shuffled splits")
    axes.plot(a["n"], a["gap"], color="black", linewidth=2, label="measured gap")
    for name, colour, label in (("fcmi", COLOURS[0], "f-CMI"), ("gap", "black", "gap")):
        if f"published_{name}" in a:
            axes.plot(a["n"], a[f"published_{name}"], "x", color=colour, markersize=8, label=f"{label}, published")
    axes.set(xscale="log", yscale="log", xlabel="training samples n", ylabel="gap, and bounds on it")
    axes.set_xticks(a["n"], [f"{n:d}" for n in a["n"]])
    axes.minorticks_off()
    limits = axes.get_ylim()
    axes.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"])
    axes.set_ylim(limits[0], 1.6 * limits[1])  # room for the legend
    axes.set_title("MNIST 4 against 9" if "published_fcmi" in a else "A perceptron on ten digits")
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _bias(figure: Figure, result: Result) -> None:
    names = {
        "plugin": "plug-in (guarantee)",
        "miller_madow": "Miller-Madow (estimate)",
        "permutation": "permutation (estimate)",
    }
    left = None
    for i, n_classes in enumerate((2, 10)):
        axes = left = figure.add_subplot(1, 2, i + 1, sharey=left)
        for (name, label), colour in zip(names.items(), (COLOURS[0], COLOURS[3], COLOURS[4]), strict=True):
            axes.plot(
                result.arrays["n_splits"], result.arrays[f"{name}_{n_classes}"], color=colour, marker="o", label=label
            )
        axes.axhline(0, color="black", linewidth=1)
        axes.set(xscale="log", xlabel="runs (splits)", title=f"{n_classes} classes, no information")
    figure.axes[0].set_ylabel("f-CMI bound read; the truth is 0")
    figure.axes[0].legend(frameon=False)


def _langevin(figure: Figure, result: Result) -> None:
    left = None
    for i, (noise, title) in enumerate(
        (("right", "noise of variance 2 lr / beta"), ("original", "the original's noise"))
    ):
        axes = left = figure.add_subplot(1, 2, i + 1, sharey=left)
        labels = {
            "negrea": "Negrea et al.",
            "fcmi": "f-CMI",
            "null": "f-CMI, shuffled splits",
            "tightest": "tightest successor",
        }
        for (name, label), colour in zip(labels.items(), (COLOURS[3], COLOURS[0], "grey", COLOURS[4]), strict=True):
            axes.plot(result.arrays["epochs"], result.arrays[f"{name}_{noise}"], color=colour, marker="o", label=label)
        axes.plot(
            result.arrays["epochs"],
            result.arrays[f"test_error_{noise}"],
            color="grey",
            linestyle="--",
            label="test error",
        )
        axes.plot(
            result.arrays["epochs"], result.arrays[f"gap_{noise}"], color="black", linewidth=2, label="measured gap"
        )
        axes.set(xlabel="epochs", title=title)
    figure.axes[0].set_ylabel("gap, and bounds on it")
    figure.axes[1].legend(frameon=False, fontsize=8)
