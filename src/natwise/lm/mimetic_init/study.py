"""Re-measure the claims of the card: copying and recall, the default's learning rate swept too, ingredients apart.

The scale says how large tasks and networks are and how many trainings an arm has. Each training seeds its weights and
data by a seed of its own, from that of the setting on; claims that are read off the same trainings share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch.nn.functional import cross_entropy

from natwise.core.random import Streams
from natwise.core.training import Trainer
from natwise.datasets.synthetic import Draw, associative_recall, copying
from natwise.lm.mimetic_init import Mamba1, Mamba2, MambaLM, mimetic_init_, parameter_groups
from natwise.result import Result
from natwise.study import Found, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "state": {"blend": 0.0},
    "blend": {"state": False},
    "mimetic": {},
    "mimetic and convolution": {"conv": True},
    "convolution": {"state": False, "blend": 0.0, "conv": True},
}
COLOURS = {"default": "#d55e00", "mimetic": "#0072b2"}


@dataclass(frozen=True)
class Recipe:
    """A task, and the network that is trained on it."""

    task: str
    vocabulary: int
    lengths: tuple[int, int]  # copying: shortest and longest; recall: tokens and pairs
    width: int
    states: int
    head: int
    steps: int
    batch_size: int
    learning_rate: float = 2e-3
    warmup: int = 50
    mixer: str = "Mamba2"
    tied: bool = True  # whether the output matrix is the embedding
    mixed: bool = False  # whether a batch mixes lengths


@dataclass(frozen=True)
class Run:
    """One training."""

    recipe: Recipe
    arm: str
    seed: int
    device: str


SEEDS = {"ci": 2, "small": 5, "paper": 5}
FEWER_SEEDS = 2  # for comparisons with many arms
COPYING = {
    "ci": Recipe("copying", 8, (4, 8), 32, 32, 16, 300, 32, learning_rate=5e-3),
    "small": Recipe("copying", 26, (8, 16), 64, 64, 32, 600, 64),
    "paper": Recipe("copying", 26, (20, 50), 256, 128, 64, 5000, 128, learning_rate=1e-3, warmup=200),
}
RECALL = {
    "ci": Recipe("recall", 32, (24, 4), 32, 32, 16, 300, 32, learning_rate=5e-3),
    "small": Recipe("recall", 128, (48, 8), 64, 64, 32, 500, 48),
    "paper": Recipe("recall", 8192, (256, 16), 256, 128, 64, 5000, 256, learning_rate=1e-3, warmup=200),
}
RATES = (5e-4, 2e-3, 5e-3, 1e-2)


def _copying(setting: Setting) -> Found:
    """Default and mimetic starts at one learning rate, at the longest length in training and at twice it."""
    return _two_arms(setting, COPYING[setting.scale])


def _recall(setting: Setting) -> Found:
    """Default and mimetic starts at one learning rate on associative recall."""
    found, recipe = _two_arms(setting, RECALL[setting.scale]), RECALL[setting.scale]
    return found._replace(params={**found.params, "chance": 2 / recipe.vocabulary})


def _two_arms(setting: Setting, recipe: Recipe) -> Found:
    """Compare the worst mimetic seed with the best default one, and means, on one task."""
    (table,) = _tables(setting, [recipe], COLOURS, SEEDS[setting.scale])
    arrays = {f"{arm}/{name}": values for arm, found in table.items() for name, values in found.items()}
    default, mimetic = arrays["default/accuracy"], arrays["mimetic/accuracy"]
    scalars = {
        "worst_mimetic_minus_best_default": float(mimetic.min() - default.max()),
        "worst_mimetic": float(mimetic.min()),
        "best_default": float(default.max()),
    }
    scalars |= {name.replace("/", "_"): float(values.mean()) for name, values in arrays.items()}
    if "mimetic_longer" in scalars:
        scalars["longer_gain"] = scalars["mimetic_longer"] - scalars["default_longer"]
    return Found(arrays, scalars, asdict(recipe))


def _rates(setting: Setting) -> Found:
    """Train both arms on copying with every learning rate, which says what tuning alone gives the default."""
    recipe = COPYING[setting.scale]
    tables = _tables(setting, [replace(recipe, learning_rate=rate) for rate in RATES], COLOURS, FEWER_SEEDS)
    arrays = {f"{arm}/accuracy": np.stack([t[arm]["accuracy"] for t in tables], axis=1) for arm in COLOURS}
    default, mimetic = (arrays[f"{arm}/accuracy"].mean(axis=0) for arm in COLOURS)
    fixed = RATES.index(2e-3)
    scalars = {
        "best_mimetic_minus_best_default": float(mimetic.max() - default.max()),
        "closed_by_tuning": float((default.max() - default[fixed]) / (mimetic[fixed] - default[fixed])),
        "best_default_rate": float(RATES[default.argmax()]),
        "best_mimetic_rate": float(RATES[mimetic.argmax()]),
    }
    for arm, means in {"default": default, "mimetic": mimetic}.items():
        scalars |= {f"{arm}_at_{rate:g}": float(value) for rate, value in zip(RATES, means, strict=True)}
    return Found({"rates": np.array(RATES), **arrays}, scalars, asdict(recipe))


def _ingredients(setting: Setting) -> Found:
    """Train on copying with each ingredient alone, all, and the identity convolution on top."""
    recipe = COPYING[setting.scale]
    (table,) = _tables(setting, [recipe], ARMS, FEWER_SEEDS)
    accuracy = np.array([table[arm]["accuracy"] for arm in ARMS])
    mean = dict(zip(ARMS, accuracy.mean(axis=1), strict=True))
    scalars = {f"{arm.replace(' ', '_')}_accuracy": float(value) for arm, value in mean.items()}
    scalars["state_share"] = float((mean["state"] - mean["default"]) / (mean["mimetic"] - mean["default"]))
    scalars["lost_by_convolution"] = float(mean["mimetic"] - mean["mimetic and convolution"])
    return Found({"accuracy": accuracy}, scalars, {**asdict(recipe), "arms": list(ARMS)})


def _variants(setting: Setting) -> Found:
    """Compare both arms with an output matrix of their own, and with batches that mix lengths, one seed."""
    recipe = COPYING[setting.scale]
    recipes = {
        "as above": recipe,
        "own output matrix": replace(recipe, tied=False),
        "mixed lengths": replace(recipe, mixed=True),
        "both": replace(recipe, tied=False, mixed=True),
    }
    tables = _tables(setting, recipes.values(), COLOURS, 1)
    accuracy = np.array([[table[arm]["accuracy"][0] for arm in COLOURS] for table in tables])
    scalars = {"smallest_gain": float((accuracy[:, 1] - accuracy[:, 0]).min())}
    for name, row in zip(recipes, accuracy, strict=True):
        scalars |= {f"{arm}_{name.replace(' ', '_')}": float(v) for arm, v in zip(COLOURS, row, strict=True)}
    return Found({"accuracy": accuracy}, scalars, {**asdict(recipe), "names": list(recipes)})


def _maps(setting: Setting) -> Found:
    """Compare how much a token attends to its like and to others, before any training."""
    rng = setting.streams.child("maps").numpy("tokens")
    ids = np.tile(rng.permutation(12), 2)
    embedding = torch.from_numpy(rng.standard_normal((12, 64)).astype(np.float32))
    arrays, scalars = {"ids": ids}, {}
    for arm in ("default", "mimetic", "mimetic and convolution"):
        layer = Mamba2(64, d_state=64, head_dim=32, random_state=setting.seed)
        if (options := ARMS[arm]) is not None:
            mimetic_init_(layer, **options)
        size = layer.attention_map(embedding[ids][None]).abs().mean(dim=(0, 1)).detach().numpy()
        same = (ids[:, None] == ids) & np.tri(len(ids), k=-1, dtype=bool)
        other = ~same & np.tri(len(ids), k=-1, dtype=bool)
        arrays[arm] = size
        scalars[f"{arm.replace(' ', '_')}_ratio"] = float(size[same].mean() / size[other].mean())
    return Found(arrays, scalars)


def _mamba1(setting: Setting) -> Found:
    """Compare default and mimetic Mamba-1 layers on copying, one seed, half the steps."""
    recipe = COPYING[setting.scale]
    recipe = replace(recipe, mixer="Mamba1", states=min(recipe.states, 32), steps=recipe.steps // 2)
    (table,) = _tables(setting, [recipe], COLOURS, 1)
    scalars = {f"{arm}_accuracy": float(table[arm]["accuracy"][0]) for arm in COLOURS}
    scalars["mimetic_minus_default"] = scalars["mimetic_accuracy"] - scalars["default_accuracy"]
    return Found(scalars=scalars, params=asdict(recipe))


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "attention-maps": _maps,
    "copying": _copying,
    "length-generalisation": _copying,
    "learning-rates": _rates,
    "ingredients": _ingredients,
    "convolution": _ingredients,
    "head-and-lengths": _variants,
    "recall": _recall,
    "recall-default": _recall,
    "mamba-1": _mamba1,
}
STUDY = Study("lm.mimetic_init", MEASUREMENTS, scales=tuple(COPYING), gpu=True)
run = STUDY.run


# training and measuring

_FOUND: dict[Run, dict[str, float]] = {}  # several claims are read off the same runs


def _tables(
    setting: Setting, recipes: Iterable[Recipe], arms: Iterable[str], n_seeds: int
) -> list[dict[str, dict[str, np.ndarray]]]:
    """Return for every recipe what its arms reach, by measure, with seeds from that of the setting on: (n_seeds,)."""
    seeds = range(setting.seed, setting.seed + n_seeds)
    tables = [{arm: [Run(recipe, arm, seed, setting.device) for seed in seeds] for arm in arms} for recipe in recipes]
    _run_all(run for table in tables for row in table.values() for run in row)
    return [
        {arm: {name: np.array([_FOUND[run][name] for run in row]) for name in _FOUND[row[0]]} for arm, row in t.items()}
        for t in tables
    ]


def _run_all(runs: Iterable[Run]) -> None:
    """Make the trainings that are still missing, side by side in as many processes as torch would take threads."""
    missing = [run for run in dict.fromkeys(runs) if run not in _FOUND]
    processes = min(torch.get_num_threads(), len(missing) // 4) if all(run.device == "cpu" for run in missing) else 1
    found = Parallel(n_jobs=max(processes, 1))(map(delayed(_measure), missing))
    _FOUND.update(zip(missing, found, strict=True))


def _measure(run: Run) -> dict[str, float]:
    """Train; return accuracies by token and by sequence on new data, for copying by token at twice the length too."""
    recipe = run.recipe
    if recipe.task == "recall":
        draw = associative_recall(recipe.vocabulary, *recipe.lengths)
        accuracy, exact = _accuracy(_train(run, draw), draw, run)
        return {"accuracy": accuracy, "exact": exact}
    model = _train(run, copying(recipe.vocabulary, recipe.lengths, mixed=recipe.mixed))
    longest = recipe.lengths[1]
    accuracy, exact = _accuracy(model, copying(recipe.vocabulary, (longest, longest)), run)
    longer, _ = _accuracy(model, copying(recipe.vocabulary, (2 * longest, 2 * longest)), run)
    return {"accuracy": accuracy, "exact": exact, "longer": longer}


def _train(run: Run, draw: Draw) -> MambaLM:
    """Return a network of two layers, initialised and trained."""
    streams, recipe = Streams(run.seed).child("mimetic"), run.recipe
    options: dict[str, Any] = {"d_state": recipe.states, "tie_embeddings": recipe.tied}
    options |= {"mixer": Mamba1} if recipe.mixer == "Mamba1" else {"mixer": Mamba2, "head_dim": recipe.head}
    tokens = recipe.vocabulary + (recipe.task == "copying")  # with the separator
    model = MambaLM(tokens, recipe.width, 2, random_state=streams.seed("weights"), **options)
    if (changes := ARMS[run.arm]) is not None:
        mimetic_init_(model, **changes)
    trainer = Trainer(
        max_epochs=1,
        steps_per_epoch=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        optimizer=lambda _, lr: torch.optim.AdamW(parameter_groups(model, 0.01), lr=lr),
        schedule=partial(_warm_cosine, warmup=recipe.warmup),
        max_grad_norm=1.0,
        mixed_precision="no" if run.device == "cpu" else "bf16",
        device=run.device,
        random_state=streams.seed("training"),
    )
    trainer.fit(model, _loss, draw)
    return model


def _loss(model: torch.nn.Module, batch: Any, step: int) -> torch.Tensor:
    """Return the cross-entropy on tokens and labels, both (batch, time), in nats per label that is not -100."""
    tokens, labels = batch
    return cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=-100)


def _warm_cosine(step: int, n_steps: int, warmup: int) -> float:
    """Return the factor on the learning rate."""
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / n_steps)))


def _accuracy(model: MambaLM, draw: Draw, run: Run) -> tuple[float, float]:
    """Return the share of right tokens and of wholly right sequences among 256 new ones."""
    tokens, labels = draw(256, Streams(run.seed).child("mimetic").numpy("test"))
    with torch.no_grad():
        right = torch.cat([model(part.to(run.device)).argmax(-1).cpu() for part in tokens.split(64)]) == labels
    counted = labels != -100
    return float(right[counted].double().mean()), float((right | ~counted).all(dim=1).double().mean())


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


def _draw_variants(result: Result) -> Figure:
    canvas, axes = _axes(7.0)
    for i, (arm, colour) in enumerate(COLOURS.items()):
        axes.barh(np.arange(4) + 0.4 * i, result.arrays["accuracy"][:, i], 0.36, color=colour, label=arm)
    axes.set(yticks=np.arange(4) + 0.2, yticklabels=result.params["names"], xlim=(0, 1.03))
    axes.set_xlabel("token accuracy on copying, one seed")
    axes.invert_yaxis()
    axes.legend()
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


DRAWINGS: dict[str, Callable[[Result], Figure]] = {
    "copying": _draw_dots,
    "length-generalisation": _draw_dots,
    "recall": _draw_dots,
    "recall-default": _draw_dots,
    "learning-rates": _draw_rates,
    "ingredients": _draw_ingredients,
    "convolution": _draw_ingredients,
    "head-and-lengths": _draw_variants,
    "attention-maps": _draw_maps,
    "mamba-1": _draw_bars,
}


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    return DRAWINGS[claim](result)
