"""Re-measure the claims on in-context learners: what balanced queries, group tokens and permutation each do.

Every measurement finds, for every learner and baseline, the accuracy on queries and in the worst group, also after
exchanging labels (``_flipped``: labels and attributes; ``_relabelled``: labels alone), and the learners' losses. The
scale is the size of the model, the length of its training and of its contexts; ``paper`` is meant for a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from natwise.core.io import load_npz
from natwise.datasets import local
from natwise.result import Result
from natwise.shift.in_context import (
    CategoryPairSampler,
    SingleTaskSampler,
    SpuriousInContextLearner,
    SpuriousVectorSampler,
    SyntheticSampler,
    context_baseline,
    flip_labels,
    in_context_metrics,
)
from natwise.shift.in_context._baselines import METHODS
from natwise.shift.in_context._tasks import Sampler
from natwise.study import Found, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGITBIRDS, OMNIGLOT = "embeddings/digitbirds_embeddings.npz", "images/omniglot_small1_28.npz"

# What differs between learners. Naive: queries from the context, which hold the shortcut, and no group tokens.
NAIVE: dict[str, Any] = {"queries": "context", "permute": False}
GROUPS: dict[str, Any] = {**NAIVE, "group_tokens": True}
BALANCED: dict[str, Any] = {"permute": False}
BOTH: dict[str, Any] = {"permute": False, "group_tokens": True}
PERMUTED: dict[str, Any] = {"permute": True, "group_tokens": True}
EXCHANGED: dict[str, Any] = {**BOTH, "exchange_labels": True}
SYNTHETIC = {"naive": NAIVE, "groups": GROUPS, "balanced": BALANCED, "both": BOTH}
SINGLE = {"naive": NAIVE, "permuted": PERMUTED, "exchanged": EXCHANGED}
PAIRS = {"naive": NAIVE, "both": BOTH}

N_TEST_TASKS = 1000
SMALL_MODEL = {"n_layer": 2, "d_model": 32, "n_head": 4, "construction": "compact", "batch_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "ci": {**SMALL_MODEL, "n_steps": 300, "learning_rate": 8e-3, "warmup_steps": 40},
    "small": {**SMALL_MODEL, "n_steps": 1000, "learning_rate": 5e-3, "warmup_steps": 100},
    "paper": {
        "n_layer": 6,
        "d_model": 256,
        "n_head": 8,
        "construction": "annotated",
        "batch_size": 256,
        "n_steps": 20_000,
        "learning_rate": 3e-4,
        "warmup_steps": 1000,
        "mixed_precision": "bf16",
    },
}


@functools.lru_cache(maxsize=1)  # three claims read the same learners
def _synthetic(setting: Setting) -> Found:
    """Train four learners on Gaussian tasks, and test them on the same new ones, drawn with balanced queries."""
    sampler = SyntheticSampler(n_context=16, device=setting.device)
    found = _compare(SYNTHETIC, sampler, sampler, setting, "synthetic")
    metrics = {
        "worst_group_gain": _worst(found, "both") - _worst(found, "naive", "groups", "balanced"),
        "gain_over_baselines": _worst(found, "both") - _worst(found, *METHODS),
        "change_by_flip": abs(found.scalars["both_flipped_accuracy"] - found.scalars["both_accuracy"]),
    }
    return found._replace(scalars={**found.scalars, **metrics})


@functools.lru_cache(maxsize=1)  # two claims read the same learners
def _single(setting: Setting) -> Found:
    """Train on one Gaussian task of 16 features: one true and one spurious direction, the same in all contexts."""
    rng = setting.streams.child("single-task").numpy("task")
    task = SyntheticSampler(16, n_context=4000, minority=0.5)(1, rng)
    X, y, attribute = (task[name][0] for name in ("X", "y", "attribute"))
    half = len(X) // 2
    sampler, test = (
        SingleTaskSampler(X[rows], y[rows], attribute[rows], n_context=16, device=setting.device)
        for rows in (slice(half), slice(half, None))
    )
    return _compare(SINGLE, sampler, test, setting, "single-task")


def _digitbirds(setting: Setting) -> Found:
    local.find(DIGITBIRDS, setting.data_dir)  # noted for every claim, also when another one has read it
    return _embeddings(setting)


@functools.lru_cache(maxsize=1)  # two claims read the same learners
def _embeddings(setting: Setting) -> Found:
    """Train on the training embeddings; test with contexts from them and queries from the test embeddings."""
    data = load_npz(local.find(DIGITBIRDS, setting.data_dir))
    mean, std = data["z_train"].astype(float).mean(axis=0), data["z_train"].astype(float).std(axis=0)
    train, test = (
        ((data[f"z_{part}"] - mean) / std, data[f"y_{part}"], data[f"c_{part}"]) for part in ("train", "test")
    )
    n_context = 64 if setting.scale == "paper" else 16
    sampler = SingleTaskSampler(*train, n_context=n_context, device=setting.device)
    asked = SingleTaskSampler(*train, n_context=n_context, query_data=test, device=setting.device)
    return _compare(SINGLE, sampler, asked, setting, "digitbirds")


def _omniglot(setting: Setting) -> Found:
    """Train on pairs of 100 characters with a random spurious vector each; test on pairs of 36 others."""
    data = load_npz(local.find(OMNIGLOT, setting.data_dir))
    rng = setting.streams.child("omniglot").numpy("characters")
    kinds, category = np.unique(np.stack([data["alphabet"], data["character"]], axis=1), axis=0, return_inverse=True)
    known = np.isin(category.ravel(), rng.permutation(len(kinds))[:100])
    images = data["images"].reshape(len(known), -1) / 255.0
    centred = images - images[known].mean(axis=0)
    components = np.linalg.svd(centred[known], full_matrices=False)[2][:64]
    codes = centred @ components.T
    n_context = 32 if setting.scale == "paper" else 16
    sampler, test = (
        SpuriousVectorSampler(
            CategoryPairSampler(codes[rows], category.ravel()[rows], n_context=n_context, device=setting.device)
        )
        for rows in (known, ~known)
    )
    found = _compare(PAIRS, sampler, test, setting, "omniglot")
    gain = _worst(found, "both") - _worst(found, *METHODS)
    return found._replace(scalars={**found.scalars, "gain_over_baselines": gain})


def _compare(
    learners: Mapping[str, Mapping[str, Any]], sampler: Sampler, test: Sampler, setting: Setting, stream: str
) -> Found:
    """Train every learner, and measure it and the baselines on the same tasks of `test`."""
    streams = setting.streams.child(stream)
    tasks = test(N_TEST_TASKS, streams.numpy("test"))
    common = {**MODELS[setting.scale], "device": setting.device}
    losses: dict[str, np.ndarray] = {}
    scalars: dict[str, float] = {}
    for name, options in learners.items():
        learner = SpuriousInContextLearner(**common, **options, random_state=streams.seed("learner"))
        losses[f"loss_{name}"] = np.array(learner.meta_fit(sampler).history_.losses)
        asked = {"": tasks, "_flipped": flip_labels(tasks), "_relabelled": flip_labels(tasks, attribute=False)}
        for change, changed in asked.items():
            scalars |= _named(f"{name}{change}", learner.predict_tasks(changed), changed)
    for method in METHODS:
        context = (tasks[part] for part in ("X", "y", "X_query", "attribute"))
        scalars |= _named(method, context_baseline(*context, method=method, device=setting.device), tasks)
    shape = {"n_context": tasks["X"].shape[1], "n_features": tasks["X"].shape[2], "n_test_tasks": len(tasks["X"])}
    return Found(losses, scalars, {**MODELS[setting.scale], **shape, "learners": learners})


def _named(name: str, scores: np.ndarray, tasks: Mapping[str, Any]) -> dict[str, float]:
    """Return a learner's accuracies from its scores (tasks, queries)."""
    found = in_context_metrics(scores, tasks)
    return {f"{name}_{metric}": found[metric] for metric in ("accuracy", "worst_group_accuracy")}


def _worst(found: Found, *names: str) -> float:
    """Return the best of the named worst-group accuracies."""
    return max(found.scalars[f"{name}_worst_group_accuracy"] for name in names)


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "synthetic-balanced-and-groups": _synthetic,
    "synthetic-flip": _synthetic,
    "synthetic-baselines": _synthetic,
    "single-task-in-weights": _single,
    "single-task-remedy": _single,
    "digitbirds-in-weights": _digitbirds,
    "digitbirds-remedy": _digitbirds,
    "omniglot-pairs": _omniglot,
}
STUDY = Study("shift.in_context", MEASUREMENTS, scales=("ci", "small", "paper"), gpu=True)
run = STUDY.run


def figure(claim: str, result: Result) -> Figure:
    """Draw accuracies of learners and baselines, and the learners' losses."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=[1.5, 1])
    _draw_accuracies(left, result)
    _draw_losses(right, result)
    return drawing


def _draw_accuracies(axes: Any, result: Result) -> None:
    learners = [name.removeprefix("loss_") for name in result.arrays]
    names = [*learners, *METHODS]
    places = np.arange(len(names))
    kinds = {"": ("o", "C0", "as drawn"), "_flipped": ("x", "C1", "labels and attributes exchanged")}
    for change, (marker, color, label) in kinds.items():
        shown = [(i, name) for i, name in enumerate(names) if f"{name}{change}_accuracy" in result.scalars]
        for metric, filled in (("accuracy", True), ("worst_group_accuracy", False)):
            axes.plot(
                [places[i] for i, _ in shown],
                [result.scalars[f"{name}{change}_{metric}"] for _, name in shown],
                linestyle="none",
                marker=marker if filled else {"o": "v", "x": "+"}[marker],
                color=color,
                label=f"{metric.replace('_', ' ')}, {label}",
            )
    axes.axvline(len(learners) - 0.5, color="0.8")
    axes.axhline(0.5, color="0.8", linestyle=":")
    axes.set_xticks(places, names, rotation=20)
    axes.set(ylabel="share of queries", ylim=(-0.05, 1.05), xlabel="learners | fitted to each context")
    axes.legend(fontsize="x-small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _draw_losses(axes: Any, result: Result) -> None:
    for name, losses in result.arrays.items():
        width = max(len(losses) // 60, 1)
        blocks = losses[: len(losses) // width * width].reshape(-1, width).mean(axis=1)
        axes.plot((np.arange(len(blocks)) + 0.5) * width, blocks, label=name.removeprefix("loss_"))
    axes.set(xlabel="training step", ylabel="loss on its own queries (nats)", ylim=(0, None))
    axes.legend(fontsize="small")
