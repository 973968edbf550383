"""Re-measure f-CMI's claims: the MNIST table, the successors, Langevin dynamics, the bias of the plug-in value."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.core.validation import check_device
from natwise.datasets import local
from natwise.result import Result
from natwise.study import Found, Setting, Study

from . import _study_figures
from ._experiment import run_supersample_experiment
from ._runs import SupersampleRuns, sample_supersample
from ._theory import sgld_bound

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from ._langevin import SGLD

MNIST = "images/mnist.npz"
PUBLISHED = {75: (0.0835, 0.2226), 250: (0.0345, 0.0950), 1000: (0.0141, 0.0408), 4000: (0.0081, 0.0265)}
SHOWN = ("train_error", "gap", "fcmi", "ecmi", "ld_cmi", "kl", "fast_rate", "interpolation", "hellinger", "tightest")


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    return _study_figures.draw(claim, result)


def mnist_network() -> nn.Module:
    """Return the paper's convolutional network for two classes of 28 x 28 images."""
    from torch import nn

    def block(n_in: int, n_out: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, kernel, stride, padding), nn.BatchNorm2d(n_out), nn.ReLU()]

    convolutions = [*block(1, 32, 4, 2, 1), *block(32, 32, 4, 2, 1), *block(32, 64, 3, 2, 0), *block(64, 256, 3, 1, 0)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 2))


def perceptron(n_features: int = 64, n_classes: int = 2, n_hidden: int = 32) -> nn.Module:
    """Return a network with one hidden layer."""
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(n_features, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_classes))


def _digits(classes: tuple[int, ...] = tuple(range(10))) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    kept = np.isin(y, classes)
    return (X[kept] / 16).astype(np.float32), np.searchsorted(classes, y[kept])


def _mnist_4_9(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the fours and nines, scaled, (n, 1, 28, 28) float32, and whether each is a nine (n,)."""
    data = load_npz(path)
    kept = np.isin(data["y_train"], (4, 9))
    X = (data["x_train"][kept].astype(np.float32) / 255 - 0.456) / 0.224
    return X[:, None], (data["y_train"][kept] == 9).astype(np.int64)


def _mnist_runs(n: int, setting: Setting) -> Result:
    """Train on n images: 3 supersamples, 20 epochs ("ci"); 5 to 1, 30 to 10, by n ("small"); 5 and 200 ("paper")."""
    return _mnist_runs_of(local.find(MNIST, setting.data_dir), n, setting)


@functools.lru_cache(maxsize=len(PUBLISHED))  # several claims read the same runs
def _mnist_runs_of(path: Path, n: int, setting: Setting) -> Result:
    from ._batched import BatchedTrainer

    small = {75: (5, 30), 250: (3, 20), 1000: (1, 10)}
    n_supersamples, max_epochs = {"ci": (3, 20), "small": small.get(n, (1, 10)), "paper": (5, 200)}[setting.scale]
    X, y = _mnist_4_9(path)
    recipe = BatchedTrainer(mnist_network, max_epochs=max_epochs, device=setting.device)
    return run_supersample_experiment(recipe, X, y, n, random_state=setting.seed, n_supersamples=n_supersamples)


def _mnist(n: int, setting: Setting) -> Found:
    result = _mnist_runs(n, setting)
    gap, bound = PUBLISHED[n]
    scalars = {**result.scalars, "published_gap": gap, "published_fcmi": bound}
    return Found({name: result.arrays[name] for name in ("S", "predictions", "y")}, scalars, result.params)


def _successors(setting: Setting) -> Found:
    found = _mnist(75, setting)
    ratio = found.scalars["tightest"] / found.scalars["fcmi"]
    return found._replace(scalars={"tightest_over_fcmi": ratio, **found.scalars})


def _mnist_over_n(setting: Setting) -> Found:
    """Put the runs of all sizes side by side, with what was published."""
    sizes = tuple(PUBLISHED) if setting.scale == "paper" else (75, 250, 1000)
    found = _curves(sizes, [_mnist_runs(n, setting) for n in sizes])
    published = {
        f"published_{name}": np.array([PUBLISHED[n][i] for n in sizes]) for i, name in enumerate(("gap", "fcmi"))
    }
    return found._replace(arrays={**found.arrays, **published})


def _over_n(setting: Setting) -> Found:
    """Measure bounds and gap of a perceptron on ten digits at growing training sets."""
    from ._batched import BatchedTrainer

    X, y = _digits()
    sizes, n_supersamples = ((25, 50, 100, 200), 2) if setting.scale == "ci" else ((25, 50, 100, 200, 400, 800), 5)
    recipe = BatchedTrainer(
        functools.partial(perceptron, n_classes=10), max_epochs=60, learning_rate=1e-2, device=setting.device
    )
    results = [
        run_supersample_experiment(
            recipe, X, y, n, n_splits=40, random_state=setting.seed, n_supersamples=n_supersamples
        )
        for n in sizes
    ]
    return _curves(sizes, results)


def _curves(sizes: tuple[int, ...], results: list[Result]) -> Found:
    """Return gap and bounds of experiments at several training set sizes."""
    arrays = {name: np.array([result.scalars[name] for result in results]) for name in (*SHOWN, "null")}
    arrays["n"] = np.array(sizes)
    scalars = {f"{name}_at_{n}": value for name in SHOWN for n, value in zip(sizes, arrays[name], strict=True)}
    ratio = float((arrays["fcmi"] / arrays["gap"]).min())
    tight = float((arrays["tightest"] / arrays["gap"]).min())
    scalars = {"least_fcmi_over_gap": ratio, "least_tightest_over_gap": tight, **scalars}
    return Found(arrays, scalars, {"sizes": list(sizes)})


def _plug_in_bias(setting: Setting) -> Found:
    """Read predictions that know nothing of the splits, at growing numbers of runs."""
    runs = [10, 20, 30, 40, 60, 100, 200, 500]
    arrays, scalars = {"n_splits": np.array(runs)}, {}
    for n_classes, n_splits in ((2, 30), (10, 40)):
        rows = [_read_noise(1000, k2, n_classes, setting.streams.child(f"{n_classes}-{k2}")) for k2 in runs]
        for name in rows[0]:
            arrays[f"{name}_{n_classes}"] = np.array([row[name] for row in rows])
            scalars[f"{name}_{n_classes}_classes"] = rows[runs.index(n_splits)][name]
    return Found(arrays, scalars, {"n": 1000, "n_splits": {"2 classes": 30, "10 classes": 40}})


def _read_noise(n: int, n_splits: int, n_classes: int, streams: Streams) -> dict[str, float]:
    rng = streams.numpy("predictions")
    S = sample_supersample(n, n_splits, streams, "antithetic")
    shape = (n_splits, n, 2)
    known = SupersampleRuns(S, rng.integers(n_classes, size=shape), rng.integers(n_classes, size=(n, 2)))
    return {name: known.bounds(name).scalars["fcmi"] for name in ("plugin", "miller_madow", "permutation")}


@dataclass(frozen=True)
class Langevin:
    """How Langevin dynamics are compared; `interval` steps lie between two gradient variances."""

    n: int
    n_splits: int
    batch_size: int
    epochs: tuple[int, ...]
    period: float
    interval: int

    def lr(self, t: np.ndarray) -> np.ndarray:
        """Return the learning rate of iterations: 0.004, times 0.9 each period."""
        return 0.004 * 0.9 ** (t // self.period)

    def beta(self, t: np.ndarray) -> np.ndarray:
        """Return the inverse temperature of iterations: 100 at first, 4000 in the end."""
        return np.clip(10 * np.exp(t / self.period), 100, 4000)


LANGEVIN = {
    "ci": Langevin(n=150, n_splits=20, batch_size=30, epochs=(10, 25, 50, 100, 200), period=60, interval=20),
    "small": Langevin(n=1000, n_splits=30, batch_size=100, epochs=(10, 20, 40, 80, 160), period=100, interval=25),
    "paper": Langevin(n=4000, n_splits=30, batch_size=100, epochs=(4, 8, 12, 20, 40), period=100, interval=10),
}


def _sgld(setting: Setting) -> Found:
    """Compare f-CMI with the bound of Negrea et al., for the noise that this bound assumes and for the original's."""
    plan = LANGEVIN[setting.scale]
    X, y = _digits((4, 9)) if setting.scale == "ci" else _mnist_4_9(local.find(MNIST, setting.data_dir))
    rows = setting.streams.numpy("rows").permutation(len(y))[: 2 * plan.n]
    factory = functools.partial(perceptron, math.prod(X.shape[1:])) if setting.scale != "paper" else mnist_network
    arrays: dict[str, np.ndarray] = {"epochs": np.array(plan.epochs)}
    for noise in ("right", "original"):
        curves = _train_langevin(plan, factory, X[rows], y[rows], noise, setting)
        arrays |= {f"{name}_{noise}": values for name, values in curves.items()}
    scalars = {name: float(values[-1]) for name, values in arrays.items() if name != "epochs"}
    ratio = scalars["negrea_right"] / scalars["fcmi_right"]
    return Found(arrays, {"negrea_over_fcmi": ratio, **scalars}, {"n": plan.n, "n_splits": plan.n_splits})


def _train_langevin(
    plan: Langevin, factory: Callable[[], nn.Module], X: np.ndarray, y: np.ndarray, noise: str, setting: Setting
) -> dict[str, np.ndarray]:
    """Return errors, f-CMI, its null and Negrea's bound where the chosen epochs end; X is (2n, ...), y (2n,)."""
    import torch

    from ._batched import Networks, epoch_batches
    from ._langevin import SGLD

    streams, device = setting.streams, check_device("device", setting.device)
    S = sample_supersample(plan.n, plan.n_splits, streams)
    train, seeds = 2 * np.arange(plan.n) + S, [streams.seed(f"run-{k}") for k in range(plan.n_splits)]
    with streams.torch_global("init", device):
        first = factory()
    nets = Networks([first] * plan.n_splits, device)
    optimizer = SGLD(nets.parameters(), lr=float(plan.lr(np.array(0))), random_state=streams)
    inputs, targets = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    variances: list[np.ndarray] = []
    points: dict[str, list[float]] = {}
    for epoch in range(plan.epochs[-1]):
        for rows in epoch_batches(train, seeds, epoch, plan.batch_size):
            t = len(variances)
            some = train[:, :100] if t % plan.interval == 0 else None
            variances.append(nets.gradient_variance(inputs[some], targets[some]) if some is not None else variances[-1])
            _set(optimizer, plan, t, noise)
            nets.step(optimizer, inputs[rows], targets[rows])
        if epoch + 1 in plan.epochs:
            for name, value in _read_langevin(plan, S, nets.predict(inputs), y, np.array(variances)).items():
                points.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in points.items()}


def _set(optimizer: SGLD, plan: Langevin, t: int, noise: str) -> None:
    """Set learning rate, temperature and noise of iteration `t`."""
    (group,) = optimizer.param_groups
    group["lr"], group["beta"] = float(plan.lr(np.array(t))), float(plan.beta(np.array(t)))
    group["noise_scale"] = 1.0 if noise == "right" else 1 / group["beta"]


def _read_langevin(
    plan: Langevin, S: np.ndarray, predicted: np.ndarray, y: np.ndarray, variances: np.ndarray
) -> dict[str, float]:
    """Return what classes (n_splits, 2n) and gradient variances (T, n_splits) so far say."""
    t = np.arange(len(variances) + 1)
    runs = SupersampleRuns(S, predicted.reshape(len(S), plan.n, 2), y.reshape(plan.n, 2))
    scalars = runs.bounds().scalars
    noise = [sgld_bound(plan.n, plan.batch_size, plan.lr(t), plan.beta(t), v) for v in variances.T]
    read = {name: scalars[name] for name in ("train_error", "test_error", "gap", "fcmi", "kl", "tightest")}
    return {**read, "null": runs.permutation_null(20, 0).scalars["fcmi"], "negrea": float(np.mean(noise))}


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    **{f"mnist-{n}": functools.partial(_mnist, n) for n in PUBLISHED},
    "successors": _successors,
    "over-n": _over_n,
    "mnist-over-n": _mnist_over_n,
    "plug-in-bias": _plug_in_bias,
    "sgld": _sgld,
}
STUDY = Study("generalization.fcmi", MEASUREMENTS, scales=tuple(LANGEVIN), gpu=True)
run = STUDY.run
