"""Re-measure f-CMI's claims: the MNIST table, the successors, Langevin dynamics, the bias of the plug-in value."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.core.validation import check_device, check_option
from natwise.datasets import local
from natwise.result import Result, provenance

from . import _study_figures
from ._experiment import run_supersample_experiment
from ._runs import SupersampleRuns, sample_supersample
from ._theory import sgld_bound

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

KIND = "generalization.fcmi"
MNIST = "images/mnist.npz"
PUBLISHED = {75: (0.0835, 0.2226), 250: (0.0345, 0.0950), 1000: (0.0141, 0.0408), 4000: (0.0081, 0.0265)}
SHOWN = ("train_error", "gap", "fcmi", "ecmi", "ld_cmi", "kl", "fast_rate", "interpolation", "hellinger", "tightest")
DataDir = str | os.PathLike[str] | None
Measured = tuple[dict[str, np.ndarray], dict[str, float], dict[str, Any]]


def run(claim: str, *, scale: str, seed: int, data_dir: DataDir = None, device: str = "cpu") -> Result:
    """Measure one claim of the card.

    Parameters
    ----------
    claim : str
        Its id on the card.
    scale : {"ci", "small", "paper"}
        Numbers of supersamples and epochs.
    seed : int
        Seeds samples, splits and training.
    data_dir : path, optional
        Folder of local data. Default: ``$NATWISE_DATA``.
    device : str
        Where to train.

    Returns
    -------
    Result
        The claim's metric, the gap, the other bounds and their readings at zero information.
    """
    check_option("claim", claim, list(STUDIES))
    with provenance(seed=seed, device=device) as record:
        arrays, scalars, params = STUDIES[claim](scale, seed, data_dir, device)
    return Result(
        f"{KIND}/{claim}", arrays=arrays, scalars=scalars, params={"scale": scale, **params}, provenance=record
    )


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    check_option("claim", claim, list(STUDIES))
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


def _mnist_4_9(data_dir: DataDir) -> tuple[np.ndarray, np.ndarray]:
    data = load_npz(local.find(MNIST, data_dir))
    kept = np.isin(data["y_train"], (4, 9))
    X = (data["x_train"][kept].astype(np.float32) / 255 - 0.456) / 0.224
    return X[:, None], (data["y_train"][kept] == 9).astype(np.int64)


@functools.lru_cache(maxsize=4)  # several claims read the same runs
def _mnist_runs(n: int, scale: str, seed: int, data_dir: str | None, device: str) -> Result:
    from ._batched import BatchedTrainer

    small = {75: (5, 30), 250: (3, 20), 1000: (1, 10)}
    n_supersamples, max_epochs = {"ci": (3, 20), "small": small.get(n, (1, 10)), "paper": (5, 200)}[scale]
    X, y = _mnist_4_9(data_dir)
    recipe = BatchedTrainer(mnist_network, max_epochs=max_epochs, device=device)
    return run_supersample_experiment(recipe, X, y, n, random_state=seed, n_supersamples=n_supersamples)


def _mnist(n: int, scale: str, seed: int, data_dir: DataDir, device: str) -> Measured:
    result = _mnist_runs(n, scale, seed, None if data_dir is None else str(data_dir), device)
    gap, bound = PUBLISHED[n]
    scalars = {**result.scalars, "published_gap": gap, "published_fcmi": bound}
    return {name: result.arrays[name] for name in ("S", "predictions", "y")}, scalars, dict(result.params)


def _successors(scale: str, seed: int, data_dir: DataDir, device: str) -> Measured:
    arrays, scalars, params = _mnist(75, scale, seed, data_dir, device)
    return arrays, {"tightest_over_fcmi": scalars["tightest"] / scalars["fcmi"], **scalars}, params


def _mnist_over_n(scale: str, seed: int, data_dir: DataDir, device: str) -> Measured:
    """Put the runs of all sizes side by side, with what was published."""
    sizes = tuple(PUBLISHED) if scale == "paper" else (75, 250, 1000)
    folder = None if data_dir is None else str(data_dir)
    arrays, scalars, params = _curves(sizes, [_mnist_runs(n, scale, seed, folder, device) for n in sizes])
    published = {name: np.array([PUBLISHED[n][i] for n in sizes]) for i, name in enumerate(("gap", "fcmi"))}
    return arrays | {f"published_{name}": values for name, values in published.items()}, scalars, params


def _over_n(scale: str, seed: int, data_dir: DataDir, device: str) -> Measured:
    """Measure bounds and gap of a perceptron on ten digits at growing training sets."""
    from ._batched import BatchedTrainer

    X, y = _digits()
    sizes, n_supersamples = ((25, 50, 100, 200), 2) if scale == "ci" else ((25, 50, 100, 200, 400, 800), 5)
    recipe = BatchedTrainer(
        functools.partial(perceptron, n_classes=10), max_epochs=60, learning_rate=1e-2, device=device
    )
    results = [
        run_supersample_experiment(recipe, X, y, n, n_splits=40, random_state=seed, n_supersamples=n_supersamples)
        for n in sizes
    ]
    return _curves(sizes, results)


def _curves(sizes: tuple[int, ...], results: list[Result]) -> Measured:
    """Return gap and bounds of experiments at several training set sizes."""
    arrays = {name: np.array([result.scalars[name] for result in results]) for name in (*SHOWN, "null")}
    arrays["n"] = np.array(sizes)
    scalars = {f"{name}_at_{n}": value for name in SHOWN for n, value in zip(sizes, arrays[name], strict=True)}
    ratio = float((arrays["fcmi"] / arrays["gap"]).min())
    tight = float((arrays["tightest"] / arrays["gap"]).min())
    return arrays, {"least_fcmi_over_gap": ratio, "least_tightest_over_gap": tight, **scalars}, {"sizes": list(sizes)}


def _plug_in_bias(scale: str, seed: int, data_dir: DataDir, device: str) -> Measured:
    """Read predictions that know nothing of the splits, at growing numbers of runs."""
    streams = Streams(seed)
    runs = [10, 20, 30, 40, 60, 100, 200, 500]
    arrays, scalars = {"n_splits": np.array(runs)}, {}
    for n_classes, n_splits in ((2, 30), (10, 40)):
        rows = [_read_noise(1000, k2, n_classes, streams.child(f"{n_classes}-{k2}")) for k2 in runs]
        for name in rows[0]:
            arrays[f"{name}_{n_classes}"] = np.array([row[name] for row in rows])
            scalars[f"{name}_{n_classes}_classes"] = rows[runs.index(n_splits)][name]
    return arrays, scalars, {"n": 1000, "n_splits": {"2 classes": 30, "10 classes": 40}}


def _read_noise(n: int, n_splits: int, n_classes: int, streams: Streams) -> dict[str, float]:
    rng = streams.numpy("predictions")
    S = sample_supersample(n, n_splits, streams, "antithetic")
    shape = (n_splits, n, 2)
    known = SupersampleRuns(S, rng.integers(n_classes, size=shape), rng.integers(n_classes, size=(n, 2)))
    return {name: known.bounds(name).scalars["fcmi"] for name in ("plugin", "miller_madow", "permutation")}


@dataclass(frozen=True)
class Langevin:
    """Settings of a comparison of Langevin dynamics; `interval` steps lie between two gradient variances."""

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


def _sgld(scale: str, seed: int, data_dir: DataDir, device: str) -> Measured:
    """Compare f-CMI with the bound of Negrea et al., for the noise that this bound assumes and for the original's."""
    setting, streams = LANGEVIN[scale], Streams(seed)
    X, y = _digits((4, 9)) if scale == "ci" else _mnist_4_9(data_dir)
    factory = mnist_network if scale == "paper" else functools.partial(perceptron, math.prod(X.shape[1:]))
    rows = streams.numpy("rows").permutation(len(y))[: 2 * setting.n]
    arrays: dict[str, np.ndarray] = {"epochs": np.array(setting.epochs)}
    for noise in ("right", "original"):
        curves = _langevin(setting, factory, X[rows], y[rows], noise, streams, device)
        arrays |= {f"{name}_{noise}": values for name, values in curves.items()}
    scalars = {name: float(values[-1]) for name, values in arrays.items() if name != "epochs"}
    ratio = scalars["negrea_right"] / scalars["fcmi_right"]
    return arrays, {"negrea_over_fcmi": ratio, **scalars}, {"n": setting.n, "n_splits": setting.n_splits}


def _langevin(
    setting: Langevin,
    factory: Callable[[], Any],
    X: np.ndarray,
    y: np.ndarray,
    noise: str,
    streams: Streams,
    device: str,
) -> dict[str, np.ndarray]:
    """Return errors, f-CMI, its null and Negrea's bound where the chosen epochs end."""
    import torch

    from ._batched import Networks, epoch_batches
    from ._langevin import SGLD

    n, k2 = setting.n, setting.n_splits
    S = sample_supersample(n, k2, streams)
    train, seeds = 2 * np.arange(n) + S, [streams.seed(f"run-{k}") for k in range(k2)]
    with streams.torch_global("init", device):
        first = factory()
    nets = Networks([first] * k2, check_device("device", device))
    optimizer = SGLD(nets.parameters(), lr=float(setting.lr(np.array(0))), random_state=streams)
    inputs, targets = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    variances: list[np.ndarray] = []
    points: dict[str, list[float]] = {}
    for epoch in range(setting.epochs[-1]):
        for rows in epoch_batches(train, seeds, epoch, setting.batch_size):
            t = len(variances)
            some = train[:, :100] if t % setting.interval == 0 else None
            variances.append(nets.gradient_variance(inputs[some], targets[some]) if some is not None else variances[-1])
            _set(optimizer, setting, t, noise)
            nets.step(optimizer, inputs[rows], targets[rows])
        if epoch + 1 in setting.epochs:
            for name, value in _read_langevin(setting, S, nets.predict(inputs), y, np.array(variances)).items():
                points.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in points.items()}


def _set(optimizer: Any, setting: Langevin, t: int, noise: str) -> None:
    (group,) = optimizer.param_groups
    group["lr"], group["beta"] = float(setting.lr(np.array(t))), float(setting.beta(np.array(t)))
    group["noise_scale"] = 1.0 if noise == "right" else 1 / group["beta"]


def _read_langevin(
    setting: Langevin, S: np.ndarray, predicted: np.ndarray, y: np.ndarray, variances: np.ndarray
) -> dict[str, float]:
    n, t = setting.n, np.arange(len(variances) + 1)
    runs = SupersampleRuns(S, predicted.reshape(len(S), n, 2), y.reshape(n, 2))
    scalars = runs.bounds().scalars
    noise = [sgld_bound(n, setting.batch_size, setting.lr(t), setting.beta(t), v) for v in variances.T]
    read = {name: scalars[name] for name in ("train_error", "test_error", "gap", "fcmi", "kl", "tightest")}
    return {**read, "null": runs.permutation_null(20, 0).scalars["fcmi"], "negrea": float(np.mean(noise))}


STUDIES: dict[str, Callable[[str, int, DataDir, str], Measured]] = {
    **{f"mnist-{n}": functools.partial(_mnist, n) for n in PUBLISHED},
    "successors": _successors,
    "over-n": _over_n,
    "mnist-over-n": _mnist_over_n,
    "plug-in-bias": _plug_in_bias,
    "sgld": _sgld,
}
