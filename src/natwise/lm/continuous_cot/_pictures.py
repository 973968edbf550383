"""Pictures of the study's results."""

from __future__ import annotations

from typing import Any

import numpy as np

from natwise.lm.continuous_cot._runs import LENGTH
from natwise.result import Result

COLOURS = {"cot2": "#0072b2", "discrete": "#d55e00", "no_cot": "#555555", "coconut": "#009e73"}
LABELS = {"cot2": "continuous (CoT2)", "discrete": "discrete", "no_cot": "no chain", "coconut": "hidden states"}


def draw_construction(axes: Any, result: Result) -> None:
    """Draw the distributions of one example as an image."""
    sums, alpha = result.arrays["sums"], result.arrays["example"]
    image = axes.imshow(alpha, aspect="auto", cmap="viridis", extent=(sums[0] - 0.5, sums[-1] + 0.5, LENGTH + 0.5, 0.5))
    axes.figure.colorbar(image, ax=axes, label="probability")
    axes.set(
        xlabel="sum",
        ylabel="step",
        yticks=range(1, LENGTH + 1),
        title="digits 5 3 2 4: all signs at once",
        xlim=(-16, 16),
    )


def draw_variance(axes: Any, result: Result) -> None:
    """Draw sampled and exact spread against tokens per thought."""
    k = result.arrays["n_tokens"]
    axes.loglog(k, result.arrays["exact"], "-", color=COLOURS["cot2"], label="exact")
    axes.loglog(k, result.arrays["measured"], "o", color=COLOURS["discrete"], label="sampled")
    axes.loglog(k, result.arrays["exact"][0] / k, ":", color="#555555", label="1 / K")
    axes.set(xlabel="tokens per thought K", ylabel="trace of the covariance", xticks=k, xticklabels=k)
    axes.legend()


def draw_curves(axes: Any, result: Result) -> None:
    """Draw accuracy over training of every method, with the range over seeds."""
    for name, label in LABELS.items():
        if (key := f"accuracy_{name}") in result.arrays:
            curves = result.arrays[key]
            axes.plot(result.arrays["steps"], curves.mean(axis=0), label=label, color=COLOURS[name])
            axes.fill_between(
                result.arrays["steps"], curves.min(axis=0), curves.max(axis=0), alpha=0.2, color=COLOURS[name]
            )
    for k, style in ((1, ":"), (16, "--")) if "pass_at_k" in result.arrays else ():
        value = result.scalars[f"discrete_pass_at_{k}"]
        axes.axhline(value, ls=style, lw=1, color=COLOURS["discrete"], label=f"discrete, one of {k} sampled")
    axes.set(xlabel="training step", ylabel="share of right answers (validation)", ylim=(0, 1.02))
    axes.legend(loc="best")


def draw_budgets(axes: Any, result: Result) -> None:
    """Draw accuracy against the budget of traces."""
    budgets, accuracy = result.arrays["budget"], result.arrays["accuracy"]
    axes.plot(budgets, accuracy.mean(axis=0), "o-", color=COLOURS["cot2"])
    axes.set_xscale("log", base=2)
    axes.set(xlabel="traces in the targets B", ylabel="share of right answers (validation)", ylim=(0, 1.02))
    axes.set_xticks(budgets, labels=[str(b) for b in budgets])


def draw_widths(axes: Any, result: Result) -> None:
    """Draw accuracy over training of every width."""
    styles = ("-", "--", ":")
    for i, width in enumerate(result.arrays["width"]):
        for name, label in LABELS.items():
            if (key := f"accuracy_{name}") in result.arrays:
                curve = result.arrays[key][i].mean(axis=0)
                axes.plot(
                    result.arrays["steps"], curve, styles[i], label=f"{label}, width {width}", color=COLOURS[name]
                )
    axes.set(xlabel="training step", ylabel="share of right answers (validation)", ylim=(0, 1.02))
    axes.legend(loc="lower right")


def draw_grpo(axes: Any, result: Result) -> None:
    """Draw accuracy before and after training by rewards, by decoding."""
    groups = {"before": "before", "control": "fine-tuned on", "grpo_k1": "GRPO, K = 1", "grpo_k3": "GRPO, K = 3"}
    decodings = {
        "greedy": "greedy discrete",
        "mts_k1": "sampled, K = 1",
        "mts_k3": "sampled, K = 3",
        "base": "continuous",
    }
    for j, (name, label) in enumerate(decodings.items()):
        values = [result.scalars[f"{name}_{group}"] for group in groups]
        axes.bar(np.arange(len(groups)) + 0.2 * (j - 1.5), values, 0.2, label=label)
    axes.set_xticks(range(len(groups)), labels=list(groups.values()))
    axes.set(ylabel="share of right answers (validation)", ylim=(0, 1.02), xlabel="training")
    axes.legend(title="decoding", ncols=2, loc="upper left", fontsize=8)
