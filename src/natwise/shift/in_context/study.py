"""Re-measure the claims on in-context learners: what balanced queries, group tokens and permutation each do."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.core.validation import check_option
from natwise.datasets import local
from natwise.result import Result, provenance
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "shift.in_context"
DIGITBIRDS, OMNIGLOT = "embeddings/digitbirds_embeddings.npz", "images/omniglot_small1_28.npz"
DataDir = str | os.PathLike[str] | None
Scalars = dict[str, float]

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
_SMALL_MODEL = {"n_layer": 2, "d_model": 32, "n_head": 4, "construction": "compact", "batch_size": 64}
_MODELS: dict[str, dict[str, Any]] = {
    "ci": {**_SMALL_MODEL, "n_steps": 300, "learning_rate": 8e-3, "warmup_steps": 40},
    "small": {**_SMALL_MODEL, "n_steps": 1000, "learning_rate": 5e-3, "warmup_steps": 100},
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


def run(claim: str, *, scale: str, seed: int, data_dir: DataDir = None, device: str = "cpu") -> Result:
    """Measure one claim of the card.

    Parameters
    ----------
    claim : str
        Its id on the card.
    scale : {"ci", "small", "paper"}
        Size of the model and length of the training; ``paper`` is meant for a GPU and for local data.
    seed : int
        Seeds tasks, weights and training.
    data_dir : path, optional
        Folder of local data. Default: ``$NATWISE_DATA``.
    device : str
        Where to train, and where samplers keep their data.

    Returns
    -------
    Result
        The claim's metric, and for every learner and baseline the accuracy on queries, also after exchanging the
        labels (``_flipped``: labels and attributes; ``_relabelled``: labels alone).
    """
    check_option("claim", claim, list(_CLAIMS))
    measure, metrics, scales = _CLAIMS[claim]
    check_option("scale", scale, scales)
    with provenance(seed=seed, device=device) as record:
        scalars, losses, params = measure(scale, seed, str(data_dir) if data_dir else None, device)
        found = {**scalars, **metrics(scalars)}
    arrays = {f"loss_{name}": np.array(values) for name, values in losses.items()}
    return Result(f"{KIND}/{claim}", arrays=arrays, scalars=found, params=params, provenance=record)


# what is measured


@functools.lru_cache(maxsize=1)
def _synthetic(scale: str, seed: int, data_dir: str | None, device: str) -> tuple[Scalars, dict, dict]:
    """Train four learners on Gaussian tasks, and test them on the same new ones, drawn with balanced queries."""
    sampler = SyntheticSampler(n_context=16, device=device)
    return _compare(SYNTHETIC, sampler, sampler, scale, Streams(seed).child("synthetic"), device)


@functools.lru_cache(maxsize=1)
def _single(scale: str, seed: int, data_dir: str | None, device: str) -> tuple[Scalars, dict, dict]:
    """Train on one Gaussian task of 16 features: one true and one spurious direction, the same in all contexts."""
    streams = Streams(seed).child("single-task")
    task = SyntheticSampler(16, n_context=4000, minority=0.5)(1, streams.numpy("task"))
    X, y, attribute = (task[name][0] for name in ("X", "y", "attribute"))
    half = len(X) // 2
    sampler, test = (
        SingleTaskSampler(X[rows], y[rows], attribute[rows], n_context=16, device=device)
        for rows in (slice(half), slice(half, None))
    )
    return _compare(SINGLE, sampler, test, scale, streams, device)


@functools.lru_cache(maxsize=1)
def _digitbirds(scale: str, seed: int, data_dir: str | None, device: str) -> tuple[Scalars, dict, dict]:
    """Train on the training embeddings; test with contexts from them and queries from the test embeddings."""
    data = load_npz(local.find(DIGITBIRDS, data_dir))
    mean, std = data["z_train"].astype(float).mean(axis=0), data["z_train"].astype(float).std(axis=0)
    train, test = (
        ((data[f"z_{part}"] - mean) / std, data[f"y_{part}"], data[f"c_{part}"]) for part in ("train", "test")
    )
    n_context = 64 if scale == "paper" else 16
    sampler = SingleTaskSampler(*train, n_context=n_context, device=device)
    asked = SingleTaskSampler(*train, n_context=n_context, query_data=test, device=device)
    return _compare(SINGLE, sampler, asked, scale, Streams(seed).child("digitbirds"), device)


@functools.lru_cache(maxsize=1)
def _omniglot(scale: str, seed: int, data_dir: str | None, device: str) -> tuple[Scalars, dict, dict]:
    """Train on pairs of 100 characters with a random spurious vector each; test on pairs of 36 others."""
    data, streams = load_npz(local.find(OMNIGLOT, data_dir)), Streams(seed).child("omniglot")
    kinds, category = np.unique(np.stack([data["alphabet"], data["character"]], axis=1), axis=0, return_inverse=True)
    known = np.isin(category.ravel(), streams.numpy("characters").permutation(len(kinds))[:100])
    images = data["images"].reshape(len(known), -1) / 255.0
    centred = images - images[known].mean(axis=0)
    components = np.linalg.svd(centred[known], full_matrices=False)[2][:64]
    codes = centred @ components.T
    n_context = 32 if scale == "paper" else 16
    sampler, test = (
        SpuriousVectorSampler(
            CategoryPairSampler(codes[rows], category.ravel()[rows], n_context=n_context, device=device)
        )
        for rows in (known, ~known)
    )
    return _compare(PAIRS, sampler, test, scale, streams, device)


def _compare(
    learners: Mapping[str, Mapping[str, Any]],
    sampler: Sampler,
    test: Sampler,
    scale: str,
    streams: Streams,
    device: str,
) -> tuple[Scalars, dict[str, tuple[float, ...]], dict[str, Any]]:
    """Train every learner, and measure it and the baselines on the same tasks of `test`."""
    tasks = test(N_TEST_TASKS, streams.numpy("test"))
    scalars: Scalars = {}
    losses = {}
    for name, options in learners.items():
        learner = SpuriousInContextLearner(
            **_MODELS[scale], **options, device=device, random_state=streams.seed("learner")
        ).meta_fit(sampler)
        losses[name] = learner.history_.losses
        asked = {"": tasks, "_flipped": flip_labels(tasks), "_relabelled": flip_labels(tasks, attribute=False)}
        for change, changed in asked.items():
            scalars |= _named(f"{name}{change}", learner.predict_tasks(changed), changed)
    for method in METHODS:
        context = (tasks[name] for name in ("X", "y", "X_query", "attribute"))
        scalars |= _named(method, context_baseline(*context, method=method, device=device), tasks)
    shape = {"n_context": tasks["X"].shape[1], "n_features": tasks["X"].shape[2], "n_test_tasks": len(tasks["X"])}
    return scalars, losses, {**_MODELS[scale], **shape, "learners": {k: dict(v) for k, v in learners.items()}}


def _named(name: str, scores: np.ndarray, tasks: Mapping[str, Any]) -> Scalars:
    found = in_context_metrics(scores, tasks)
    return {f"{name}_{metric}": found[metric] for metric in ("accuracy", "worst_group_accuracy")}


# the metrics of the claims


def _worst(scalars: Scalars, *names: str) -> float:
    return max(scalars[f"{name}_worst_group_accuracy"] for name in names)


def _over_ablations(scalars: Scalars) -> Scalars:
    return {"worst_group_gain": _worst(scalars, "both") - _worst(scalars, "naive", "groups", "balanced")}


def _over_baselines(scalars: Scalars, learner: str = "both") -> Scalars:
    return {"gain_over_baselines": _worst(scalars, learner) - _worst(scalars, *METHODS)}


def _flip_change(scalars: Scalars) -> Scalars:
    return {"change_by_flip": abs(scalars["both_flipped_accuracy"] - scalars["both_accuracy"])}


def _nothing_more(scalars: Scalars) -> Scalars:
    return {}


_CLAIMS: dict[str, tuple[Callable[..., Any], Callable[[Scalars], Scalars], tuple[str, ...]]] = {
    "synthetic-balanced-and-groups": (_synthetic, _over_ablations, ("ci", "small")),
    "synthetic-flip": (_synthetic, _flip_change, ("ci", "small")),
    "synthetic-baselines": (_synthetic, _over_baselines, ("small",)),
    "single-task-in-weights": (_single, _nothing_more, ("ci", "small")),
    "single-task-remedy": (_single, _nothing_more, ("ci", "small")),
    "digitbirds-in-weights": (_digitbirds, _nothing_more, ("small", "paper")),
    "digitbirds-remedy": (_digitbirds, _nothing_more, ("small", "paper")),
    "omniglot-pairs": (_omniglot, _over_baselines, ("small", "paper")),
}


def figure(claim: str, result: Result) -> Figure:
    """Draw accuracies of learners and baselines, and the learners' losses."""
    from matplotlib.figure import Figure

    check_option("claim", claim, list(_CLAIMS))
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
