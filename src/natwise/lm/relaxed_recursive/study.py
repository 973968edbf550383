"""Re-measure the claims of the card: exact identities, published sizes, and uptraining of byte-level models."""

from __future__ import annotations

import copy
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from natwise import lm  # its names are imported on first use: a figure needs no transformers
from natwise.core.distillation import KINDS
from natwise.core.random import Streams, global_generators_kept
from natwise.core.validation import check_device, check_option
from natwise.datasets import local
from natwise.datasets.language import N_BYTES, Corpus, draw_windows, load_corpus
from natwise.lm._study import byte_llama, training_arguments, validation_loss
from natwise.result import Result, provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "lm.relaxed_recursive"
Found = tuple[dict[str, Any], dict[str, float], dict[str, Any]]


@dataclass(frozen=True)
class Setting:
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
SETTINGS = {
    "ci": Setting(SHAKESPEARE, 64, 4, 4, 64, 16, 300, 40, (6, 24), 64, KINDS[:1]),
    "small": Setting(SHAKESPEARE, 96, 6, 4, 128, 16, 900, 100, (8, 32), 128),
    "paper": Setting(NOVEL_AND_WIKI, 512, 12, 8, 512, 64, 1800, 300, (8, 32, 128), 256, KINDS, 1e-3, 5e-4),
}

# Published sizes of the matrices in the layers, in billions, by loops and rank; shapes as published with the models.
SIZES: dict[str, dict[tuple[int, int | None], float]] = {
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


def run(
    claim: str, *, scale: str, seed: int, data_dir: str | os.PathLike[str] | None = None, device: str = "cpu"
) -> Result:
    """Measure one claim of the card; the scalars hold its metric and what every baseline reaches.

    Parameters
    ----------
    claim : str
        Its id on the card.
    scale : {"ci", "small", "paper"}
    seed : int
        Seeds weights and the order of the data.
    data_dir : path, optional
        Folder of local data. Default: ``$NATWISE_DATA``.
    device : str
        Where networks are trained.
    """
    check_option("claim", claim, list(STUDIES))
    check_option("scale", scale, list(SETTINGS))
    check_device("device", device)
    with provenance(seed=seed, device=device) as record:
        arrays, scalars, params = STUDIES[claim](scale, seed, data_dir, device)
    rows = params.pop("rows", ())
    return Result(
        f"{KIND}/{claim}",
        arrays=arrays,
        scalars=scalars,
        rows=rows,
        params={"scale": scale, **params},
        provenance=record,
    )


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    from matplotlib.figure import Figure

    check_option("claim", claim, list(STUDIES))
    canvas = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = canvas.add_subplot()
    if claim == "rank-curve":
        _draw_curve(axes, result)
    elif claim in UPTRAINED:
        _draw_variants(axes, result)
    elif claim == "early-exit":
        _draw_exits(axes, result)
    elif claim == "published-sizes":
        axes.plot([0, 2], [0, 2], color="#888888", lw=1, label="equal")
        axes.plot(result.arrays["published"], result.arrays["ours"], "o", label="20 conversions")
        axes.set(xlabel="published size (billion parameters)", ylabel="size of our models (billion parameters)")
        axes.legend()
    else:
        axes.plot(result.arrays["x"], result.arrays["y"], marker="o", label=result.params["lines"])
        axes.set(xlabel=result.params["xlabel"], ylabel=result.params["ylabel"], yscale=result.params["yscale"])
        axes.legend()
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


def _exactness(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    """Convert a model with unequal norms at growing rank: the logits come to be the source's, when norms are folded."""
    streams = Streams.of(seed).child("exact")
    with streams.torch_global("source"):
        source = _llama(SETTINGS["ci"]).eval()
        for parameter in source.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        ids = torch.randint(N_BYTES, (4, 32))
    ranks, width = [1, 4, 16, 32, 48, 64], SETTINGS["ci"].width
    off: dict[bool, list[float]] = {True: [], False: []}
    with torch.no_grad():
        for rank in ranks:
            for folds, found in off.items():
                model = lm.to_recursive(source, 2, "average", rank, "svd", folds)
                found.append(float((model(ids).logits - source(ids).logits).abs().max()))
    arrays = {"x": np.array(ranks), "y": np.array([off[True], off[False]]).T}
    scalars = {"logit_difference": off[True][-1], "not_folded": off[False][-1]}
    labels = {"xlabel": f"rank (full: {width})", "ylabel": "largest difference of logits", "yscale": "log"}
    return arrays, scalars, {**labels, "lines": ["norms folded", "norms shared as they are"]}


def _eckart_young(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    """Decompose random matrices, whose flat spectrum is the hardest case, by the randomised method."""
    from natwise.lm.relaxed_recursive._lowrank import low_rank

    generator = Streams.of(seed).torch("matrices")
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
    return {"x": np.array(ranks), "y": excess}, scalars, labels


def _sizes(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    """Count the entries of matrices in the published conversions, on the meta device.

    All 20 published numbers are met when embeddings, norms and biases are left out.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    rows, ours, published = [], [], []
    for family, table in SIZES.items():
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
    return arrays, {"largest_difference": worst}, {"rows": rows}


def _uptraining(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    """Uptrain every variant of one trained model for the same number of steps."""
    runs, setting = _runs(scale, seed, data_dir, device), SETTINGS[scale]
    names, before, after = list(runs["after"]), runs["before"], runs["after"]
    largest, order = setting.ranks[-1], [after[name] for name in ("step", "lower", "average", "random weights")]
    curve = ["average", *(f"average, rank {rank}" for rank in setting.ranks)]
    arrays = {
        "before": np.array(list(before.values())),
        "after": np.array(list(after.values())),
        "parameters": np.array(list(runs["parameters"].values())),
        "rank": np.array([0, *setting.ranks]),
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
    return arrays, scalars, {"rows": names, "steps": setting.steps, "ranks": list(setting.ranks)}


def _early_exit(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    """Train the uptrained model on, with and without losses at early exits."""
    runs = _runs(scale, seed, data_dir, device)
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
    return arrays, scalars, {"steps": SETTINGS[scale].steps}


UPTRAINED = (
    "initialisation-order",
    "random-weights",
    "relaxed-loss",
    "relaxed-recovers",
    "svd-over-zero",
    "rank-curve",
    "distillation",
)
STUDIES: dict[str, Callable[[str, int, Any, str], Found]] = {
    "exact-at-full-rank": _exactness,
    "eckart-young": _eckart_young,
    "published-sizes": _sizes,
    **dict.fromkeys(UPTRAINED, _uptraining),
    "early-exit": _early_exit,
}


def _runs(scale: str, seed: int, data_dir: Any, device: str) -> dict[str, Any]:
    """Return what `_variants` found; every claim that reads it notes the same data files."""
    for name in SETTINGS[scale].corpora:
        local.find(name, data_dir)
    return _variants(scale, seed, None if data_dir is None else os.fspath(data_dir), device)


@functools.lru_cache(maxsize=4)
def _variants(scale: str, seed: int, data_dir: str | None, device: str) -> dict[str, Any]:
    """Train the source and uptrain its variants; all claims read the same runs.

    Returns
    -------
    dict
        ``before``, ``after`` (losses in nats per byte), ``parameters`` (in layers) by variant, the loss of the
        ``teacher``, the ``lab`` and the uptrained ``step model``.
    """
    setting = SETTINGS[scale]
    lab = _Lab(setting, _corpus(setting, data_dir), seed, device)
    with lab.streams.torch_global("teacher"):
        teacher = _llama(setting)
    lab.train(teacher, "teacher", setting.teacher_steps, setting.learning_rate)
    found: dict[str, Any] = {"teacher": lab.loss(teacher), "before": {}, "after": {}, "parameters": {}, "lab": lab}
    for name, model, options in _made(teacher, setting, lab.streams):
        found["before"][name] = lab.loss(model.to(device))
        found["parameters"][name] = sum(p.numel() for p in model.base_model.layers.parameters())
        lab.train(model, "data", setting.steps, **{"rate": setting.uptraining_rate, **options})
        found["after"][name] = lab.loss(model)
        if name == "step":
            found["step model"] = model
    return found


def _made(teacher: Any, setting: Setting, streams: Streams) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield a name, a model of two loops (or of half the layers), and how to train it, for every variant."""
    for init in ("stepwise", "lower", "average"):
        yield init.removesuffix("wise"), lm.to_recursive(teacher, 2, init), {}
    for kind in setting.distillations:
        yield f"step, {kind}", lm.to_recursive(teacher, 2), {"teacher": teacher, "distillation": kind}
    for rank in setting.ranks:
        yield f"average, rank {rank}", lm.to_recursive(teacher, 2, "average", rank, random_state=streams), {}
    zero = lm.to_recursive(teacher, 2, "average", setting.ranks[-1], "zero", random_state=streams)
    yield f"average, rank {setting.ranks[-1]}, zero start", zero, {}
    with streams.torch_global("scratch"):
        looped = lm.RecursiveForCausalLM(lm.to_recursive(teacher, 2).config)
        half = _llama(setting, setting.layers // 2)
    yield "random weights", looped, {"rate": setting.learning_rate}
    yield "half the layers, scratch", half, {"rate": setting.learning_rate}


def _corpus(setting: Setting, data_dir: str | None) -> Corpus:
    parts = [load_corpus(name, data_dir) for name in setting.corpora]
    return Corpus(np.concatenate([one.train for one in parts]), np.concatenate([one.validation for one in parts]))


class _Lab:
    """Data and training runs of one seed."""

    def __init__(self, setting: Setting, corpus: Corpus, seed: int, device: str):
        self.setting, self.corpus, self.device = setting, corpus, device
        self.streams = Streams.of(seed).child("relaxed")
        rng = np.random.default_rng(0)  # the same validation for all seeds
        self.validation = draw_windows(corpus.validation, setting.context)(setting.validation_windows, rng)

    def loss(self, model: Any) -> float:
        """Return the validation loss in nats per byte."""
        return validation_loss(model, self.validation, batch_size=32)

    def uptrain(self, model: Any, data: str, early_exit: lm.EarlyExitLoss | None) -> Any:
        """Return a copy of a model that was trained on."""
        model = copy.deepcopy(model)
        self.train(model, data, self.setting.steps, self.setting.uptraining_rate, early_exit=early_exit)
        return model

    def train(self, model: Any, data: str, steps: int, rate: float, **options: Any) -> None:
        """Train a model in place on windows drawn for `data`."""
        from transformers import PrinterCallback

        rng = self.streams.numpy(data)
        ids = draw_windows(self.corpus.train, self.setting.context)(steps * self.setting.batch_size, rng)
        examples = [{"input_ids": one, "labels": one} for one in ids]
        with tempfile.TemporaryDirectory() as folder, global_generators_kept():
            trainer = lm.UptrainTrainer(model.train(), self._arguments(folder, steps, rate), examples, **options)
            trainer.remove_callback(PrinterCallback)
            trainer.train()

    def _arguments(self, folder: str, steps: int, rate: float) -> Any:
        return training_arguments(
            folder,
            self.device,
            max_steps=steps,
            per_device_train_batch_size=self.setting.batch_size,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(steps // 20, 1),
            adam_beta2=0.95,
            seed=self.streams.seed("trainer"),
        )


def _llama(setting: Setting, layers: int | None = None) -> Any:
    return byte_llama(setting.width, layers or setting.layers, setting.heads, setting.context)
