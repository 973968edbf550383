"""Re-measure the claims of the card on character models, beside plain training at equal steps and at equal flops."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from natwise.datasets import local
from natwise.datasets.language import draw_windows, load_corpus
from natwise.lm._study import train_with, validation_loss, validation_windows
from natwise.lm.salt import SaltSchedule, salt_loss, select_sequences, sequence_scores
from natwise.result import Result
from natwise.study import Found, Setting, Study, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHT = 0.667
N_EVALUATIONS = 8
COLOURS = {"baseline": "#555555", "salt": "#0072b2", "rkd": "#d55e00", "selected": "#cc79a7", "teacher": "#009e73"}
CURVES = {
    "salt-gain": ("baseline", "salt"),
    "rkd-gap": ("baseline", "rkd", "salt"),
    "steps-to-baseline": ("baseline", "salt"),
    "selection": ("selected", "salt"),
}
DIFFERENCES = {
    "baseline_minus_salt": "baseline",
    "rkd_minus_salt": "rkd",
    "equal_flops_minus_salt": "baseline at\nequal flops",
    "selected_minus_salt": "selected",
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of one scale: networks as (width, layers, heads); steps of the student, its teacher, and with a teacher."""

    corpus: str
    student: tuple[int, int, int]
    teacher: tuple[int, int, int]
    steps: int
    teacher_steps: int
    kd_steps: int
    context: int
    batch_size: int
    learning_rate: float
    seeds: int
    warmup_steps: int = 50
    validation_windows: int = 256


SIZES = {
    "ci": Sizes(
        "text/tinyshakespeare.txt", (96, 2, 4), (32, 1, 2), 400, 1500, 100, 64, 8, 2e-3, 1, validation_windows=128
    ),
    "small": Sizes("text/tinyshakespeare.txt", (96, 2, 4), (32, 1, 2), 800, 1500, 200, 64, 16, 2e-3, 3),
    "paper": Sizes(
        "text/war_and_peace_first_two_thirds.txt", (512, 8, 8), (256, 4, 4), 6000, 6000, 1500, 256, 64, 1e-3, 3, 375
    ),
}


def _mixture_risk(setting: Setting) -> Found:
    """Few samples of a categorical variable: the loss's minimiser, its risk over all samples, and the best weight."""
    p, q = np.array([0.6, 0.25, 0.1, 0.05]), np.array([0.5, 0.3, 0.15, 0.05])
    weights, sizes = np.linspace(0, 1, 41), (2, 3, 5)
    risk, off = np.zeros((len(sizes), len(weights))), 0.0
    for i, n in enumerate(sizes):
        samples = np.array(list(product(range(4), repeat=n)))
        chance = p[samples].prod(axis=1)
        counts = (samples[:, :, None] == np.arange(4)).sum(axis=1) / n
        for j, weight in enumerate(weights):
            learned = (1 - weight) * counts + weight * q
            risk[i, j] = chance @ ((learned - p) ** 2).sum(axis=1)
        variance, bias = (1 - (p**2).sum()) / n, ((q - p) ** 2).sum()
        best = weights[risk[i].argmin()]
        off = max(off, abs(best - variance / (variance + bias)))
    gradient = _gradient_at_mixture(p, q, weight=0.4)
    return Found({"weight": weights, "risk": risk}, {"largest_miss": off, "gradient": gradient}, {"n": sizes})


def _gradient_at_mixture(p: np.ndarray, q: np.ndarray, weight: float) -> float:
    """Return the largest entry of the gradient of `salt_loss` where (1 - w) p_hat + w q says it is zero."""
    labels = torch.tensor([0, 0, 0, 1, 2])
    frequencies = torch.bincount(labels, minlength=4) / torch.tensor(5.0, dtype=torch.float64)
    logits = ((1 - weight) * frequencies + weight * torch.from_numpy(q)).log().requires_grad_()
    loss = salt_loss(logits.expand(5, 4), torch.from_numpy(q).log().expand(5, 4), labels, weight)
    return float(torch.autograd.grad(loss, logits)[0].abs().max())


def _experiment(setting: Setting) -> Found:
    """Train every kind of student from the same weights on the same data, for some seeds; all claims read it."""
    sizes = SIZES[setting.scale]
    local.find(sizes.corpus, setting.data_dir)  # every claim notes the text, whichever trains
    runs = [_compare(replace(setting, seed=setting.seed + i)) for i in range(sizes.seeds)]
    arrays = {"steps": runs[0]["steps"], "equal_flops_loss": np.array([one["equal_flops"] for one in runs])}
    scalars = {name: float(np.mean([one[name] for one in runs])) for name in ("teacher_loss", "early_teacher_loss")}
    final = {"equal_flops": arrays["equal_flops_loss"]}
    for name in ("baseline", "salt", "rkd", "selected"):
        arrays[f"loss_{name}"] = np.array([one[name] for one in runs])
        final[name] = arrays[f"loss_{name}"][:, -1]
    arrays["share_of_steps"] = np.array([_share_of_steps(one) for one in runs])
    arrays |= {f"{name}_minus_salt": final[name] - final["salt"] for name in final if name != "salt"}
    scalars |= {f"{name}_loss": float(values.mean()) for name, values in final.items()}
    for name in (*DIFFERENCES, "share_of_steps"):
        scalars |= _interval(name, arrays[name])
    scalars["selection_gain"] = -scalars["selected_minus_salt"]
    params = {name: getattr(sizes, name) for name in ("kd_steps", "seeds", "student", "teacher", "steps")}
    params |= {"equal_flops_steps": runs[0]["equal_steps"], "weight": WEIGHT, "inverse_temperature": 1.0, "k": 10}
    return Found(arrays, scalars, params)


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Return the mean of values (seeds,), its 95 % t interval, and the extremes."""
    found = {
        name: float(values.mean()),
        f"{name}_smallest": float(values.min()),
        f"{name}_largest": float(values.max()),
    }
    if len(values) > 1:
        mean, half = mean_interval(values)
        found |= {f"{name}_low": mean - half, f"{name}_high": mean + half}
    return found


def _share_of_steps(one: dict[str, Any]) -> float:
    """Return when SALT first reaches the baseline's final loss, as a share of all steps; linear between evaluations."""
    below = np.flatnonzero(one["salt"] <= one["baseline"][-1])
    if not len(below) or below[0] == 0:
        return 1.0
    i = below[0]
    before, after = one["salt"][i - 1], one["salt"][i]
    step = np.interp(-one["baseline"][-1], [-before, -after], one["steps"][i - 1 : i + 1])
    return float(step / one["steps"][-1])


@functools.lru_cache(maxsize=3)  # the seeds of one experiment
def _compare(setting: Setting) -> dict[str, Any]:
    """Train a teacher and all students of one seed."""
    sizes = SIZES[setting.scale]
    lab = _Lab(sizes, setting)
    teacher, early = lab.teacher()
    found: dict[str, Any] = {"teacher_loss": lab.loss(teacher), "early_teacher_loss": lab.loss(early)}
    for name, kd_steps in (("baseline", 0), ("salt", sizes.kd_steps), ("rkd", sizes.steps)):
        found["steps"], found[name] = lab.train(teacher, kd_steps, sizes.steps)
    pool = lab.sequences("pool", 2 * sizes.kd_steps * sizes.batch_size)
    chosen = pool[select_sequences(lab.scores(early, pool), 0.5)]
    found["selected"] = lab.train(teacher, sizes.kd_steps, sizes.steps, first=chosen)[1]
    # in units of a student's step (3 forward passes): the teacher's training, and its forward passes beside the student
    ratio = lab.multiplications(sizes.teacher) / lab.multiplications(sizes.student)
    found["equal_steps"] = round(sizes.steps + ratio * (sizes.teacher_steps + sizes.kd_steps / 3))
    found["equal_flops"] = lab.train(None, 0, found["equal_steps"])[1][-1]
    return found


class _Lab:
    """Networks, data and training runs of one seed."""

    def __init__(self, sizes: Sizes, setting: Setting):
        self.sizes, self.device = sizes, setting.device
        self.streams = setting.streams.child("salt")
        corpus = load_corpus(sizes.corpus, setting.data_dir)
        characters = np.unique(np.concatenate([corpus.train, corpus.validation]))
        self.n_characters = len(characters)
        train, validation = (np.searchsorted(characters, text) for text in (corpus.train, corpus.validation))
        self._draw = draw_windows(train, sizes.context + 1)
        self.validation = validation_windows(validation, sizes.context + 1, sizes.validation_windows)

    def network(self, name: str, size: tuple[int, int, int]) -> Any:
        """Return a fresh GPT-2 over characters: learned positions, an output matrix of its own, no dropout."""
        from transformers import GPT2Config, GPT2LMHeadModel

        width, layers, heads = size
        config = GPT2Config(
            vocab_size=self.n_characters, n_positions=self.sizes.context + 1, n_embd=width, n_layer=layers,
            n_head=heads, activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            tie_word_embeddings=False, use_cache=False, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        with self.streams.torch_global(name):
            model = GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"  # transformers warns about this class's name otherwise
        return model

    def multiplications(self, size: tuple[int, int, int]) -> int:
        """Return the multiplications per token of a forward pass: blocks, attention, output matrix."""
        width, layers, _ = size
        return layers * (12 * width**2 + 2 * self.sizes.context * width) + self.n_characters * width

    def sequences(self, name: str, n: int) -> torch.Tensor:
        """Return windows (n, context + 1) of the training text."""
        return self._draw(n, self.streams.numpy(name))

    def teacher(self) -> tuple[Any, Any]:
        """Return the trained teacher, and an early checkpoint of it."""
        model = self.network("teacher", self.sizes.teacher)
        early = copy.deepcopy(model)
        steps = self.sizes.teacher_steps

        def keep(step: int) -> None:
            if step == steps // 8:
                early.load_state_dict(model.state_dict())

        self._fit(model, None, SaltSchedule(steps, 0), "teacher-data", keep)
        return model.eval(), early.to(model.device).eval()

    def train(
        self, teacher: Any, kd_steps: int, steps: int, first: torch.Tensor | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and losses (evaluations,) of a fresh student; `first` (n, tokens) is for the first stage."""
        model = self.network("student", self.sizes.student)
        marks = {round(steps * (i + 1) / N_EVALUATIONS) for i in range(N_EVALUATIONS)}
        losses: dict[int, float] = {}

        def evaluate(step: int) -> None:
            if step in marks:
                losses[step] = self.loss(model)
                model.train()

        self._fit(model, teacher, SaltSchedule(steps, kd_steps, WEIGHT), "data", evaluate, first)
        return np.array(list(losses)), np.array(list(losses.values()))

    def loss(self, model: Any) -> float:
        """Return the validation loss in nats per character."""
        return validation_loss(model, self.validation)

    def scores(self, model: Any, sequences: torch.Tensor) -> np.ndarray:
        """Return the selection scores of sequences under an early checkpoint."""
        found = []
        for ids in sequences.split(256):
            with torch.no_grad():
                logits = model(input_ids=ids.to(model.device)).logits.cpu()
            found.append(sequence_scores(logits[:, :-1], ids[:, 1:], k=10))
        return torch.cat(found).numpy()

    def _fit(
        self, model: Any, teacher: Any, schedule: SaltSchedule, data: str, after_step: Callable[[int], None],
        first: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        from natwise.lm.salt import SaltTrainer

        ids = self.sequences(data, schedule.total_steps * self.sizes.batch_size)
        if first is not None:
            ids = torch.cat([first, ids[len(first) :]])
        train_with(
            functools.partial(SaltTrainer, teacher=teacher, schedule=schedule, callbacks=[_calling(after_step)]),
            model,
            ids,
            self.device,
            batch_size=self.sizes.batch_size,
            learning_rate=self.sizes.learning_rate,
            adam_beta2=0.98,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            warmup_steps=self.sizes.warmup_steps,
            seed=self.streams.seed("trainer"),
        )


def _calling(after_step: Callable[[int], None]) -> Any:
    """Return a callback for transformers' Trainer."""
    from transformers import TrainerCallback

    class Calling(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            after_step(state.global_step)

    return Calling()


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    from matplotlib.figure import Figure

    if claim == "mixture-risk":
        canvas = Figure(figsize=(6.4, 4.0), layout="constrained")
        _draw_risk(canvas.add_subplot(), result)
        return canvas
    canvas = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(3, 2))
    if claim == "steps-to-baseline":
        ends = np.array([result.scalars["share_of_steps"], 1.0]) * result.params["steps"]
        left.plot(ends, [result.scalars["baseline_loss"]] * 2, "o-.", color="black", label="baseline's final loss")
    _draw_curves(left, result, CURVES[claim])
    _draw_differences(right, result)
    return canvas


def _draw_risk(axes: Any, result: Result) -> None:
    axes.plot(result.arrays["weight"], result.arrays["risk"].T, label=[f"{n} samples" for n in result.params["n"]])
    axes.set(xlabel="weight of the teacher", ylabel="expected squared error of probabilities", yscale="log")
    axes.legend()


def _draw_curves(axes: Any, result: Result, names: tuple[str, ...]) -> None:
    """Mean over the seeds, and the range, of validation losses; the start, where all are alike, is cut off."""
    steps = result.arrays["steps"]
    for name in names:
        curves, colour = result.arrays[f"loss_{name}"], COLOURS[name]
        axes.plot(steps, curves.mean(axis=0), label=name, color=colour)
        axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), alpha=0.2, color=colour)
    axes.axhline(result.scalars["teacher_loss"], ls=":", color=COLOURS["teacher"], label="teacher")
    axes.axvline(result.params["kd_steps"], ls="--", lw=1, color="#888888", label="SALT's teacher stops")
    low = min(values.min() for name, values in result.arrays.items() if name.startswith("loss_"))
    axes.set(xlabel="step", ylabel="validation loss (nats per character)", ylim=(low - 0.03, low + 0.6))
    axes.legend()


def _draw_differences(axes: Any, result: Result) -> None:
    """Loss minus SALT's at the end: a dot per seed, the mean and its 95 % interval."""
    names = list(DIFFERENCES)
    for place, name in enumerate(names):
        values = result.arrays[name]
        axes.plot(values, np.full(len(values), place), "o", color=COLOURS["salt"], alpha=0.5)
        mean = result.scalars[name]
        low, high = (result.scalars.get(f"{name}_{end}", mean) for end in ("low", "high"))  # one seed has none
        bar = [[mean - low], [high - mean]]
        axes.errorbar(mean, place + 0.2, xerr=bar, fmt="D", color="black", capsize=3)
    axes.axvline(0.0, lw=1, color="#888888")
    axes.set_yticks(range(len(names)), list(DIFFERENCES.values()))
    axes.set(xlabel="loss minus SALT's at the end (nats)", ylim=(len(names) - 0.5, -0.5))


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "mixture-risk": _mixture_risk,
    "salt-gain": _experiment,
    "rkd-gap": _experiment,
    "steps-to-baseline": _experiment,
    "selection": _experiment,
}
STUDY = Study("lm.salt", MEASUREMENTS, scales=tuple(SIZES), gpu=True)
run = STUDY.run
