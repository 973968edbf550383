"""Re-measure the claims of the card: erasers and heads on embeddings with a shortcut, and the split of known parts.

On the embeddings there is a row per method with `accuracy`, `worst_group_accuracy` and its 95 % interval
`worst_group_low`, `worst_group_high` on the test set. The scale says how many methods are compared in
``no-eraser-wins`` and how many synthetic tables ``split`` draws. Most methods draw nothing at random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import subspace_angles

from natwise.core.io import load_npz
from natwise.datasets import local
from natwise.result import Result
from natwise.shift.spurious_features import (
    INLP,
    LEACE,
    CounterfactualProjection,
    DropDimensions,
    LastLayerRetrainer,
    LinearDisentangler,
    group_metrics,
)
from natwise.study import Found, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGITBIRDS = "embeddings/digitbirds_embeddings.npz"

# Accuracy and worst-group accuracy of an independent implementation on the same embeddings.
REFERENCE = {
    "plain head": (0.68646, 0.24000),
    "plain head, C=0.1": (0.66840, 0.14714),
    "reweighted head, C=0.1": (0.82292, 0.76714),
    "drop 8 of 64": (0.68507, 0.21714),
    "drop 16 of 64": (0.66979, 0.17286),
    "drop 32 of 64": (0.67396, 0.18714),
    "drop 48 of 64": (0.74028, 0.51571),
    "counterfactual 1": (0.75278, 0.41000),
    "counterfactual 2": (0.81181, 0.65857),
    "counterfactual 3": (0.80243, 0.64000),
    "counterfactual 5": (0.79757, 0.64429),
    "counterfactual 10": (0.75972, 0.57714),
    "counterfactual 20": (0.67326, 0.38286),
    "LEACE naive": (0.56979, 0.03714),
    "LEACE balanced": (0.79479, 0.58857),
    "LEACE balanced, C=0.1": (0.77153, 0.52571),
    "INLP 1 naive": (0.71667, 0.31429),
    "INLP 1 balanced": (0.72604, 0.35143),
    "INLP 3 naive": (0.73715, 0.50571),
    "INLP 3 balanced": (0.76042, 0.52714),
    "INLP 5 naive": (0.72708, 0.51286),
    "INLP 5 balanced": (0.76736, 0.58571),
    "INLP 10 naive": (0.70590, 0.37286),
    "INLP 10 balanced": (0.78229, 0.62857),
}
HEADS = ("groupdro head", "dfr head", "afr head", "jtt head")
DISENTANGLED = ("core balanced", "core+other balanced", "core unbalanced", "core+other balanced, reweighted C=0.1")
EVERYTHING = (*REFERENCE, *HEADS, *DISENTANGLED)
N_SPLITS = {"ci": 3, "small": 20}


@dataclass(frozen=True, eq=False)
class Task:
    """Standardised training and test rows with class and attribute, and the counterfactual training rows."""

    train: np.ndarray
    counterfactual: np.ndarray
    test: np.ndarray
    y: np.ndarray
    attribute: np.ndarray
    y_test: np.ndarray
    attribute_test: np.ndarray

    @classmethod
    def digitbirds(cls, data_dir: str | None) -> Task:
        """Load the embeddings."""
        data = load_npz(local.find(DIGITBIRDS, data_dir))
        train = data["z_train"].astype(np.float64)
        mean, scale = train.mean(axis=0), train.std(axis=0)
        rows = [(data[f"z_{name}"] - mean) / scale for name in ("train", "counterfactual_train", "test")]
        return cls(*rows, *(data[name] for name in ("y_train", "c_train", "y_test", "c_test")))

    def measure(self, name: str, seed: int) -> Result:
        """Fit one method on the training rows and return the metrics of its head on the test rows."""
        eraser, head = _method(name, seed)
        train, test = self.train, self.test
        if eraser is not None:
            extra = {"counterfactual": self.counterfactual} if name.startswith(("drop", "counterfactual")) else {}
            eraser.fit(train, self.y, attribute=self.attribute, **extra)
            train, test = eraser.transform(train), eraser.transform(test)
        head.fit(train, self.y, attribute=self.attribute)
        return group_metrics(self.y_test, head.predict(test), self.attribute_test)


def _method(name: str, seed: int) -> tuple[Any, LastLayerRetrainer]:
    """Return the eraser (or None) and the head that a name of the tables stands for."""
    C = 0.1 if "C=0.1" in name else np.inf
    head = LastLayerRetrainer("reweight" if "reweighted" in name else "erm", C=C, random_state=seed)
    words = name.replace(",", "").split()
    balance = "group" if "balanced" in words else None
    if words[0] == "drop":
        return DropDimensions(int(words[1])), head
    if words[0] == "counterfactual":
        return CounterfactualProjection(int(words[1])), head
    if words[0] == "LEACE":
        return LEACE(balance=balance), head
    if words[0] == "INLP":
        return INLP(int(words[1]), balance=balance), head
    if words[0].startswith("core"):
        return LinearDisentangler(keep=words[0], balance=balance, random_state=seed), head
    if name in HEADS:
        head = LastLayerRetrainer(words[0], random_state=seed)
    return None, head


def _compare(names: Iterable[str], setting: Setting) -> dict[str, np.ndarray]:
    task = Task.digitbirds(setting.data_dir)
    found = [task.measure(name, setting.seed) for name in names]
    keys = ("accuracy", "worst_group_accuracy", "worst_group_low", "worst_group_high")
    return {key: np.array([result.scalars[key] for result in found]) for key in keys}


def _reference_table(setting: Setting) -> Found:
    arrays = _compare(REFERENCE, setting)
    measured = np.stack([arrays["accuracy"], arrays["worst_group_accuracy"]], axis=1)
    off = np.abs(measured - np.array(list(REFERENCE.values()))).max(axis=1)
    scalars = {"largest_difference": off.max(), "methods": len(REFERENCE)}
    return Found({**arrays, "difference": off}, scalars, rows=list(REFERENCE))


def _few(names: tuple[str, ...], setting: Setting) -> Found:
    """Compare a few methods; the metric is the worst-group accuracy of the first."""
    arrays = _compare(names, setting)
    worst = arrays["worst_group_accuracy"]
    return Found(arrays, {"worst_group": worst[0], **_named(names, worst)}, rows=names)


def _no_eraser_wins(setting: Setting) -> Found:
    """Compare the reweighted head with the best eraser before an unweighted head, chosen on the test set."""
    names = tuple(EVERYTHING if setting.scale == "small" else REFERENCE)
    arrays = _compare(names, setting)
    worst = dict(zip(names, arrays["worst_group_accuracy"], strict=True))
    reweighted = worst["reweighted head, C=0.1"]
    erasers = {name: value for name, value in worst.items() if "head" not in name and "reweighted" not in name}
    best = max(erasers, key=lambda name: erasers[name])
    scalars = {"margin": reweighted - erasers[best], "best_eraser": erasers[best], "reweighted_head": reweighted}
    return Found(arrays, {**scalars, **_named(worst, worst.values())}, {"best_eraser": best}, names)


def _split(setting: Setting) -> Found:
    """Mix independent core, spurious and other parts linearly and look for them."""
    streams, angles = setting.streams, []
    for number in range(N_SPLITS[setting.scale]):
        rng = streams.numpy(number)
        y, site = rng.integers(2, size=(2, 10000))
        parts = 0.5 * rng.standard_normal((10000, 5))
        parts[:, :2] += np.stack([y, site], axis=1)
        mixing = np.linalg.qr(rng.standard_normal((5, 5)))[0] * rng.uniform(0.5, 2, size=5)
        model = LinearDisentangler(1, 1, random_state=streams.seed(f"model-{number}"))
        model.fit(parts @ mixing.T, y, attribute=site)
        added = model.scale_[:, None] * model.decoder_[:, 1:2]
        read = mixing.T @ (model.encoder_[:1] / model.scale_).T
        truth = mixing[:, 1:2], np.eye(5)[:, :1]
        angles.append([np.degrees(subspace_angles(a, b)[0]) for a, b in zip((added, read), truth, strict=True)])
    found = np.array(angles)
    arrays = {"spurious_angle": found[:, 0], "core_angle": found[:, 1]}
    return Found(arrays, {"largest_angle": found.max(), "mean_angle": found.mean()}, {"tables": len(found)})


def _named(names: Iterable[str], values: Iterable[float]) -> dict[str, float]:
    return {name.replace(",", "").replace(" ", "_"): value for name, value in zip(names, values, strict=True)}


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "reference-table": _reference_table,
    "naive-leace": functools.partial(_few, ("LEACE naive", "plain head")),
    "balanced-leace": functools.partial(_few, ("LEACE balanced", "LEACE naive", "plain head")),
    "axis-aligned": functools.partial(_few, ("drop 32 of 64", "drop 16 of 64", "drop 8 of 64", "plain head")),
    "last-layer": functools.partial(_few, ("reweighted head, C=0.1", "plain head, C=0.1", *HEADS)),
    "disentangler": functools.partial(_few, (*DISENTANGLED, "plain head")),
    "no-eraser-wins": _no_eraser_wins,
    "split": _split,
}
STUDY = Study("shift.spurious_features", MEASUREMENTS)
run = STUDY.run


def figure(claim: str, result: Result) -> Figure:
    """Draw worst-group and overall accuracy per method, or the angles between found and true parts."""
    from matplotlib.figure import Figure

    size = (5.5, 3.2) if claim == "split" else (7, 1.4 + 0.24 * len(result.rows))
    drawing = Figure(figsize=size, layout="constrained")
    (_draw_angles if claim == "split" else _draw_methods)(drawing.subplots(), result)
    return drawing


def _draw_angles(axes: Any, result: Result) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, label in (("spurious_angle", "what the attribute adds"), ("core_angle", "what tells the class")):
        axes.plot(np.arange(1, len(result.arrays[name]) + 1), result.arrays[name], "o", label=label)
    axes.set(xlabel="synthetic table", ylabel="angle to the truth (degrees)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _draw_methods(axes: Any, result: Result) -> None:
    order = np.argsort(result.arrays["worst_group_accuracy"])
    worst, low, high, overall = (
        result.arrays[name][order]
        for name in ("worst_group_accuracy", "worst_group_low", "worst_group_high", "accuracy")
    )
    names, places = [str(result.rows[i]) for i in order], np.arange(len(order))
    is_head = np.array(["head" in name for name in names])
    for kind, color, label in ((is_head, "C1", "head alone"), (~is_head, "C0", "after an eraser")):
        if kind.any():
            axes.barh(places[kind], worst[kind], color=color, alpha=0.7, label=f"worst group, {label}")
    axes.errorbar(worst, places, xerr=[worst - low, high - worst], fmt="none", color="0.3", capsize=2)
    axes.plot(overall, places, "k|", label="all test rows")
    axes.set(xlabel="accuracy (bars with 95 % interval)", xlim=(0, 1), ylim=(-0.7, len(order) - 0.3))
    axes.set_yticks(places, names)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize="small")
