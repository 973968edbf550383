"""Re-measure the claims of the card: exact identities, published sizes, and uptraining of byte-level models."""

from __future__ import annotations

import copy
import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from natwise.core.random import Streams, global_generators_kept
from natwise.core.validation import check_device, check_option
from natwise.datasets.language import N_BYTES, draw_windows, load_corpus
from natwise.lm._study import byte_llama, training_arguments, validation_loss
from natwise.lm.relaxed_recursive import EarlyExitLoss, evaluate_exits
from natwise.result import Result, provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "lm.relaxed_recursive"
Found = tuple[dict[str, Any], dict[str, float], dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """Sizes of one scale."""

    corpus: str
    width: int
    layers: int
    heads: int
    context: int
    batch_size: int
    teacher_steps: int
    steps: int
    rank: int
    small_rank: int
    validation_windows: int
    learning_rate: float = 3e-3  # from scratch
    uptraining_rate: float = 1e-3


SHAKESPEARE = "text/tinyshakespeare.txt"
SETTINGS = {
    "ci": Setting(SHAKESPEARE, 64, 4, 4, 64, 16, 300, 40, 24, 6, 64),
    "small": Setting(SHAKESPEARE, 96, 6, 4, 128, 16, 900, 100, 32, 8, 128),
    "paper": Setting(
        "text/war_and_peace_first_two_thirds.txt", 512, 12, 8, 512, 64, 3000, 500, 128, 32, 128, 1e-3, 5e-4
    ),
}

# Published sizes without embeddings, in billions, by loops and rank; shapes as published with the models.
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
    canvas = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = canvas.add_subplot()
    if claim in UPTRAINED:
        _draw_variants(axes, result)
    elif claim == "early-exit":
        loops = np.arange(1, len(result.arrays["loss_before"]) + 1)
        for name, label in (
            ("before", "uptrained"),
            ("plain", "trained on, final loop only"),
            ("exits", "trained on, early exits"),
        ):
            axes.plot(loops, result.arrays[f"loss_{name}"], marker="o", label=label)
        axes.set(xlabel="exit after loop", ylabel="validation loss (nats per byte)", xticks=loops)
        axes.legend()
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
    places = np.arange(len(result.rows))
    axes.barh(places + 0.2, result.arrays["before"], 0.4, label="before uptraining", color="#bbbbbb")
    axes.barh(places - 0.2, result.arrays["after"], 0.4, label="after", color="#0072b2")
    axes.axvline(result.scalars["teacher_loss"], ls="--", color="#d55e00", label="full-size model")
    axes.set_yticks(places, result.rows)
    axes.set(xlabel="validation loss (nats per byte)", xlim=(result.scalars["teacher_loss"] - 0.3, None))
    axes.legend()


def _exactness(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    """Convert a model with unequal norms at growing rank: the logits come to be the source's, when norms are folded."""
    from natwise.lm import to_recursive

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
                model = to_recursive(source, 2, "average", rank, "svd", folds)
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
    """Count parameters of the published conversions, on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from natwise.lm import to_recursive

    rows, ours, published = [], [], []
    for family, table in SIZES.items():
        with torch.device("meta"):
            source = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPES[family]))
        for (loops, rank), size in table.items():
            model = to_recursive(source, loops, "average", rank)
            inside = [
                p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name
            ]
            rows.append(f"{family}, {loops} loops, rank {rank}")
            ours.append(sum(inside) / 1e9)
            published.append(size)
    arrays = {"ours": np.array(ours), "published": np.array(published)}
    worst = float(np.abs(arrays["ours"] - arrays["published"]).max())
    return arrays, {"largest_difference": worst}, {"rows": rows}


def _uptraining(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    """Uptrain every variant of one trained model for the same number of steps."""
    runs = _variants(scale, seed, None if data_dir is None else os.fspath(data_dir), device)
    names = list(runs["after"])
    arrays = {
        "before": np.array([runs["before"][name] for name in names]),
        "after": np.array([runs["after"][name] for name in names]),
        "parameters": np.array([runs["parameters"][name] for name in names]),
    }
    after = runs["after"]
    order = [after[name] for name in ("step", "lower", "average", "random weights")]
    scalars = {f"{name.replace(',', '').replace(' ', '_')}_loss": value for name, value in after.items()}
    scalars |= {
        "teacher_loss": runs["teacher"],
        "relaxed_excess": after["relaxed"] - runs["teacher"],
        "zero_minus_svd": after["relaxed, zero start"] - after["relaxed"],
        "smallest_gap": min(float(gap) for gap in np.diff(order)),
        "random_minus_worst": after["random weights"] - max(after["step"], after["lower"], after["average"]),
    }
    setting = SETTINGS[scale]
    return (
        arrays,
        scalars,
        {"rows": names, "steps": setting.steps, "rank": setting.rank, "small_rank": setting.small_rank},
    )


def _early_exit(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    """Train the uptrained model on, with and without losses at early exits."""
    runs = _variants(scale, seed, None if data_dir is None else os.fspath(data_dir), device)
    lab, model = runs["lab"], runs["step model"]
    states = {
        "before": model,
        "plain": lab.uptrain(model, "more", None),
        "exits": lab.uptrain(model, "more", EarlyExitLoss()),
    }
    found = {name: evaluate_exits(one, lab.validation) for name, one in states.items()}
    arrays = {f"loss_{name}": result.arrays["loss"] for name, result in found.items()}
    arrays |= {f"agreement_{name}": result.arrays["agreement"] for name, result in found.items()}
    scalars = {
        "first_loop_gain": float(arrays["loss_plain"][0] - arrays["loss_exits"][0]),
        "final_cost": float(arrays["loss_exits"][-1] - arrays["loss_plain"][-1]),
        **{f"mean_exit_{name}": result.scalars["mean_exit"] for name, result in found.items()},
    }
    return arrays, scalars, {"steps": SETTINGS[scale].steps}


UPTRAINED = ("initialisation-order", "random-weights", "relaxed-recovers", "svd-over-zero")
STUDIES: dict[str, Callable[[str, int, Any, str], Found]] = {
    "exact-at-full-rank": _exactness,
    "eckart-young": _eckart_young,
    "published-sizes": _sizes,
    **dict.fromkeys(UPTRAINED, _uptraining),
    "early-exit": _early_exit,
}


@functools.lru_cache(maxsize=4)
def _variants(scale: str, seed: int, data_dir: str | None, device: str) -> dict[str, Any]:
    """Train the source and uptrain its variants; all claims read the same runs."""
    from natwise.lm import RecursiveForCausalLM, to_recursive

    setting = SETTINGS[scale]
    lab = _Lab(setting, load_corpus(setting.corpus, data_dir), seed, device)
    with lab.streams.torch_global("teacher"):
        teacher = _llama(setting)
    lab.train(teacher, "teacher", setting.teacher_steps, setting.learning_rate)
    made: dict[str, Any] = {
        name: to_recursive(teacher, 2, {"step": "stepwise"}.get(name, name)) for name in ("step", "lower", "average")
    }
    made["step, distilled"] = to_recursive(teacher, 2, "stepwise")
    streams = {"random_state": lab.streams}
    made["relaxed"] = to_recursive(teacher, 2, "average", setting.rank, **streams)
    made["relaxed, zero start"] = to_recursive(teacher, 2, "average", setting.rank, "zero", **streams)
    made["relaxed, small rank"] = to_recursive(teacher, 2, "average", setting.small_rank, **streams)
    with lab.streams.torch_global("scratch"):
        made["random weights"] = RecursiveForCausalLM(made["step"].config)
        made["half the layers, scratch"] = _llama(setting, setting.layers // 2)
    found: dict[str, Any] = {"teacher": lab.loss(teacher), "before": {}, "after": {}, "parameters": {}, "lab": lab}
    for name, model in made.items():
        found["before"][name] = lab.loss(model.to(device))
        found["parameters"][name] = sum(p.numel() for p in model.base_model.layers.parameters())
        new = name in ("random weights", "half the layers, scratch")
        rate = setting.learning_rate if new else setting.uptraining_rate
        lab.train(model, "data", setting.steps, rate, teacher=teacher if "distilled" in name else None)
        found["after"][name] = lab.loss(model)
    return {**found, "step model": made["step"]}


class _Lab:
    """Data and training runs of one seed."""

    def __init__(self, setting: Setting, corpus: Any, seed: int, device: str):
        self.setting, self.corpus, self.device = setting, corpus, device
        self.streams = Streams.of(seed).child("relaxed")
        rng = np.random.default_rng(0)  # the same validation for all seeds
        self.validation = draw_windows(corpus.validation, setting.context)(setting.validation_windows, rng)

    def loss(self, model: Any) -> float:
        """Return the validation loss in nats per byte."""
        return validation_loss(model, self.validation, batch_size=32)

    def uptrain(self, model: Any, data: str, early_exit: EarlyExitLoss | None) -> Any:
        """Return a copy of a model that was trained on."""
        model = copy.deepcopy(model)
        self.train(model, data, self.setting.steps, self.setting.uptraining_rate, early_exit=early_exit)
        return model

    def train(self, model: Any, data: str, steps: int, rate: float, **options: Any) -> None:
        """Train a model in place on windows drawn for `data`."""
        from transformers import PrinterCallback

        from natwise.lm import UptrainTrainer

        rng = self.streams.numpy(data)
        ids = draw_windows(self.corpus.train, self.setting.context)(steps * self.setting.batch_size, rng)
        examples = [{"input_ids": one, "labels": one} for one in ids]
        with tempfile.TemporaryDirectory() as folder, global_generators_kept():
            trainer = UptrainTrainer(model.train(), self._arguments(folder, steps, rate), examples, **options)
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
