"""Re-measure the claims of the card: copying and recall, the default's learning rate swept too, ingredients apart."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from natwise.core.random import Streams
from natwise.core.training import Trainer
from natwise.core.validation import check_option
from natwise.datasets.synthetic import Draw, associative_recall, copying
from natwise.lm.mimetic_init import Mamba1, Mamba2, MambaLM, mimetic_init_, parameter_groups
from natwise.result import Result, provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "lm.mimetic_init"
ARMS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "state": {"blend": 0.0},
    "blend": {"state": False},
    "mimetic": {},
    "mimetic and convolution": {"conv": True},
    "convolution": {"state": False, "blend": 0.0, "conv": True},
}
COLOURS = {"default": "#d55e00", "mimetic": "#0072b2"}
Found = tuple[dict[str, Any], dict[str, float], dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """Sizes of a task and of the network that is trained on it."""

    vocabulary: int
    lengths: tuple[int, int]  # copying: shortest and longest; recall: tokens and pairs
    width: int
    states: int
    head: int
    steps: int
    batch_size: int
    seeds: int
    learning_rate: float = 2e-3
    warmup: int = 50


COPYING = {
    "ci": Setting(8, (4, 8), 32, 32, 16, 200, 32, 2, warmup=20),
    "small": Setting(26, (8, 16), 64, 64, 32, 600, 64, 5),
    "paper": Setting(26, (20, 50), 256, 128, 64, 5000, 128, 5, learning_rate=1e-3, warmup=200),
}
RECALL = {
    "ci": Setting(32, (24, 4), 32, 32, 16, 200, 32, 2, warmup=20),
    "small": Setting(128, (48, 8), 64, 64, 32, 500, 48, 5),
    "paper": Setting(8192, (256, 16), 256, 128, 64, 5000, 256, 5, learning_rate=1e-3, warmup=200),
}
RATES = (5e-4, 2e-3, 5e-3, 1e-2)


def run(
    claim: str, *, scale: str, seed: int, data_dir: str | os.PathLike[str] | None = None, device: str = "cpu"
) -> Result:
    """Measure one claim of the card; the scalars hold its metric and what the other arms reach.

    Parameters
    ----------
    claim : str
        Its id on the card.
    scale : {"ci", "small", "paper"}
    seed : int
        Of the first of several runs; each seeds weights and data.
    data_dir : path, optional
        Not used: all data are made.
    device : str
        Where networks are trained.
    """
    check_option("claim", claim, list(STUDIES))
    check_option("scale", scale, list(COPYING))
    with provenance(seed=seed, device=device) as record:
        arrays, scalars, params = STUDIES[claim](scale, seed, device)
    params = {"scale": scale, **params}
    return Result(f"{KIND}/{claim}", arrays=arrays, scalars=scalars, params=params, provenance=record)


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    check_option("claim", claim, list(STUDIES))
    return FIGURES[claim](result)


# studies


def _copying(scale: str, seed: int, device: str) -> Found:
    """Worst mimetic seed against best default seed, at one learning rate; accuracy also at twice the length."""
    setting = COPYING[scale]
    arrays: dict[str, Any] = {}
    for arm in ("default", "mimetic"):
        rows = [_copy(setting, arm, seed + i, device) for i in range(setting.seeds)]
        arrays |= {f"{arm}/{name}": np.array([row[name] for row in rows]) for name in rows[0]}
    scalars = _gap(arrays["default/accuracy"], arrays["mimetic/accuracy"])
    for arm in ("default", "mimetic"):
        scalars |= {f"{arm}_{n}": float(arrays[f"{arm}/{n}"].mean()) for n in ("accuracy", "exact", "longer")}
    return arrays, scalars, _params(setting)


def _recall(scale: str, seed: int, device: str) -> Found:
    setting = RECALL[scale]
    draw = associative_recall(setting.vocabulary, *setting.lengths)
    arrays = {}
    for arm in ("default", "mimetic"):
        found = []
        for i in range(setting.seeds):
            model = _train(setting, draw, arm, seed + i, device)
            found.append(_accuracy(model, draw, setting, seed + i, device)[0])
        arrays[f"{arm}/accuracy"] = np.array(found)
    scalars = _gap(arrays["default/accuracy"], arrays["mimetic/accuracy"])
    scalars |= {f"{arm}_accuracy": float(arrays[f"{arm}/accuracy"].mean()) for arm in ("default", "mimetic")}
    return arrays, scalars, {**_params(setting), "chance": 2 / setting.vocabulary}


def _rates(scale: str, seed: int, device: str) -> Found:
    """Train both arms on copying with every learning rate, which says what tuning alone gives the default."""
    setting = replace(COPYING[scale], seeds=max(COPYING[scale].seeds // 2, 1))
    arrays: dict[str, Any] = {"rates": np.array(RATES)}
    for arm in ("default", "mimetic"):
        table = [
            [_copy(replace(setting, learning_rate=rate), arm, seed + i, device)["accuracy"] for rate in RATES]
            for i in range(setting.seeds)
        ]
        arrays[f"{arm}/accuracy"] = np.array(table)
    default, mimetic = (arrays[f"{arm}/accuracy"].mean(axis=0) for arm in ("default", "mimetic"))
    scalars = {
        "best_mimetic_minus_best_default": float(mimetic.max() - default.max()),
        "best_default": float(default.max()),
        "best_mimetic": float(mimetic.max()),
        "best_default_rate": float(RATES[default.argmax()]),
        "best_mimetic_rate": float(RATES[mimetic.argmax()]),
    }
    return arrays, scalars, _params(setting)


def _ingredients(scale: str, seed: int, device: str) -> Found:
    """Train on copying with each ingredient alone, all, and the identity convolution on top."""
    setting = replace(COPYING[scale], seeds=max(COPYING[scale].seeds // 2, 1))
    table = np.array(
        [[_copy(setting, arm, seed + i, device)["accuracy"] for i in range(setting.seeds)] for arm in ARMS]
    )
    mean = dict(zip(ARMS, table.mean(axis=1), strict=True))
    scalars = {f"{arm.replace(' ', '_')}_accuracy": float(value) for arm, value in mean.items()}
    scalars["state_share"] = float((mean["state"] - mean["default"]) / (mean["mimetic"] - mean["default"]))
    return {"accuracy": table}, scalars, {**_params(setting), "arms": list(ARMS)}


def _maps(scale: str, seed: int, device: str) -> Found:
    """Compare how much a token attends to its like and to others, before any training."""
    rng = Streams(seed).child("maps").numpy("tokens")
    ids = np.tile(rng.permutation(12), 2)
    embedding = torch.from_numpy(rng.standard_normal((12, 64)).astype(np.float32))
    arrays, scalars = {"ids": ids}, {}
    for arm in ("default", "mimetic", "mimetic and convolution"):
        layer = Mamba2(64, d_state=64, head_dim=32, random_state=seed)
        if (options := ARMS[arm]) is not None:
            mimetic_init_(layer, **options)
        size = layer.attention_map(embedding[ids][None]).abs().mean(dim=(0, 1)).detach().numpy()
        same = (ids[:, None] == ids) & np.tri(len(ids), k=-1, dtype=bool)
        other = ~same & np.tri(len(ids), k=-1, dtype=bool)
        arrays[arm] = size
        scalars[f"{arm.replace(' ', '_')}_ratio"] = float(size[same].mean() / size[other].mean())
    return arrays, scalars, {}


def _mamba1(scale: str, seed: int, device: str) -> Found:
    """Compare default and mimetic Mamba-1 layers on copying, one seed."""
    setting = replace(COPYING[scale], states=min(COPYING[scale].states, 32), steps=COPYING[scale].steps // 2, seeds=1)
    rows = {arm: _copy(setting, arm, seed, device, Mamba1) for arm in ("default", "mimetic")}
    scalars = {f"{arm}_accuracy": row["accuracy"] for arm, row in rows.items()}
    scalars["mimetic_minus_default"] = scalars["mimetic_accuracy"] - scalars["default_accuracy"]
    return {}, scalars, _params(setting)


STUDIES: dict[str, Callable[[str, int, str], Found]] = {
    "copying": _copying,
    "recall": _recall,
    "learning-rates": _rates,
    "ingredients": _ingredients,
    "attention-maps": _maps,
    "mamba-1": _mamba1,
}


# training and measuring


def _copy(
    setting: Setting, arm: str, seed: int, device: str, mixer: type[torch.nn.Module] = Mamba2
) -> dict[str, float]:
    """Train on copying; return accuracies by token and by sequence at the longest length, and by token at twice it."""
    draw = copying(setting.vocabulary, setting.lengths)
    model = _train(setting, draw, arm, seed, device, mixer)
    longest = setting.lengths[1]
    accuracy, exact = _accuracy(model, copying(setting.vocabulary, (longest, longest)), setting, seed, device)
    longer, _ = _accuracy(model, copying(setting.vocabulary, (2 * longest, 2 * longest)), setting, seed, device)
    return {"accuracy": accuracy, "exact": exact, "longer": longer}


def _train(
    setting: Setting, draw: Draw, arm: str, seed: int, device: str, mixer: type[torch.nn.Module] = Mamba2
) -> MambaLM:
    streams = Streams(seed).child("mimetic")
    options: dict[str, Any] = {"d_state": setting.states}
    if mixer is Mamba2:
        options["head_dim"] = setting.head
    tokens = setting.vocabulary + 1
    model = MambaLM(tokens, setting.width, 2, mixer=mixer, random_state=streams.seed("weights"), **options)
    if (changes := ARMS[arm]) is not None:
        mimetic_init_(model, **changes)
    trainer = Trainer(
        max_epochs=1,
        steps_per_epoch=setting.steps,
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        optimizer=lambda _, lr: torch.optim.AdamW(parameter_groups(model, 0.01), lr=lr),
        schedule=partial(_warm_cosine, warmup=setting.warmup),
        max_grad_norm=1.0,
        mixed_precision="no" if device == "cpu" else "bf16",
        device=device,
        random_state=streams.seed("training"),
    )
    trainer.fit(model, _loss, draw)
    return model


def _loss(model: torch.nn.Module, batch: Any, step: int) -> torch.Tensor:
    tokens, labels = batch
    return cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=-100)


def _warm_cosine(step: int, n_steps: int, warmup: int) -> float:
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / n_steps)))


def _accuracy(model: MambaLM, draw: Draw, setting: Setting, seed: int, device: str) -> tuple[float, float]:
    """Return the share of right tokens and of wholly right sequences among 256 new ones."""
    tokens, labels = draw(256, Streams(seed).child("mimetic").numpy("test"))
    with torch.no_grad():
        right = torch.cat([model(part.to(device)).argmax(-1).cpu() for part in tokens.split(64)]) == labels
    counted = labels != -100
    return float(right[counted].double().mean()), float((right | ~counted).all(dim=1).double().mean())


def _gap(default: np.ndarray, mimetic: np.ndarray) -> dict[str, float]:
    return {
        "worst_mimetic_minus_best_default": float(mimetic.min() - default.max()),
        "worst_mimetic": float(mimetic.min()),
        "best_default": float(default.max()),
    }


def _params(setting: Setting) -> dict[str, Any]:
    return dict(vars(setting))


# figures


def _axes(width: float = 6.0) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, 4.0), layout="constrained")
    return canvas, canvas.add_subplot()


def _draw_dots(result: Result) -> Figure:
    canvas, axes = _axes()
    names = [name for name in ("accuracy", "exact", "longer") if f"default/{name}" in result.arrays]
    titles = {"accuracy": "tokens", "exact": "whole sequences", "longer": "tokens at twice\nthe length"}
    for shift, arm in ((-0.12, "default"), (0.12, "mimetic")):
        for i, name in enumerate(names):
            values = result.arrays[f"{arm}/{name}"]
            label = arm if i == 0 else None
            axes.plot(np.full(len(values), i + shift), values, "o", color=COLOURS[arm], alpha=0.7, label=label)
            axes.hlines(values.mean(), i + shift - 0.08, i + shift + 0.08, color=COLOURS[arm], lw=2)
    axes.set(
        xticks=range(len(names)), xticklabels=[titles[n] for n in names], ylim=(0, 1.03), xlim=(-0.5, len(names) - 0.5)
    )
    axes.set_ylabel("accuracy (a dot per seed)")
    axes.legend()
    return canvas


def _draw_rates(result: Result) -> Figure:
    canvas, axes = _axes()
    for arm, colour in COLOURS.items():
        table = result.arrays[f"{arm}/accuracy"]
        axes.plot(result.arrays["rates"], table.mean(axis=0), "-", color=colour, label=arm)
        axes.plot(np.tile(result.arrays["rates"], len(table)), table.ravel(), "o", color=colour, alpha=0.6)
    axes.set(xscale="log", xlabel="learning rate", ylabel="token accuracy on copying", ylim=(0, 1.03))
    axes.legend()
    return canvas


def _draw_ingredients(result: Result) -> Figure:
    canvas, axes = _axes(7.0)
    table = result.arrays["accuracy"]
    axes.barh(range(len(table)), table.mean(axis=1), color="#9ecae1")
    axes.plot(table, np.arange(len(table)), "o", color="#08519c", ms=4)
    axes.set(
        yticks=range(len(table)), yticklabels=result.params["arms"], xlim=(0, 1.03), xlabel="token accuracy on copying"
    )
    axes.invert_yaxis()
    return canvas


def _draw_maps(result: Result) -> Figure:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9.0, 3.4), layout="constrained")
    arms = [name for name in result.arrays if name != "ids"]
    for axes, arm in zip(canvas.subplots(1, len(arms)), arms, strict=True):
        size = result.arrays[arm]
        axes.imshow(size / size.max(), cmap="viridis")
        axes.set(title=arm, xlabel="attended token", ylabel="token", xticks=[0, 11, 23], yticks=[0, 11, 23])
    canvas.suptitle("mean size of the attention map, twelve tokens twice")
    return canvas


def _draw_bars(result: Result) -> Figure:
    canvas, axes = _axes(4.0)
    values = [result.scalars[f"{arm}_accuracy"] for arm in COLOURS]
    axes.bar(list(COLOURS), values, color=list(COLOURS.values()))
    axes.set(ylim=(0, 1.03), ylabel="token accuracy on copying, Mamba-1")
    return canvas


FIGURES: dict[str, Callable[[Result], Figure]] = {
    "copying": _draw_dots,
    "recall": _draw_dots,
    "learning-rates": _draw_rates,
    "ingredients": _draw_ingredients,
    "attention-maps": _draw_maps,
    "mamba-1": _draw_bars,
}
