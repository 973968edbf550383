"""Re-measure the claims of the card on byte-level models, beside plain training at equal steps and at equal flops."""

from __future__ import annotations

import copy
import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from natwise.core.random import Streams, global_generators_kept
from natwise.core.validation import check_option
from natwise.datasets.language import draw_windows, load_corpus
from natwise.lm._study import byte_llama, training_arguments, validation_loss
from natwise.lm.salt import SaltSchedule, salt_loss, select_sequences, sequence_scores
from natwise.result import Result, provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "lm.salt"
WEIGHT = 0.667
N_EVALUATIONS = 16
COLOURS = {"baseline": "#555555", "salt": "#0072b2", "rkd": "#d55e00", "selected": "#cc79a7", "teacher": "#009e73"}
Found = tuple[dict[str, Any], dict[str, float], dict[str, Any]]


@dataclass(frozen=True)
class Setting:
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
    validation_windows: int = 256


SETTINGS = {
    "ci": Setting("text/tinyshakespeare.txt", (64, 2, 2), (32, 1, 2), 240, 500, 60, 32, 16, 4e-3, 1),
    "small": Setting("text/tinyshakespeare.txt", (96, 2, 4), (64, 1, 2), 800, 1500, 200, 64, 16, 2e-3, 3),
    "paper": Setting(
        "text/war_and_peace_first_two_thirds.txt", (512, 8, 8), (256, 4, 4), 6000, 6000, 1500, 256, 64, 1e-3, 3
    ),
}


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
        Seeds weights, order of the data and the sequences of validation.
    data_dir : path, optional
        Folder of local data. Default: ``$NATWISE_DATA``.
    device : str
        Where networks are trained.
    """
    check_option("claim", claim, list(STUDIES))
    check_option("scale", scale, list(SETTINGS))
    with provenance(seed=seed, device=device) as record:
        arrays, scalars, params = STUDIES[claim](scale, seed, data_dir, device)
    params = {"scale": scale, **params}
    return Result(f"{KIND}/{claim}", arrays=arrays, scalars=scalars, params=params, provenance=record)


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    from matplotlib.figure import Figure

    check_option("claim", claim, list(STUDIES))
    canvas = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = canvas.add_subplot()
    if claim == "mixture-risk":
        axes.plot(result.arrays["weight"], result.arrays["risk"].T, label=[f"{n} samples" for n in result.params["n"]])
        axes.set(xlabel="weight of the teacher", ylabel="expected squared error of probabilities", yscale="log")
        axes.legend()
        return canvas
    steps = result.arrays["steps"]
    for name in ("baseline", "rkd", "salt", "selected"):
        if (key := f"loss_{name}") in result.arrays:
            curves, colour = result.arrays[key], COLOURS[name]
            axes.plot(steps, curves.mean(axis=0), label=name, color=colour)
            axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), alpha=0.2, color=colour)
    axes.axhline(result.scalars["teacher_loss"], ls=":", color=COLOURS["teacher"], label="teacher")
    axes.axvline(result.params["kd_steps"], ls="--", lw=1, color="#888888", label="SALT's teacher stops")
    axes.set(xlabel="step", ylabel="validation loss (nats per byte)")
    low = min(values.min() for name, values in result.arrays.items() if name.startswith("loss_"))
    axes.set_ylim(low - 0.05, low + 0.9)
    axes.legend()
    return canvas


def _mixture_risk(scale: str, seed: int, data_dir: Any, device: str) -> Found:
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
    return {"weight": weights, "risk": risk}, {"largest_miss": off, "gradient": gradient}, {"n": sizes}


def _gradient_at_mixture(p: np.ndarray, q: np.ndarray, weight: float) -> float:
    """Return the largest entry of the gradient of `salt_loss` where (1 - w) p_hat + w q says it is zero."""
    labels = torch.tensor([0, 0, 0, 1, 2])
    frequencies = torch.bincount(labels, minlength=4) / torch.tensor(5.0, dtype=torch.float64)
    logits = ((1 - weight) * frequencies + weight * torch.from_numpy(q)).log().requires_grad_()
    loss = salt_loss(logits.expand(5, 4), torch.from_numpy(q).log().expand(5, 4), labels, weight)
    return float(torch.autograd.grad(loss, logits)[0].abs().max())


def _gain(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    setting = SETTINGS[scale]
    runs = [_compare(scale, seed + i, _key(data_dir), device) for i in range(setting.seeds)]
    arrays = {"steps": runs[0]["steps"]}
    scalars = {"teacher_loss": float(np.mean([one["teacher_loss"] for one in runs]))}
    for name in ("baseline", "salt", "rkd"):
        arrays[f"loss_{name}"] = np.array([one[name] for one in runs])
        scalars[f"{name}_loss"] = float(arrays[f"loss_{name}"][:, -1].mean())
    equal = np.array([one["equal_flops"] for one in runs])
    scalars["equal_flops_loss"] = float(equal.mean())
    final = {name: arrays[f"loss_{name}"][:, -1] for name in ("baseline", "salt", "rkd")}
    scalars |= _gaps(final, equal)
    shares = [_share_of_steps(one) for one in runs]
    arrays["share_of_steps"] = np.array(shares)
    scalars["share_of_steps"] = float(np.mean(shares))
    params = {"kd_steps": setting.kd_steps, "equal_flops_steps": runs[0]["equal_steps"], "seeds": setting.seeds}
    return arrays, scalars, {**params, **_sizes(setting)}


def _gaps(final: dict[str, np.ndarray], equal: np.ndarray) -> dict[str, float]:
    gaps = {
        "baseline_minus_salt": final["baseline"] - final["salt"],
        "rkd_minus_salt": final["rkd"] - final["salt"],
        "equal_flops_minus_salt": equal - final["salt"],
    }
    found = {name: float(values.mean()) for name, values in gaps.items()}
    return found | {f"{name}_smallest": float(values.min()) for name, values in gaps.items()}


def _share_of_steps(one: dict[str, Any]) -> float:
    """Return when SALT first reaches the baseline's final loss, as a share of all steps; linear between evaluations."""
    below = np.flatnonzero(one["salt"] <= one["baseline"][-1])
    if not len(below) or below[0] == 0:
        return 1.0
    i = below[0]
    before, after = one["salt"][i - 1], one["salt"][i]
    step = np.interp(-one["baseline"][-1], [-before, -after], one["steps"][i - 1 : i + 1])
    return float(step / one["steps"][-1])


def _selection(scale: str, seed: int, data_dir: Any, device: str) -> Found:
    """SALT on the better half of a pool in its first stage, scored by an early checkpoint, against SALT on all."""
    setting = SETTINGS[scale]
    corpus = load_corpus(setting.corpus, data_dir)
    curves: dict[str, list[np.ndarray]] = {"salt": [], "selected": []}
    teachers = []
    for one in range(seed, seed + setting.seeds):
        lab = _Lab(setting, corpus, one, device)
        teacher, early = lab.teacher()
        teachers.append(lab.loss(teacher))
        pool = lab.sequences("pool", 2 * setting.kd_steps * setting.batch_size)
        chosen = pool[select_sequences(lab.scores(early, pool), 0.5)]
        steps, plain = lab.train(teacher, setting.kd_steps, setting.steps)
        curves["salt"].append(plain)
        curves["selected"].append(lab.train(teacher, setting.kd_steps, setting.steps, first=chosen)[1])
    arrays = {"steps": steps, **{f"loss_{name}": np.array(values) for name, values in curves.items()}}
    gains = arrays["loss_salt"][:, -1] - arrays["loss_selected"][:, -1]
    scalars = {"selection_gain": float(gains.mean()), "selection_gain_largest": float(gains.max())}
    scalars |= {f"{name}_loss": float(arrays[f"loss_{name}"][:, -1].mean()) for name in curves}
    scalars["teacher_loss"] = float(np.mean(teachers))
    return arrays, scalars, {"kd_steps": setting.kd_steps, "k": 10, **_sizes(setting)}


STUDIES: dict[str, Callable[[str, int, Any, str], Found]] = {
    "mixture-risk": _mixture_risk,
    "salt-gain": _gain,
    "rkd-gap": _gain,
    "steps-to-baseline": _gain,
    "selection": _selection,
}


@functools.lru_cache(maxsize=8)
def _compare(scale: str, seed: int, data_dir: str | None, device: str) -> dict[str, Any]:
    """Train all students of one seed; three claims read the same runs."""
    setting = SETTINGS[scale]
    lab = _Lab(setting, load_corpus(setting.corpus, data_dir), seed, device)
    teacher, _ = lab.teacher()
    found: dict[str, Any] = {"teacher_loss": lab.loss(teacher)}
    for name, kd_steps in (("baseline", 0), ("salt", setting.kd_steps), ("rkd", setting.steps)):
        found["steps"], found[name] = lab.train(teacher, kd_steps, setting.steps)
    # in units of a student's step (3 forward passes): the teacher's training, and its forward passes beside the student
    ratio = _n_weights(teacher) / _n_weights(lab.network("student", setting.student))
    found["equal_steps"] = round(setting.steps + ratio * (setting.teacher_steps + setting.kd_steps / 3))
    found["equal_flops"] = lab.train(None, 0, found["equal_steps"])[1][-1]
    return found


class _Lab:
    """Networks, data and training runs of one seed."""

    def __init__(self, setting: Setting, corpus: Any, seed: int, device: str):
        self.setting, self.corpus, self.device = setting, corpus, device
        self.streams = Streams.of(seed).child("salt")
        rng = np.random.default_rng(0)  # the same validation for all seeds
        self.validation = draw_windows(corpus.validation, setting.context + 1)(setting.validation_windows, rng)

    def network(self, name: str, size: tuple[int, int, int]) -> Any:
        with self.streams.torch_global(name):
            return byte_llama(*size, self.setting.context + 1, intermediate_size=8 * (size[0] // 3))

    def sequences(self, name: str, n: int) -> torch.Tensor:
        """Return windows (n, context + 1) of the training text."""
        return draw_windows(self.corpus.train, self.setting.context + 1)(n, self.streams.numpy(name))

    def teacher(self) -> tuple[Any, Any]:
        """Return the trained teacher, and an early checkpoint of it."""
        model = self.network("teacher", self.setting.teacher)
        states: dict[str, Any] = {}
        steps = self.setting.teacher_steps
        self._fit(model, None, SaltSchedule(steps, 0), "teacher-data", {steps // 8: states})
        early = copy.deepcopy(model)
        early.load_state_dict(states["state"])
        return model.eval(), early.eval()

    def train(
        self, teacher: Any, kd_steps: int, steps: int, first: torch.Tensor | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and validation losses of a fresh student; `first` replaces the data of the first stage."""
        model = self.network("student", self.setting.student)
        losses: dict[int, float] = {}
        marks = {round(steps * (i + 1) / N_EVALUATIONS): losses for i in range(N_EVALUATIONS)}
        self._fit(model, teacher, SaltSchedule(steps, kd_steps, WEIGHT), "data", marks, first)
        return np.array(list(losses)), np.array(list(losses.values()))

    def loss(self, model: Any) -> float:
        """Return the validation loss in nats per byte."""
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
        self, model: Any, teacher: Any, schedule: SaltSchedule, data: str, marks: dict[int, Any],
        first: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        from natwise.lm.salt import SaltTrainer

        ids = self.sequences(data, schedule.total_steps * self.setting.batch_size)
        if first is not None:
            ids = torch.cat([first, ids[len(first) :]])
        examples = [{"input_ids": one, "labels": one} for one in ids]
        with tempfile.TemporaryDirectory() as folder, global_generators_kept():
            options = self._arguments(folder, schedule)
            trainer = SaltTrainer(model, teacher, schedule, options, examples, callbacks=[_marker(self, marks)])
            trainer.train()

    def _arguments(self, folder: str, schedule: SaltSchedule) -> Any:
        return training_arguments(
            folder,
            self.device,
            max_steps=schedule.total_steps,
            per_device_train_batch_size=self.setting.batch_size,
            learning_rate=self.setting.learning_rate,
            adam_beta2=0.98,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            warmup_steps=max(schedule.total_steps // 16, 1),
            seed=self.streams.seed("trainer"),
        )


def _marker(lab: _Lab, marks: dict[int, Any]) -> Any:
    """Return a callback that writes down the validation loss, or the weights, after some steps."""
    from transformers import TrainerCallback

    class Marker(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
            step = state.global_step
            if step not in marks:
                return
            if len(marks) == 1:
                marks[step]["state"] = copy.deepcopy(model.state_dict())
            else:
                marks[step][step] = lab.loss(model)
                model.train()

    return Marker()


def _n_weights(model: Any) -> int:
    """Return the weights that a forward pass multiplies with; the embedding counts once, as the output matrix."""
    return sum(parameter.numel() for parameter in model.parameters())


def _sizes(setting: Setting) -> dict[str, Any]:
    return {"student": setting.student, "teacher": setting.teacher, "steps": setting.steps}


def _key(data_dir: Any) -> str | None:
    return None if data_dir is None else os.fspath(data_dir)
