"""The pictures of the audit, one function per picture: a `Result` in, a figure and its description out."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from natwise.report.svg import INK
from natwise.result import Result

ACCENT = "#3f7fd4"
SECOND = "#d9822b"
THIRD = "#8a63b8"
MAX_COLUMNS = 60


def precision_by_cut(answer: Result) -> tuple[Figure, str]:
    """Return expected precision against the number of rows reviewed, with its 90 % interval."""
    cuts = answer.arrays["cuts"]
    precision, low, high = answer.arrays["precision"]
    figure, axes = _axes(6.4, 3.0)
    axes.fill_between(cuts, low, high, color=ACCENT, alpha=0.25, linewidth=0)
    axes.plot(cuts, precision, color=ACCENT, label="expected wrong, 90 % band")
    if "precision_known" in answer.arrays:
        axes.plot(cuts, answer.arrays["precision_known"], color=SECOND, linestyle="--", label="known wrong (planted)")
    axes.plot(cuts, answer.arrays["recall"], color=INK, linestyle=":", label="found of all wrong")
    axes.set(xscale="log", ylim=(-0.02, 1.05), xlabel="rows reviewed, most suspicious first", ylabel="share")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, labelcolor=INK, fontsize=9)
    middle = len(cuts) // 2
    words = (
        f"Expected share of wrong labels among the rows reviewed, most suspicious first: {precision[0]:.0%} of the "
        f"first {cuts[0]:,}, {precision[middle]:.0%} of the first {cuts[middle]:,}, {precision[-1]:.0%} of the first "
        f"{cuts[-1]:,}."
    )
    return figure, words


def factor_heat_map(answer: Result) -> tuple[Figure, str]:
    """Return the mutual information of columns and factors: pixel maps for images, else a heat map."""
    if answer.params["image_shape"]:
        return _pixel_maps(answer)
    information = answer.arrays["mutual_information"]
    names = answer.params["names"]
    strongest = np.sort(np.argsort(-information.max(axis=0), kind="stable")[:MAX_COLUMNS])
    order = [i for i in answer.arrays["order"] if i in set(strongest.tolist())]
    m = len(information)
    figure, axes = _axes(1.8 + 0.32 * m, 0.8 + 0.19 * len(order))
    largest = information.max() or 1.0
    axes.imshow(_tinted(information[:, order].T / largest), aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(order)), [_short(names[i]) for i in order], fontsize=8)
    axes.set_xticks(range(m), [str(j + 1) for j in range(m)], fontsize=8)
    axes.set_xlabel("factor")
    axes.set_title(f"darkest: {largest:.2f} nats", fontsize=9, color=INK)
    words = f"Mutual information between {len(order)} columns and {m} factors; each column leans mostly on one factor."
    return figure, words


def held_out_by_factors(answer: Result) -> tuple[Figure, str]:
    """Return the held-out log-likelihood for every number of factors that was tried."""
    candidates, scores = answer.arrays["candidates"], answer.arrays["held_out_log_likelihood"]
    chosen = int(answer.scalars["factors"])
    figure, axes = _axes(4.2, 2.2)
    axes.plot(candidates, scores, color=ACCENT, marker="o", markersize=4)
    axes.plot([chosen], scores[candidates == chosen], color=SECOND, marker="o", markersize=9, fillstyle="none")
    axes.set(xlabel="number of factors", ylabel="nats per row")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, f"Log-likelihood of held-out rows by number of factors; the best is at {chosen}."


def learning_curve(answer: Result) -> tuple[Figure, str]:
    """Return measured errors against the number of training rows, and their forecast with its 90 % band."""
    a, now = answer.arrays, answer.params["rows"]
    figure, axes = _axes(6.4, 3.0)
    axes.fill_between(a["grid"], a["low"], a["high"], color=ACCENT, alpha=0.25, linewidth=0)
    axes.plot(a["grid"], a["forecast"], color=ACCENT, label="forecast, 90 % band")
    axes.plot(a["n"], a["errors"], color=INK, linestyle="", marker="o", markersize=3, label="measured")
    axes.axvline(now, color=INK, linestyle=":", linewidth=1, label="rows there are")
    axes.axhline(answer.scalars["goal_error"], color=SECOND, linestyle="--", linewidth=1, label="goal")
    axes.set(xscale="log", yscale="log", xlabel="training rows", ylabel="error on unseen rows")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, labelcolor=INK, fontsize=9)
    words = (
        f"Error by number of training rows: {a['errors'][a['n'] == a['n'].min()].mean():.1%} at {a['n'].min():,}, "
        f"{a['errors'][a['n'] == a['n'].max()].mean():.1%} at {a['n'].max():,}; forecast "
        f"{answer.scalars['error_doubled']:.1%} at twice the rows there are."
    )
    return figure, words


def changes_over_time(answer: Result) -> tuple[Figure, str]:
    """Return the change score of each step in time, and how far chance goes there."""
    scores, limit = answer.arrays["scores"], answer.arrays["limit"]
    starts = [_short(start, 20) for start in answer.params["starts"][1:]]
    steps = np.arange(len(scores))
    figure, axes = _axes(6.4, 2.8)
    axes.bar(steps, limit, width=0.8, color=INK, alpha=0.15, linewidth=0, label="chance")
    axes.hlines(answer.arrays["typical"], steps - 0.4, steps + 0.4, color=INK, linewidth=1, label="usual chance")
    axes.plot(steps, scores, color=ACCENT, marker="o", markersize=5, label="these rows")
    above = [change["step"] for change in answer.params["changes"]]
    if above:
        axes.plot(above, scores[above], color=SECOND, linestyle="", marker="o", markersize=8, label="change")
    axes.set(ylim=(0, None), xlim=(-0.6, len(steps) - 0.4), ylabel="change score", xlabel="start of the period")
    axes.set_xticks(steps, starts, rotation=30, ha="right")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, labelcolor=INK, fontsize=9)
    words = f"Change score of {len(scores)} steps in time; the largest, {scores.max():.2f}, is at "
    return figure, f"{words}{starts[scores.argmax()]}, where chance goes up to {limit[scores.argmax()]:.2f}."


def complexity_against_shuffles(answer: Result) -> tuple[Figure, str]:
    """Return the complexity of the given labels beside that of shuffled ones, and with the review's corrections."""
    shuffled, given = answer.arrays["shuffled_complexity"], answer.scalars["complexity"]
    rows = {"shuffled": (shuffled, INK), "as given": (np.array([given]), ACCENT)}
    if "reviewed_complexity" in answer.scalars:
        rows["after the review"] = (np.array([answer.scalars["reviewed_complexity"]]), SECOND)
    figure, axes = _axes(5.4, 0.35 + 0.32 * len(rows))
    for place, (values, colour) in enumerate(rows.values()):
        axes.plot(values, np.full(len(values), -place), linestyle="", marker="o", markersize=6, alpha=0.7, color=colour)
    axes.set_yticks([-place for place in range(len(rows))], list(rows))
    axes.set(xlim=(0, 1.08 * max(shuffled.max(), given)), ylim=(0.6 - len(rows), 0.6), xlabel="supervision complexity")
    return (
        figure,
        f"Complexity of the labels as given: {given:.3g}; of shuffled ones: {shuffled.mean():.3g} on average.",
    )


def certificate_bars(answer: Result) -> tuple[Figure, str]:
    """Return the bounds on the generalisation gap as bars, with the measured gap and the reading at no information."""
    s = answer.scalars
    names = {"fcmi": "f-CMI", "ld_cmi": "loss difference", "kl": "binary KL", "fast_rate": "fast rate"}
    names["tightest"] = f"tightest: {answer.params['tightest']}"
    figure, axes = _axes(6.4, 1.8)
    values, spread = [s[name] for name in names], [s[f"{name}_se"] for name in names]
    axes.barh(list(names.values()), values, xerr=spread, ecolor=INK, color=ACCENT, height=0.6)
    axes.axvline(s["gap"], color=SECOND, linewidth=2, label="measured gap")
    axes.plot([s["null_95"]] * 2, [-0.4, 0.4], color=INK, linewidth=2, label="f-CMI, shuffled splits")
    axes.set(xlabel="error on new rows less error on training rows")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=INK, fontsize=9)
    words = f"Measured gap {s['gap']:.1%}; bounds: " + ", ".join(f"{names[n]} {s[n]:.1%}" for n in names) + "."
    return figure, words


def information_by_group(answer: Result) -> tuple[Figure, str]:
    """Return the mean information of each group's rows over that of all, with two standard errors."""
    a = answer.arrays
    shown = np.sort(np.argsort(-a["group_count"], kind="stable")[:20])
    names = [f"{_short(answer.params['group_names'][g])} ({a['group_count'][g]:,.0f})" for g in shown]
    ratio, places = a["group_ratio"][shown], np.arange(len(shown))[::-1]
    unit = answer.scalars["mean_functional_information"] or 1.0
    spread = 2 * np.nan_to_num(a["group_standard_error"][shown]) / unit
    figure, axes = _axes(5.4, 0.5 + 0.24 * len(shown))
    axes.axvline(1.0, color=INK, linewidth=1, linestyle=":")
    axes.errorbar(
        ratio, places, xerr=np.stack([np.minimum(spread, ratio), spread]), color=ACCENT, fmt="o", markersize=5
    )
    axes.set_yticks(places, names)
    axes.set(xlim=(0, None), ylim=(-0.6, len(shown) - 0.4), xlabel="times the average information of a row")
    words = "Information of a row by group, over the average: " + ", ".join(
        f"{name} {value:.2f}" for name, value in zip(names, ratio, strict=True)
    )
    return figure, f"{words}."


def causes_by_group(answer: Result) -> tuple[Figure, str]:
    """Return the four causes of each held-out group's error as bars that stand on one another, and their sum."""
    causes = ("not learned at home", "harder to tell apart there", "another rule there", "wrong rule at home")
    colours = (INK, ACCENT, SECOND, THIRD)
    parts, names = answer.arrays["parts"], [_short(name) for name in answer.params["names"]]
    places = np.arange(len(names))[::-1]
    figure, axes = _axes(6.0, 0.8 + 0.34 * len(names))
    for sign in (1, -1):
        left = np.zeros(len(names))
        for cause, colour, values in zip(causes, colours, parts.T, strict=True):
            width = np.where(sign * values > 0, values, 0.0)
            label = cause if sign == 1 else None
            axes.barh(places, width, left=left, height=0.6, color=colour, alpha=0.8, label=label)
            left = left + width
    error = answer.arrays["held_out_error"]
    axes.plot(error, places, linestyle="", marker="o", markersize=8, fillstyle="none", color=INK)
    axes.axvline(0.0, color=INK, linewidth=1)
    axes.set_yticks(places, names)
    axes.set(xlabel="share of the group's rows", ylim=(-0.6, len(names) - 0.4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=INK, fontsize=9)
    words = "Error on each group when held out: " + ", ".join(
        f"{name} {value:.1%}" for name, value in zip(names, error, strict=True)
    )
    return figure, f"{words}."


def given_and_predicted(answer: Result) -> tuple[Figure, str]:
    """Return numeric labels against their predictions for at most 2000 rows, the most suspicious ones ringed."""
    target, predicted = answer.arrays["target"], answer.arrays["suggested_value"]
    some = np.linspace(0, len(target) - 1, min(len(target), 2000)).astype(int)
    top = answer.arrays["most_suspicious"]
    figure, axes = _axes(5.0, 3.6)
    axes.plot(target[some], predicted[some], linestyle="", marker=".", markersize=4, alpha=0.4, color=ACCENT)
    axes.plot(target[top], predicted[top], linestyle="", marker="o", markersize=7, fillstyle="none", color=SECOND)
    ends = [predicted.min(), predicted.max()]
    axes.plot(ends, ends, color=INK, linewidth=1)
    axes.set(xlabel="given label", ylabel="predicted from the other rows")
    words = (
        f"Given against predicted labels of {len(some):,} rows; they correlate with "
        f"{np.corrcoef(target, predicted)[0, 1]:.2f}. The {len(top)} most suspicious rows are ringed."
    )
    return figure, words


def _pixel_maps(answer: Result) -> tuple[Figure, str]:
    information = answer.arrays["mutual_information"]
    height, width, *channels = answer.params["image_shape"]
    n_pixels = height * width * int(np.prod(channels, dtype=int))
    m = len(information)
    columns = min(m, 5)
    rows = -(-m // columns)
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(1.25 * columns, 1.45 * rows))
        for j in range(m):
            axes = figure.add_subplot(rows, columns, j + 1)
            pixels = np.zeros(n_pixels)
            pixels[answer.params["image_columns"]] = information[j] / (information[j].max() or 1.0)
            pixels = pixels.reshape(height, width, -1).max(axis=2)
            axes.imshow(_tinted(pixels), interpolation="nearest")
            axes.set_title(f"{j + 1}: {answer.arrays['total_correlations'][j]:.2f} nats", fontsize=8, color=INK)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=INK, alpha=0.4)
    return figure, f"For each of {m} factors, the pixels that share information with it; the darkest shares most."


def accuracy_by_group(answer: Result) -> tuple[Figure, str]:
    """Return the accuracy of the audit's model in its worst groups, with intervals, and of both linear models."""
    a, shown = answer.arrays, answer.params["worst"][:12]
    names = [answer.params["cells"][cell] for cell in shown]
    figure, axes = _axes(6.0, 0.8 + 0.28 * len(shown))
    places, model = np.arange(len(shown))[::-1], a["model_accuracy"][shown]
    ends = [model - a["model_low"][shown], a["model_high"][shown] - model]
    axes.errorbar(model, places, xerr=ends, color=INK, fmt="o", markersize=5, label="default model, 95 % interval")
    axes.plot(a["plain_accuracy"][shown], places, color=SECOND, linestyle="", marker="|", markersize=11, label="linear")
    axes.plot(
        a["reweighted_accuracy"][shown], places, color=ACCENT, linestyle="", marker="D", label="linear, reweighted"
    )
    axes.set_yticks(
        places, [f"{_short(name)} ({count:,.0f})" for name, count in zip(names, a["model_count"][shown], strict=True)]
    )
    axes.set(xlabel="share of rows predicted right", xlim=(-0.02, 1.02), ylim=(-0.6, len(shown) - 0.4))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, labelcolor=INK, fontsize=9)
    words = "Accuracy of the default model by label and group, lowest first: " + ", ".join(
        f"{_short(name)} {value:.0%}" for name, value in zip(names, model, strict=True)
    )
    return figure, f"{words}."


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return axes in the ink of the page, without a box."""
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))  # labels stand outside; saving takes them in
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(colors=INK, which="both", labelsize=9)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
    return figure, axes


def _tinted(share: np.ndarray) -> np.ndarray:
    """Return values in [0, 1] as one colour of growing opacity, which reads on light and dark pages."""
    image = np.empty((*share.shape, 4))
    image[..., :3] = to_rgb(ACCENT)
    image[..., 3] = np.clip(share, 0.0, 1.0)
    return image


def _short(name: str, limit: int = 32) -> str:
    text = " ".join(str(name).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
