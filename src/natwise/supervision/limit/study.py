"""Re-measure LIMIT's claims: less memorisation of wrong labels, better accuracy, the Fano floor of training error.

The scalars hold the mean test accuracy of every method (``<method>_test``) with the half width of its 95 % interval
over seeds (``..._ci``), accuracy on the noisy training labels after the last epoch (``<method>_noisy_train``) and the
memorised information it implies in nats per sample (``<method>_memorised``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from natwise.core.io import load_npz
from natwise.core.networks import small_resnet
from natwise.core.random import Streams
from natwise.datasets import local
from natwise.result import Result
from natwise.study import Found, Setting, Study, mean_interval
from natwise.supervision.limit import (
    GCELoss,
    LabelSmoothingLoss,
    LIMITClassifier,
    MAELoss,
    RobustClassifier,
    UniformNoise,
    corrupt_labels,
    fano_error_lower_bound,
    memorized_label_information,
    transition_entropy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MNIST, CIFAR = "images/mnist.npz", "images/cifar10_train5000.npz"
CIFAR_HUMAN = "images/cifar10n_human_labels_first5000.npz"
NOISE_RATES = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Task:
    """Noisy training and validation labels, clean test labels, and the entropy of the noise in nats."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    label_entropy: float


def _fano(setting: Setting) -> Found:
    information = np.linspace(0, 2.5, 251)
    entropies = [transition_entropy(UniformNoise(p).transition_matrix(10)) for p in NOISE_RATES]
    floors = fano_error_lower_bound(np.array(entropies)[:, None], information, 10)
    one_bit = fano_error_lower_bound(entropies[-1], np.log(2), 10)
    scalars = {"floor_at_one_bit": one_bit, "floor_at_zero": floors[-1, 0], "label_entropy": entropies[-1]}
    arrays = {"information": information, "error_floor": floors}
    return Found(arrays, scalars, {"n_classes": 10, "noise": NOISE_RATES})


def _digits(setting: Setting) -> Found:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    sizes: dict[str, Any] = {"n_train": 1000, "n_validation": 300, "noise": 0.6}
    options = {"max_epochs": 60, "batch_size": 128, "n_seeds": 3, "grad_l2": 3.0}
    return _compare(functools.partial(_planted, X, y, **sizes), setting, {**sizes, **options})


def _mnist(setting: Setting) -> Found:
    local.find(MNIST, setting.data_dir)  # noted for each claim that reads the shared runs
    return _mnist_runs(setting)


@functools.lru_cache(maxsize=1)  # three claims read the same runs
def _mnist_runs(setting: Setting) -> Found:
    data = load_npz(local.find(MNIST, setting.data_dir))
    full = setting.scale == "paper"
    n_test = 10_000 if full else 5000
    sizes = {"n_train": 48_000, "n_validation": 12_000} if full else {"n_train": 4000, "n_validation": 2000}
    params: dict[str, Any] = {**sizes, "noise": 0.8, "n_test": n_test}
    options = {"max_epochs": 100 if full else 30, "batch_size": 256, "n_seeds": 3, "grad_l2": 10.0}
    X = np.concatenate([data["x_train"], data["x_test"][:n_test]]) / np.float32(255)
    y = np.concatenate([data["y_train"], data["y_test"][:n_test]])
    return _compare(functools.partial(_planted, X, y, **params), setting, {**params, **options})


def _mnist_rates(setting: Setting) -> Found:
    """Compare all methods on 48,000 MNIST images at three noise rates; the metric is the smallest margin."""
    data = load_npz(local.find(MNIST, setting.data_dir))
    X = np.concatenate([data["x_train"], data["x_test"]]) / np.float32(255)
    y = np.concatenate([data["y_train"], data["y_test"]])
    sizes: dict[str, Any] = {"n_train": 48_000, "n_validation": 12_000, "n_test": 10_000}
    options = {"max_epochs": 100, "batch_size": 256, "n_seeds": 3, "grad_l2": 10.0}
    arrays: dict[str, Any] = {}
    scalars: dict[str, float] = {}
    for rate in (0.5, 0.8, 0.89):
        params = {**sizes, "noise": rate, **options}
        found = _compare(functools.partial(_planted, X, y, **sizes, noise=rate), setting, params)
        for whole, part in ((arrays, found.arrays), (scalars, found.scalars)):
            whole |= {f"{name}_at_{100 * rate:.0f}": value for name, value in part.items()}
        if rate == 0.8:  # drawn
            arrays, scalars = {**arrays, **found.arrays}, {**scalars, **found.scalars}
    scalars["smallest_margin_over_ce"] = min(scalars[f"margin_over_ce_at_{rate}"] for rate in (50, 80, 89))
    return Found(arrays, scalars, {**sizes, "noise": [0.5, 0.8, 0.89], **options})


def _cifar_resnet(setting: Setting) -> Found:
    """Compare all methods, with residual networks of 20 layers, on 4000 CIFAR-10 images with 40 % uniform noise."""
    data = load_npz(local.find(CIFAR, setting.data_dir))
    X = (data["x"].transpose(0, 3, 1, 2) / np.float32(255) - 0.45) / 0.25
    sizes: dict[str, Any] = {"n_train": 3200, "n_validation": 800, "noise": 0.4}
    options = {"max_epochs": 100, "batch_size": 128, "n_seeds": 3, "grad_l2": 1.0, "q_warm_start": True}

    def network(seed: int) -> Any:
        return small_resnet(3, 10, random_state=seed)

    make_task = functools.partial(_planted, X.astype(np.float32), data["y"].astype(int), **sizes)
    return _compare(make_task, setting, {**sizes, **options}, network)


def _planted(X: np.ndarray, y: np.ndarray, streams: Streams, **sizes: Any) -> Task:
    """Plant uniform noise in training and validation labels; test on the last `n_test` samples, or on all others."""
    n_train, n_test = sizes["n_train"], sizes.get("n_test", 0)
    n_noisy, n = n_train + sizes["n_validation"], len(y) - n_test
    rows = streams.numpy("subset").permutation(n)
    noisy, test = rows[:n_noisy], np.arange(n, len(y)) if n_test else rows[n_noisy:]
    transition = UniformNoise(sizes["noise"]).transition_matrix(int(y.max()) + 1)
    given, _ = corrupt_labels(y[noisy], transition, streams)
    train, validation = slice(n_train), slice(n_train, None)
    return Task(
        train=(X[noisy][train], given[train]),
        validation=(X[noisy][validation], given[validation]),
        test=(X[test], y[test]),
        label_entropy=transition_entropy(transition),
    )


def _human(setting: Setting) -> Found:
    images = load_npz(local.find(CIFAR, setting.data_dir))["x"]
    labels = load_npz(local.find(CIFAR_HUMAN, setting.data_dir))
    X = orientation_histograms(images)
    clean, given = (labels[name].astype(int) for name in ("clean_label", "worse_label"))
    joint = np.bincount(clean * 10 + given, minlength=100).reshape(10, 10)
    entropy = transition_entropy(joint / joint.sum(axis=1, keepdims=True), joint.sum(axis=1) / joint.sum())

    def split(streams: Streams) -> Task:
        train, held, test = np.split(streams.numpy("subset").permutation(len(X)), [3000, 4000])
        return Task((X[train], given[train]), (X[held], given[held]), (X[test], clean[test]), entropy)

    options = {"max_epochs": 40, "batch_size": 256, "n_seeds": 3, "grad_l2": 1.0, "q_warm_start": True}
    return _compare(split, setting, {"noise": float((clean != given).mean()), "labels": "worse_label", **options})


def orientation_histograms(images: np.ndarray, cells: int = 4, bins: int = 8) -> np.ndarray:
    """Return simple features of colour images (n, h, w, 3): gradient orientations and mean colour of square cells."""
    grey = images.mean(axis=3)
    vertical, horizontal = np.gradient(grey, axis=(1, 2))
    angle = (np.arctan2(vertical, horizontal) % np.pi) * (bins / np.pi)
    strength = np.hypot(vertical, horizontal)
    maps = [np.where(angle.astype(int) % bins == b, strength, 0) for b in range(bins)]
    maps += [images[..., channel].astype(float) for channel in range(3)]
    n, height, width = grey.shape
    shape = n, len(maps), cells, height // cells, cells, width // cells
    features = np.stack(maps, axis=1).reshape(shape).mean(axis=(3, 5)).reshape(n, -1)
    return np.sqrt(features).astype(np.float32)


def _methods(grad_l2: float, q_warm_start: bool, network: Any, **options: Any) -> dict[str, Any]:
    """Return the classifiers; `network` makes one from a seed, None stands for their default."""
    classifier, q_network = (network and network(options["random_state"] + i) for i in (0, 1))
    options = {**options, "patience": None, "record_train_error": True}
    limit = {**options, "grad_l2": grad_l2, "q_warm_start": q_warm_start}
    return {
        "ce": RobustClassifier(classifier, loss=LabelSmoothingLoss(0.0), **options),
        "mae": RobustClassifier(classifier, loss=MAELoss(), **options),
        "gce": RobustClassifier(classifier, loss=GCELoss(), **options),
        "limit_g": LIMITClassifier(classifier, q_network, q_dist="gaussian", **limit),
        "limit_l": LIMITClassifier(classifier, q_network, q_dist="laplace", **limit),
    }


def _compare(
    make_task: Callable[[Streams], Task], setting: Setting, params: dict[str, Any], network: Any = None
) -> Found:
    """Train every method on the same tasks, one per seed, and summarise."""
    chosen = {name: params[name] for name in ("max_epochs", "batch_size", "grad_l2")}
    chosen["q_warm_start"] = params.get("q_warm_start", False)
    arrays: dict[str, list] = {}
    for number in range(params["n_seeds"]):
        streams = setting.streams.child(number)
        task = make_task(streams)
        options = {**chosen, "network": network, "device": setting.device, "random_state": streams.seed("model")}
        for name, model in _methods(**options).items():
            model.fit(*task.train, validation=task.validation, validation_labels="noisy")
            error = model.history_["train_error"]
            arrays.setdefault(f"{name}_test", []).append(model.score(*task.test))
            arrays.setdefault(f"{name}_train_error", []).append(error)
            memorised = memorized_label_information(error, task.label_entropy, 10)
            arrays.setdefault(f"{name}_memorised", []).append(memorised)
    stacked = {name: np.array(values) for name, values in arrays.items()}
    return Found(stacked, {**_summary(stacked), "label_entropy": task.label_entropy}, params)


def _summary(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    tests = {name.removesuffix("_test"): values for name, values in arrays.items() if name.endswith("_test")}
    scalars: dict[str, float] = {}
    for name, accuracy in tests.items():
        scalars[f"{name}_test"], scalars[f"{name}_test_ci"] = mean_interval(accuracy)
        scalars[f"{name}_noisy_train"] = 1 - arrays[f"{name}_train_error"][:, -1].mean()
        scalars[f"{name}_memorised"] = arrays[f"{name}_memorised"][:, -1].mean()
    margin = tests["limit_l"] - tests["ce"]
    scalars["margin_over_ce"], scalars["margin_over_ce_ci"] = mean_interval(margin)
    scalars["mae_over_ce"], scalars["mae_over_ce_ci"] = mean_interval(tests["mae"] - tests["ce"])
    baseline = max(scalars["ce_test"], scalars["mae_test"])
    order = [baseline, scalars["limit_g_test"], scalars["limit_l_test"]]
    scalars["smallest_step_in_order"] = float(np.diff(order).min())
    return scalars


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "fano-floor": _fano,
    "digits-memorisation": _digits,
    "mnist-margin": _mnist,
    "mnist-memorisation": _mnist,
    "mnist-order": _mnist,
    "mnist-noise-rates": _mnist_rates,
    "cifar-resnet": _cifar_resnet,
    "cifar10n-memorisation": _human,
}
STUDY = Study("supervision.limit", MEASUREMENTS, scales=("ci", "small", "paper"), gpu=True)
run = STUDY.run
_NAMES = {"ce": "cross-entropy", "mae": "MAE", "gce": "GCE 0.7", "limit_g": "LIMIT_G", "limit_l": "LIMIT_L"}


def figure(claim: str, result: Result) -> Figure:
    """Draw what the claim is about: the Fano floor, or accuracy and memorised information of every method."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.6) if claim != "fano-floor" else (5.5, 3.8), layout="constrained")
    if claim == "fano-floor":
        axes = drawing.subplots()
        for rate, floor in zip(NOISE_RATES, result.arrays["error_floor"], strict=True):
            axes.plot(result.arrays["information"], floor, label=f"{rate:.0%} uniform noise")
        axes.set(xlabel="memorised label information (nats per sample)", ylabel="smallest training error")
        axes.legend()
        return drawing
    left, right = drawing.subplots(1, 2)
    heights = [result.scalars[f"{name}_test"] for name in _NAMES]
    errors = [result.scalars[f"{name}_test_ci"] for name in _NAMES]
    left.bar(list(_NAMES.values()), heights, yerr=errors, capsize=3, color="0.6")
    left.set(ylabel="clean test accuracy (95 % interval)", ylim=(0, 1))
    left.tick_params(axis="x", rotation=20)
    for name, label in _NAMES.items():
        curve = result.arrays[f"{name}_memorised"].mean(axis=0)
        right.plot(np.arange(1, len(curve) + 1), curve, label=label)
    right.axhline(result.scalars["label_entropy"], color="0.7", linestyle=":", label="entropy of the noise")
    right.set(xlabel="epoch", ylabel="memorised label information\n(lower bound, nats per sample)")
    right.legend(fontsize="small")
    return drawing
