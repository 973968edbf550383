"""Re-measure the claims on supervision complexity and on online distillation.

The scale chooses bundled digits, MNIST or CIFAR-10, and the number of draws.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from natwise.core.io import load_npz
from natwise.core.networks import small_resnet
from natwise.core.random import Streams
from natwise.core.training import Trainer
from natwise.core.validation import check_option
from natwise.datasets import local
from natwise.result import Result
from natwise.study import Found, Setting, Study, mean_interval
from natwise.supervision.distillation import (
    CheckpointTeacher,
    OnlineDistiller,
    complexity_path,
    distillation_bound,
    fidelity,
    soft_targets,
    supervision_complexity,
)
from natwise.supervision.distillation._distiller import nesterov_sgd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MNIST, CIFAR = "images/mnist.npz", "images/cifar10_train5000.npz"
SUPERVISIONS = ("random", "labels", "offline", "online")
TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)


# closed forms


def _random_labels(setting: Setting) -> Found:
    """Compare the mean squared adjusted complexity of random +-1 labels with mean(eigenvalue) mean(1 / eigenvalue)."""
    n, draws = 30, 20_000 if setting.scale == "ci" else 200_000
    rng = setting.streams.numpy("random-labels")
    kernel = _rbf(rng.normal(size=(n, 2)), width=0.5) + 0.01 * np.eye(n)
    squared = np.square(supervision_complexity(kernel, rng.choice([-1.0, 1.0], size=(draws, n, 1))))
    values = np.linalg.eigvalsh(kernel)
    expected = float(values.mean() * (1 / values).mean())
    scalars = {"expected": expected, "measured": squared.mean(), "ratio": squared.mean() / expected}
    return Found({"squared": np.sort(squared)[:: draws // 200]}, scalars, {"n": n, "draws": draws})


def _bound(setting: Setting) -> Found:
    """Draw kernel students of a noisy teacher; compare the bound with their error on 5000 new inputs."""
    arrays: dict[str, list] = {}
    sizes = (50, 200) if setting.scale == "ci" else (50, 200, 800)
    gamma = 2.0
    for n in sizes:
        rng = setting.streams.child("bound").numpy(n)
        draws = [_one_bound(rng, n, gamma) for _ in range(200)]
        for name in draws[0]:
            arrays.setdefault(name, []).append([draw[name] for draw in draws])
    stacked = {name: np.array(values) for name, values in arrays.items()}
    error, bound = stacked["error"], stacked["bound"]
    scalars = {"share_covered": float((bound >= error).mean()), "share_below_one": float((bound < 1).mean())}
    for name in ("error", "margin_term", "complexity_term", "confidence_term", "bound"):
        scalars[f"{name}_at_{sizes[-1]}"] = float(stacked[name][-1].mean())
    scalars["smallest_slack"] = float((bound - error).min())
    return Found(stacked, scalars, {"sizes": sizes, "draws": 200, "gamma": gamma, "delta": 0.05})


def _one_bound(rng: np.random.Generator, n: int, gamma: float) -> dict[str, float]:
    X = rng.uniform(-1, 1, size=(n + 5000, 2))
    targets = 3 * X[:, 0] + 0.1 * rng.normal(size=len(X))
    kernel = _rbf(X[:n], width=1.0) + 0.1 * np.eye(n)  # a noise kernel of its own takes up the noise
    weights = np.linalg.solve(kernel + 0.001 * n * np.eye(n), targets[:n])
    result = distillation_bound(kernel, targets[:n], kernel @ weights, gamma)
    predicted = _rbf(X[n:], X[:n], width=1.0) @ weights
    error = float(np.mean(predicted * np.sign(targets[n:]) <= 0))
    names = ("margin_term", "complexity_term", "confidence_term", "bound")
    return {"error": error, **{name: result.scalars[name] for name in names}}


def _rbf(X: np.ndarray, Z: np.ndarray | None = None, *, width: float) -> np.ndarray:
    Z = X if Z is None else Z
    squared = (X**2).sum(1)[:, None] + (Z**2).sum(1) - 2 * X @ Z.T
    return np.exp(-np.maximum(squared, 0) / (2 * width**2))


# complexity along the training of a small CNN


def _order(setting: Setting) -> Found:
    arrays, params = _curves(setting)
    curves = np.stack([arrays[name] for name in SUPERVISIONS])
    scalars = {f"{name}_at_{when}": float(curves[i, j]) for i, name in enumerate(SUPERVISIONS) for when, j in _ENDS}
    steps = -np.diff(curves, axis=0) / curves[:-1]
    scalars["smallest_relative_step"] = float(steps.min())
    for (high, low), step in zip(itertools.pairwise(SUPERVISIONS), steps, strict=True):
        scalars[f"smallest_{high}_over_{low}"] = float(step.min())
    return Found(arrays, scalars, params)


def _temperatures(setting: Setting) -> Found:
    arrays, params = _curves(setting)
    curves = np.stack([arrays[_at(tau)] for tau in TEMPERATURES])
    scalars = {f"{_at(tau)}_at_start": float(curve[0]) for tau, curve in zip(TEMPERATURES, curves, strict=True)}
    scalars["smallest_relative_step"] = float((-np.diff(curves, axis=0) / curves[:-1]).min())
    return Found(arrays, scalars, params)


def _curves(setting: Setting) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what both claims read, and note its images for each of them."""
    check_option("scale", setting.scale, ("ci", "small"))
    if setting.scale == "small":
        local.find(MNIST, setting.data_dir)
    return _path(setting)


@functools.lru_cache(maxsize=1)
def _path(setting: Setting) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Distil a student online, and measure every supervision with the kernel of each of its states."""
    params = {"n_train": 1000, "n_kernel": 40, "epochs": 12, "every": 2, "channels": 6}
    if setting.scale == "small":
        params |= {"n_train": 2000, "n_kernel": 100, "epochs": 20, "channels": 8}
    streams = setting.streams
    X, y = _images(setting, streams, params["n_train"])
    teacher = _record(_cnn(X, 4 * params["channels"], streams.child("teacher")), X, y, params, streams.seed("teacher"))
    student = _record(
        _cnn(X, params["channels"], streams.child("student")), X, teacher, params, streams.seed("student")
    )
    inputs, labels = X[: params["n_kernel"]], y[: params["n_kernel"]]
    logits = np.stack(list(teacher.outputs(torch.from_numpy(inputs))))
    targets = {
        "random": np.eye(10)[streams.numpy("random").integers(10, size=len(labels))],
        "labels": np.eye(10)[labels],
        "offline": soft_targets(logits[-1], 1.0),
        "online": soft_targets(logits, 1.0),
        **{_at(tau): soft_targets(logits[-1], tau) for tau in TEMPERATURES},
    }
    result = complexity_path(student, inputs, targets)
    epochs = np.arange(len(teacher)) * params["every"]
    return {"epoch": epochs, **result.arrays}, params


def _record(
    module: nn.Module,
    X: np.ndarray,
    supervision: np.ndarray | CheckpointTeacher,
    params: dict,
    seed: int,
    device: str = "cpu",
) -> CheckpointTeacher:
    """Train on labels, or on the checkpoints of a teacher, and keep the states every so many epochs from the start."""
    trainer = Trainer(
        max_epochs=params["epochs"],
        batch_size=64,
        learning_rate=0.05,
        optimizer=nesterov_sgd,
        schedule=_decay,
        device=device,
        random_state=seed,
    )
    if isinstance(supervision, np.ndarray):
        data = (torch.from_numpy(X), torch.from_numpy(supervision))

        def loss(model: nn.Module, batch: Any, step: int) -> torch.Tensor:
            return cross_entropy(model(batch[0]), batch[1])

        return CheckpointTeacher.record(module, trainer, loss, data, every=params["every"], start=True)
    n_steps = params["epochs"] * -(-len(X) // 64)
    later = CheckpointTeacher(supervision.checkpoints[1:], module=supervision.module)

    def distil(model: nn.Module, batch: Any, step: int) -> torch.Tensor:
        with torch.no_grad():
            target = later.load(later.index_at(step, n_steps))(batch[0])
        return cross_entropy(model(batch[0]), target.softmax(dim=1))

    return CheckpointTeacher.record(module, trainer, distil, (torch.from_numpy(X),), every=params["every"], start=True)


def _decay(step: int, n_steps: int) -> float:
    """Return a factor that falls to 0: with a constant rate, late checkpoints of the teacher differ only by noise."""
    return 1 - step / n_steps


# accuracy of students


def _accuracy(setting: Setting) -> Found:
    """Distil a small student offline and online at two temperatures, over seeds, beside plain training.

    The learning rate of every student is the better of two on held-out labels: tau^2 makes some too large.
    """
    check_option("scale", setting.scale, ("small", "paper"))
    params: dict[str, Any] = {"n_train": 2000, "n_held": 1000, "n_test": 5000, "epochs": 20, "every": 2}
    params |= {"n_seeds": 5, "teacher_channels": 16, "channels": 2, "rates": [0.05, 0.005]}
    if setting.scale == "paper":
        params |= {"n_train": 3500, "n_held": 500, "n_test": 1000, "epochs": 100, "every": 10}
        params |= {"teacher_channels": 32, "channels": 4}
    arrays: dict[str, list[float]] = {}
    for number in range(params["n_seeds"]):
        for name, value in _one_comparison(setting, setting.streams.child(number), params).items():
            arrays.setdefault(name, []).append(value)
    stacked = {name: np.array(values) for name, values in arrays.items()}
    scalars: dict[str, float] = {}
    for name, values in stacked.items():
        scalars[name], scalars[f"{name}_ci"] = mean_interval(values)
    for tau in (1, 4):
        gain = stacked[f"online_tau{tau}"] - stacked[f"offline_tau{tau}"]
        scalars[f"online_gain_tau{tau}"], scalars[f"online_gain_tau{tau}_ci"] = mean_interval(gain)
    return Found(stacked, scalars, params)


def _one_comparison(setting: Setting, streams: Streams, params: dict[str, Any]) -> dict[str, float]:
    held, test = params["n_train"], params["n_train"] + params["n_held"]
    X, y = _images(setting, streams, test + params["n_test"])
    train, held_out, new = (slice(0, held), slice(held, test), slice(test, None))
    big = _cnn(X, params["teacher_channels"], streams.child("teacher"))
    teacher = _record(big, X[train], y[train], params, streams.seed("teacher"), setting.device)
    student = _cnn(X, params["channels"], streams.child("student"))
    plain = _record(copy.deepcopy(student), X[train], y[train], params, streams.seed("distil"), setting.device)
    *_, wanted = teacher.outputs(torch.from_numpy(X[new]))
    *_, logits = plain.outputs(torch.from_numpy(X[new]))
    found = {
        "teacher": float((wanted.argmax(1) == y[new]).mean()),
        "labels": float((logits.argmax(1) == y[new]).mean()),
    }
    found["labels_fidelity"] = fidelity(logits, wanted)
    for mode, states in {"offline": teacher.checkpoints[-1:], "online": teacher.checkpoints[1:]}.items():
        for tau in (1, 4):
            options = {"max_epochs": params["epochs"], "batch_size": 64, "schedule": _decay, "device": setting.device}
            checkpoints = CheckpointTeacher(states, module=teacher.module)
            models = [
                OnlineDistiller(
                    student, checkpoints, tau, learning_rate=rate, random_state=streams.seed("distil"), **options
                ).fit(X[train])
                for rate in params["rates"]
            ]
            best = max(models, key=lambda model: model.score(X[held_out], y[held_out]))
            found[f"{mode}_tau{tau}"] = best.score(X[new], y[new])
            found[f"{mode}_tau{tau}_first_rate"] = models[0].score(X[new], y[new])
            found[f"{mode}_tau{tau}_fidelity"] = fidelity(best.decision_function(X[new]), wanted)
    return found


def _images(setting: Setting, streams: Streams, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n shuffled images (n, channels, h, w) in [0, 1] and their labels: bundled digits, MNIST, or CIFAR-10."""
    if setting.scale == "paper":
        content = load_npz(local.find(CIFAR, setting.data_dir))
        chosen = streams.numpy("images").permutation(len(content["x"]))[:n]
        images = content["x"][chosen].transpose(0, 3, 1, 2) / 255
        return np.ascontiguousarray(images, dtype=np.float32), content["y"][chosen].astype(np.int64)
    if setting.scale == "ci":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = digits.images / 16, digits.target
    else:
        content = load_npz(local.find(MNIST, setting.data_dir))
        images, labels = content["x_train"] / 255, content["y_train"]
    chosen = streams.numpy("images").permutation(len(images))[:n]
    return images[chosen, None].astype(np.float32), labels[chosen].astype(np.int64)


def _cnn(X: np.ndarray, channels: int, streams: Streams) -> nn.Module:
    """Return two convolutions and a linear layer for square grey images; a residual network for colour images."""
    if X.shape[1] == 3:
        return small_resnet(3, 10, width=channels, random_state=streams)
    stride = 1 if X.shape[-1] < 16 else 2
    side = math.ceil(math.ceil(X.shape[-1] / stride) / 2)
    with streams.torch_global("init"):
        return nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=stride, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * side**2, 10),
        )


def _at(tau: float) -> str:
    return f"offline_tau{tau:g}"


_ENDS = (("start", 0), ("end", -1))
MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "random-label-law": _random_labels,
    "bound-holds": _bound,
    "complexity-order": _order,
    "temperature-order": _temperatures,
    "online-accuracy": _accuracy,
}
STUDY = Study("supervision.distillation", MEASUREMENTS, scales=("ci", "small", "paper"), gpu=True)
run = STUDY.run


def figure(claim: str, result: Result) -> Figure:
    """Draw the curves behind a claim."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 3.8), layout="constrained")
    DRAWINGS[claim](drawing.subplots(), result)
    return drawing


def _draw_curves(axes: Any, result: Result, names: list[str]) -> None:
    for name in names:
        axes.plot(result.arrays["epoch"], result.arrays[name], marker=".", label=name.replace("_tau", ", tau "))
    axes.set(xlabel="epoch of the student", ylabel="adjusted supervision complexity", yscale="log")
    axes.legend(fontsize="small")


def _draw_bound(axes: Any, result: Result) -> None:
    for name in ("error", "margin_term", "complexity_term", "confidence_term", "bound"):
        axes.plot(result.params["sizes"], result.arrays[name].mean(axis=1), marker="o", label=name.replace("_", " "))
    axes.axhline(1, color="0.7", linestyle=":")
    axes.set(xlabel="samples", ylabel="error and terms of its bound (mean of draws)", xscale="log", yscale="log")
    axes.set_xticks(result.params["sizes"], [str(size) for size in result.params["sizes"]])
    axes.minorticks_off()
    axes.legend(fontsize="small")


def _draw_law(axes: Any, result: Result) -> None:
    axes.hist(result.arrays["squared"], bins=30, color="0.7")
    axes.axvline(result.scalars["expected"], color="C3", label="closed form of the mean")
    axes.set(xlabel="squared adjusted complexity of random labels", ylabel="draws")
    axes.legend()


def _draw_accuracy(axes: Any, result: Result) -> None:
    names = ["labels", "offline_tau1", "online_tau1", "offline_tau4", "online_tau4", "teacher"]
    heights, errors = ([result.scalars[name + end] for name in names] for end in ("", "_ci"))
    axes.errorbar([name.replace("_tau", "\ntau ") for name in names], heights, yerr=errors, fmt="o", capsize=4)
    axes.set(ylabel="test accuracy (95 % interval over seeds)")


DRAWINGS: dict[str, Callable[[Any, Result], None]] = {
    "random-label-law": _draw_law,
    "bound-holds": _draw_bound,
    "complexity-order": lambda axes, result: _draw_curves(axes, result, list(SUPERVISIONS)),
    "temperature-order": lambda axes, result: _draw_curves(axes, result, [_at(tau) for tau in TEMPERATURES]),
    "online-accuracy": _draw_accuracy,
}
