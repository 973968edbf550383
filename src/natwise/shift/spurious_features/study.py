"""Re-measure the claims of the card: erasers and heads on embeddings with a shortcut, and the split of known parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import subspace_angles

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.core.validation import check_option
from natwise.datasets import local
from natwise.result import Result, provenance
from natwise.shift.spurious_features import (
    INLP,
    LEACE,
    CounterfactualProjection,
    DropDimensions,
    LastLayerRetrainer,
    LinearDisentangler,
    group_metrics,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "shift.spurious_features"
DIGITBIRDS = "embeddings/digitbirds_embeddings.npz"
DataDir = str | os.PathLike[str] | None
Measured = tuple[dict[str, np.ndarray], dict[str, float], list[str], dict[str, Any]]

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


def run(claim: str, *, scale: str, seed: int, data_dir: DataDir = None) -> Result:
    """Measure one claim of the card.

    Parameters
    ----------
    claim : str
        Its id on the card.
    scale : {"ci", "small"}
        How many methods are measured beside the claim's own, and how many synthetic tables are drawn.
    seed : int
        Seeds what is random; most methods are not.
    data_dir : path, optional
        Folder of local data. Default: ``$NATWISE_DATA``.

    Returns
    -------
    Result
        The claim's metric and the baselines' as scalars. On the embeddings there is a row per method with `accuracy`,
        `worst_group_accuracy` and its 95 % interval `worst_group_low`, `worst_group_high` on the test set.

    Raises
    ------
    DataNotFoundError
        If the embeddings are not there.
    """
    check_option("claim", claim, list(_CLAIMS))
    check_option("scale", scale, list(N_SPLITS))
    with provenance(seed=seed) as record:
        arrays, scalars, rows, params = _CLAIMS[claim](scale, seed, data_dir)
    params = {"scale": scale, **params}
    return Result(f"{KIND}/{claim}", arrays=arrays, scalars=scalars, rows=rows, params=params, provenance=record)


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
    def digitbirds(cls, data_dir: DataDir) -> Task:
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


def _compare(names: Iterable[str], seed: int, data_dir: DataDir) -> tuple[dict[str, np.ndarray], list[str]]:
    task, names = Task.digitbirds(data_dir), list(names)
    found = [task.measure(name, seed) for name in names]
    keys = ("accuracy", "worst_group_accuracy", "worst_group_low", "worst_group_high")
    return {key: np.array([result.scalars[key] for result in found]) for key in keys}, names


def _reference_table(scale: str, seed: int, data_dir: DataDir) -> Measured:
    arrays, names = _compare(REFERENCE, seed, data_dir)
    measured = np.stack([arrays["accuracy"], arrays["worst_group_accuracy"]], axis=1)
    off = np.abs(measured - np.array([REFERENCE[name] for name in names])).max(axis=1)
    arrays["difference"] = off
    return arrays, {"largest_difference": float(off.max()), "methods": len(names)}, names, {}


def _of(names: tuple[str, ...], metric: str) -> Callable[[str, int, DataDir], Measured]:
    """Return a study of a few methods; its metric is the worst-group accuracy of the first."""

    def study(scale: str, seed: int, data_dir: DataDir) -> Measured:
        arrays, rows = _compare(names, seed, data_dir)
        scalars = {_key(name): float(value) for name, value in zip(rows, arrays["worst_group_accuracy"], strict=True)}
        return arrays, {metric: float(arrays["worst_group_accuracy"][0]), **scalars}, rows, {}

    return study


def _no_eraser_wins(scale: str, seed: int, data_dir: DataDir) -> Measured:
    """Compare the reweighted head with the best eraser before an unweighted head, chosen on the test set."""
    arrays, names = _compare(EVERYTHING if scale == "small" else REFERENCE, seed, data_dir)
    worst = dict(zip(names, arrays["worst_group_accuracy"], strict=True))
    reweighted = worst["reweighted head, C=0.1"]
    erasers = {name: value for name, value in worst.items() if "head" not in name and "reweighted" not in name}
    best = max(erasers, key=lambda name: erasers[name])
    scalars = {"margin": float(reweighted - erasers[best]), "best_eraser": float(erasers[best])}
    scalars |= {"reweighted_head": float(reweighted)} | {_key(name): float(value) for name, value in worst.items()}
    return arrays, scalars, names, {"best_eraser": best}


def _split(scale: str, seed: int, data_dir: DataDir) -> Measured:
    """Mix independent core, spurious and other parts linearly and look for them."""
    streams, angles = Streams(seed), []
    for number in range(N_SPLITS[scale]):
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
    scalars = {"largest_angle": float(found.max()), "mean_angle": float(found.mean())}
    return {"spurious_angle": found[:, 0], "core_angle": found[:, 1]}, scalars, [], {"tables": len(found)}


def _key(name: str) -> str:
    return name.replace(", ", " ").replace(" ", "_")


_CLAIMS: dict[str, Callable[[str, int, DataDir], Measured]] = {
    "reference-table": _reference_table,
    "naive-leace": _of(("LEACE naive", "plain head"), "worst_group"),
    "balanced-leace": _of(("LEACE balanced", "LEACE naive", "plain head"), "worst_group"),
    "axis-aligned": _of(("drop 32 of 64", "drop 16 of 64", "drop 8 of 64", "plain head"), "worst_group"),
    "last-layer": _of(("reweighted head, C=0.1", "plain head, C=0.1", *HEADS), "worst_group"),
    "disentangler": _of((*DISENTANGLED, "plain head"), "worst_group"),
    "no-eraser-wins": _no_eraser_wins,
    "split": _split,
}


def figure(claim: str, result: Result) -> Figure:
    """Draw worst-group and overall accuracy per method, or the angles between found and true parts."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if claim == "split":
        drawing = Figure(figsize=(5.5, 3.2), layout="constrained")
        axes = drawing.subplots()
        for name, label in (("spurious_angle", "what the attribute adds"), ("core_angle", "what tells the class")):
            axes.plot(np.arange(1, len(result.arrays[name]) + 1), result.arrays[name], "o", label=label)
        axes.axhline(5, color="0.6", linestyle=":")
        axes.set(xlabel="synthetic table", ylabel="angle to the truth (degrees)", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return drawing
    order = np.argsort(result.arrays["worst_group_accuracy"])
    worst, low, high, overall = (
        result.arrays[name][order]
        for name in ("worst_group_accuracy", "worst_group_low", "worst_group_high", "accuracy")
    )
    drawing = Figure(figsize=(7, 1.4 + 0.24 * len(order)), layout="constrained")
    axes, places = drawing.subplots(), np.arange(len(order))
    colors = ["C1" if "head" in result.rows[i] else "C0" for i in order]
    axes.barh(places, worst, color=colors, alpha=0.7)
    axes.errorbar(worst, places, xerr=[worst - low, high - worst], fmt="none", color="0.3", capsize=2)
    axes.plot(overall, places, "k|", label="all test rows")
    axes.barh([0], [0], color="C1", alpha=0.7, label="worst group, head alone")
    axes.barh([0], [0], color="C0", alpha=0.7, label="worst group, after an eraser")
    axes.set(xlabel="accuracy (bars with 95 % interval)", xlim=(0, 1), ylim=(-0.7, len(order) - 0.3))
    axes.set_yticks(places, [str(result.rows[i]) for i in order])
    axes.legend(loc="lower right", fontsize="small")
    return drawing
