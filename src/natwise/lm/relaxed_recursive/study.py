"""Re-measure the claims of the card: exact identities, published sizes, and uptraining of byte-level models."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from natwise import lm  # its names are imported on first use: a figure needs no transformers
from natwise.core.distillation import KINDS
from natwise.core.random import Streams
from natwise.datasets import local
from natwise.datasets.language import N_BYTES, draw_windows, load_corpus
from natwise.lm._study import byte_sizes, train_with, validation_loss, validation_windows
from natwise.result import Result
from natwise.study import Found, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sizes:
    """Sizes of one scale."""

    corpora: tuple[str, ...]
    width: int
    layers: int
    heads: int
    context: int
    batch_size: int
    teacher_steps: int
    steps: int
    ranks: tuple[int, ...]
    validation_windows: int
    distillations: tuple[str, ...] = KINDS
    learning_rate: float = 3e-3  # from scratch
    uptraining_rate: float = 1e-3


SHAKESPEARE = ("text/tinyshakespeare.txt",)
NOVEL_AND_WIKI = ("text/war_and_peace_first_two_thirds.txt", "text/wikitext2_valid.txt")
SIZES = {
    "ci": Sizes(SHAKESPEARE, 64, 4, 4, 64, 16, 300, 40, (6, 24), 64, KINDS[:1]),
    "small": Sizes(SHAKESPEARE, 96, 6, 4, 128, 16, 900, 100, (8, 32), 128),
    "paper": Sizes(NOVEL_AND_WIKI, 512, 12, 8, 512, 64, 1800, 300, (8, 32, 128), 256, KINDS, 1e-3, 5e-4),
}

# Published sizes of the matrices in the layers, in billions, by loops and rank; shapes as published with the models.
PUBLISHED: dict[str, dict[tuple[int, int | None], float]] = {
    "gemma": {
        (2, None): 0.991, (2, 64): 1.069, (2, 128): 1.148, (2, 256): 1.305, (2, 512): 1.597,
        (3, None): 0.661, (3, 64): 0.739, (3, 128): 0.817, (3, 256): 0.974, (3, 512): 1.267,
    },
    "llama": {(2, None): 0.484, (2, 64): 0.535, (2, 128): 0.585, (2, 256): 0.686, (2, 512): 0.862},
    "gpt_neox": {(2, None): 0.403, (2, 64): 0.440, (2, 128): 0.478, (2, 256): 0.554, (2, 512): 0.705},
}  # fmt: skip
SHAPES: dict[str, dict[str, int]] = {
    "gemma": {
        "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
    },
    "llama": {
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4,
    },
    "gpt_neox": {
        "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 8,
    },
}  # fmt: skip


def _exactness(setting: Setting) -> Found:
    """Convert a model with unequal norms at growing rank: the logits come to be the source's, when norms are folded."""
    streams = setting.streams.child("exact")
    with streams.torch_global("source"):
        source = _llama(SIZES["ci"]).eval()
        for parameter in source.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        ids = torch.randint(N_BYTES, (4, 32))
    ranks, width = [1, 4, 16, 32, 48, 64], SIZES["ci"].width
    off: dict[bool, list[float]] = {True: [], False: []}
    with torch.no_grad():
        for rank in ranks:
            for folds, found in off.items():
                model = lm.to_recursive(source, 2, "average", rank, "svd", folds)
                found.append(float((model(ids).logits - source(ids).logits).abs().max()))
    arrays = {"x": np.array(ranks), "y": np.array([off[True], off[False]]).T}
    scalars = {"logit_difference": off[True][-1], "not_folded": off[False][-1]}
    labels = {"xlabel": f"rank (full: {width})", "ylabel": "largest difference of logits", "yscale": "log"}
    return Found(arrays, scalars, {**labels, "lines": ["norms folded", "norms shared as they are"]})


def _eckart_young(setting: Setting) -> Found:
    """Decompose random matrices, whose flat spectrum is the hardest case, by the randomised method."""
    from natwise.lm.relaxed_recursive._lowrank import low_rank

    generator = setting.streams.torch("matrices")
    shapes = [(256, 768), (768, 256), (512, 512), (960, 320)]
    ranks = [4, 8, 16, 32, 48]
    excess = np.zeros((len(ranks), len(shapes)))
    for i, rank in enumerate(ranks):
        for j, shape in enumerate(shapes):
            found = low_rank(torch.randn(shape, generator=generator), rank, generator)
            excess[i, j] = found.error / found.optimum - 1
    scalars = {"worst_excess": float(excess.max()), "mean_excess": float(excess.mean())}
    labels: dict[str, Any] = {"xlabel": "rank", "ylabel": "loss above the optimum (fraction)", "yscale": "linear"}
    labels["lines"] = [f"{rows} x {columns}" for rows, columns in shapes]
    return Found({"x": np.array(ranks), "y": excess}, scalars, labels)


def _sizes(setting: Setting) -> Found:
    """Count the entries of matrices in the published conversions, on the meta device.

    All 20 published numbers are met when embeddings, norms and biases are left out.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    rows, ours, published = [], [], []
    for family, table in PUBLISHED.items():
        with torch.device("meta"):
            source = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPES[family]))
        for (loops, rank), size in table.items():
            model = lm.to_recursive(source, loops, "average", rank)
            inside = [p.numel() for p in model.base_model.layers.parameters() if p.ndim == 2]
            rows.append(f"{family}, {loops} loops, rank {rank}")
            ours.append(sum(inside) / 1e9)
            published.append(size)
    arrays = {"ours": np.array(ours), "published": np.array(published)}
    worst = float(np.abs(arrays["ours"] - arrays["published"]).max())
    return Found(arrays, {"largest_difference": worst}, rows=rows)


def _uptraining(setting: Setting) -> Found:
    """Uptrain every variant of one trained model for the same number of steps."""
    runs, sizes = _runs(setting), SIZES[setting.scale]
    names, before, after = list(runs["after"]), runs["before"], runs["after"]
    largest, order = sizes.ranks[-1], [after[name] for name in ("step", "lower", "average", "random weights")]
    curve = ["average", *(f"average, rank {rank}" for rank in sizes.ranks)]
    arrays = {
        "before": np.array(list(before.values())),
        "after": np.array(list(after.values())),
        "parameters": np.array(list(runs["parameters"].values())),
        "rank": np.array([0, *sizes.ranks]),
        "rank_before": np.array([before[name] for name in curve]),
        "rank_after": np.array([after[name] for name in curve]),
    }
    relaxed, zero = after[f"average, rank {largest}"], after[f"average, rank {largest}, zero start"]
    scalars = {f"{name.replace(',', '').replace(' ', '_')}_loss": value for name, value in after.items()}
    scalars |= {
        "teacher_loss": runs["teacher"],
        "relaxed_loss": relaxed,
        "zero_start_loss": zero,
        "relaxed_excess": relaxed - runs["teacher"],
        "zero_minus_svd": zero - relaxed,
        "smallest_gap": float(np.diff(order).min()),
        "largest_rise": float(np.diff(arrays["rank_after"]).max()),
        "random_minus_worst": after["random weights"] - max(order[:-1]),
        "distillation_gain": after["step"] - after["step, forward_kl"],
    }
    return Found(arrays, scalars, {"steps": sizes.steps, "ranks": list(sizes.ranks)}, names)


def _early_exit(setting: Setting) -> Found:
    """Train the uptrained model on, with and without losses at early exits."""
    runs = _runs(setting)
    lab, model = runs["lab"], runs["step model"]
    losses = {"plain": None, "exits": lm.EarlyExitLoss(), "weighted": lm.EarlyExitLoss("weighted")}
    states = {"before": model} | {name: lab.uptrain(model, "more", loss) for name, loss in losses.items()}
    found = {name: lm.evaluate_exits(one, lab.validation) for name, one in states.items()}
    arrays = {f"loss_{name}": result.arrays["loss"] for name, result in found.items()}
    arrays |= {f"agreement_{name}": result.arrays["agreement"] for name, result in found.items()}
    scalars = {f"mean_exit_{name}": result.scalars["mean_exit"] for name, result in found.items()}
    for name, label in (("exits", ""), ("weighted", "weighted_")):
        scalars[f"{label}first_loop_gain"] = float(arrays["loss_plain"][0] - arrays[f"loss_{name}"][0])
        scalars[f"{label}final_cost"] = float(arrays[f"loss_{name}"][-1] - arrays["loss_plain"][-1])
    return Found(arrays, scalars, {"steps": SIZES[setting.scale].steps})


def _runs(setting: Setting) -> dict[str, Any]:
    """Return what `_variants` found; every claim that reads it notes the same data files."""
    for name in SIZES[setting.scale].corpora:
        local.find(name, setting.data_dir)
    return _variants(setting)


@functools.lru_cache(maxsize=1)
def _variants(setting: Setting) -> dict[str, Any]:
    """Train the source and uptrain its variants; all claims read the same runs.

    Returns
    -------
    dict
        ``before``, ``after`` (losses in nats per byte), ``parameters`` (in layers) by variant, the loss of the
        ``teacher``, the ``lab`` and the uptrained ``step model``.
    """
    sizes = SIZES[setting.scale]
    lab = _Lab(sizes, setting)
    with lab.streams.torch_global("teacher"):
        teacher = _llama(sizes)
    lab.train(teacher, "teacher", sizes.teacher_steps, sizes.learning_rate)
    found: dict[str, Any] = {"teacher": lab.loss(teacher), "before": {}, "after": {}, "parameters": {}, "lab": lab}
    for name, model, options in _made(teacher, sizes, lab.streams):
        found["before"][name] = lab.loss(model.to(setting.device))
        found["parameters"][name] = sum(p.numel() for p in model.base_model.layers.parameters())
        lab.train(model, "data", sizes.steps, **{"rate": sizes.uptraining_rate, **options})
        found["after"][name] = lab.loss(model)
        if name == "step":
            found["step model"] = model
    return found


def _made(teacher: Any, sizes: Sizes, streams: Streams) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield a name, a model of two loops (or of half the layers), and how to train it, for every variant."""
    for init in ("stepwise", "lower", "average"):
        yield init.removesuffix("wise"), lm.to_recursive(teacher, 2, init), {}
    for kind in sizes.distillations:
        yield f"step, {kind}", lm.to_recursive(teacher, 2), {"teacher": teacher, "distillation": kind}
    for rank in sizes.ranks:
        yield f"average, rank {rank}", lm.to_recursive(teacher, 2, "average", rank, random_state=streams), {}
    zero = lm.to_recursive(teacher, 2, "average", sizes.ranks[-1], "zero", random_state=streams)
    yield f"average, rank {sizes.ranks[-1]}, zero start", zero, {}
    with streams.torch_global("scratch"):
        looped = lm.RecursiveForCausalLM(lm.to_recursive(teacher, 2).config)
        half = _llama(sizes, sizes.layers // 2)
    yield "random weights", looped, {"rate": sizes.learning_rate}
    yield "half the layers, scratch", half, {"rate": sizes.learning_rate}


class _Lab:
    """Data and training runs of one seed."""

    def __init__(self, sizes: Sizes, setting: Setting):
        self.sizes, self.device = sizes, setting.device
        self.streams = setting.streams.child("relaxed")
        parts = [load_corpus(name, setting.data_dir) for name in sizes.corpora]
        self._draw = draw_windows(np.concatenate([one.train for one in parts]), sizes.context)
        held_out = np.concatenate([one.validation for one in parts])
        self.validation = validation_windows(held_out, sizes.context, sizes.validation_windows)

    def loss(self, model: Any) -> float:
        """Return the validation loss in nats per byte."""
        return validation_loss(model, self.validation, batch_size=32)

    def uptrain(self, model: Any, data: str, early_exit: lm.EarlyExitLoss | None) -> Any:
        """Return a copy of a model that was trained on."""
        model = copy.deepcopy(model)
        self.train(model, data, self.sizes.steps, self.sizes.uptraining_rate, early_exit=early_exit)
        return model

    def train(self, model: Any, data: str, steps: int, rate: float, **options: Any) -> None:
        """Train a model in place on windows drawn for `data`; `options` are of `UptrainTrainer`."""
        train_with(
            functools.partial(lm.UptrainTrainer, **options),
            model,
            self._draw(steps * self.sizes.batch_size, self.streams.numpy(data)),
            self.device,
            batch_size=self.sizes.batch_size,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(steps // 20, 1),
            adam_beta2=0.95,
            seed=self.streams.seed("trainer"),
        )


def _llama(sizes: Sizes, layers: int | None = None) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**byte_sizes(sizes.width, layers or sizes.layers, sizes.heads, sizes.context)))


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6.4, 4.8), layout="constrained")
    DRAWINGS[claim](canvas.add_subplot(), result)
    return canvas


def _draw_variants(axes: Any, result: Result) -> None:
    places = np.arange(len(result.rows))[::-1]
    axes.barh(places + 0.2, result.arrays["before"], 0.4, label="before uptraining", color="#bbbbbb")
    axes.barh(places - 0.2, result.arrays["after"], 0.4, label="after", color="#0072b2")
    axes.axvline(result.scalars["teacher_loss"], ls="--", color="#d55e00", label="full-size model")
    axes.set_yticks(places, result.rows)
    axes.set(xlabel="validation loss (nats per byte)", xlim=(result.scalars["teacher_loss"] - 0.3, None))
    axes.legend(loc="center right")


def _draw_curve(axes: Any, result: Result) -> None:
    ranks = result.arrays["rank"]
    for name, colour in (("before", "#bbbbbb"), ("after", "#0072b2")):
        axes.plot(ranks, result.arrays[f"rank_{name}"], marker="o", color=colour, label=f"{name} uptraining")
    axes.axhline(result.scalars["zero_start_loss"], ls=":", color="#009e73", label="largest rank, start from zero")
    axes.axhline(result.scalars["teacher_loss"], ls="--", color="#d55e00", label="full-size model")
    axes.set(xlabel="rank of the deltas of an averaged model (0: none)", ylabel="validation loss (nats per byte)")
    axes.legend()


def _draw_exits(axes: Any, result: Result) -> None:
    loops = np.arange(1, len(result.arrays["loss_before"]) + 1)
    for name, label in (
        ("before", "uptrained"),
        ("plain", "trained on, final loop only"),
        ("exits", "trained on, aggressive (0.1)"),
        ("weighted", "trained on, weighted"),
    ):
        axes.plot(loops, result.arrays[f"loss_{name}"], marker="o", label=label)
    axes.set(xlabel="exit after loop", ylabel="validation loss (nats per byte)", xticks=loops)
    axes.legend()


def _draw_sizes(axes: Any, result: Result) -> None:
    axes.plot([0, 2], [0, 2], color="#888888", lw=1, label="equal")
    axes.plot(result.arrays["published"], result.arrays["ours"], "o", label="20 conversions")
    axes.set(xlabel="published size (billion parameters)", ylabel="size of our models (billion parameters)")
    axes.legend()


def _draw_lines(axes: Any, result: Result) -> None:
    axes.plot(result.arrays["x"], result.arrays["y"], marker="o", label=result.params["lines"])
    axes.set(xlabel=result.params["xlabel"], ylabel=result.params["ylabel"], yscale=result.params["yscale"])
    axes.legend()


UPTRAINED = (
    "initialisation-order",
    "random-weights",
    "relaxed-loss",
    "relaxed-recovers",
    "svd-over-zero",
    "distillation",
)
MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "exact-at-full-rank": _exactness,
    "eckart-young": _eckart_young,
    "published-sizes": _sizes,
    **dict.fromkeys(UPTRAINED, _uptraining),
    "rank-curve": _uptraining,
    "early-exit": _early_exit,
}
DRAWINGS: dict[str, Callable[[Any, Result], None]] = {
    "exact-at-full-rank": _draw_lines,
    "eckart-young": _draw_lines,
    "published-sizes": _draw_sizes,
    **dict.fromkeys(UPTRAINED, _draw_variants),
    "rank-curve": _draw_curve,
    "early-exit": _draw_exits,
}
STUDY = Study("lm.relaxed_recursive", MEASUREMENTS, scales=tuple(SIZES), gpu=True)
run = STUDY.run
