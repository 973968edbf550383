"""Re-measure the claims: four drawn causes, heart disease by hospital, coloured digits with ERM and IRM.

Every measurement finds arrays `parts`, `se` and `cumulative` (cases, 4) and `distinguishability` (cases, 3), and every
case's numbers as scalars; the cases' names stand in params. The scale changes nothing here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from natwise.core.io import load_npz
from natwise.datasets import local
from natwise.result import Result
from natwise.shift.failure_modes import DomainGeneralizer, FailureModes
from natwise.shift.failure_modes._plot import LABELS, stacked, steps
from natwise.study import Found, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEART, MNIST = "tabular/heart_disease_4hospitals.npz", "images/mnist.npz"
UNUSABLE = ("slope", "ca", "thal", "chol")  # missing, or all zero, in some hospitals
HEART_REFERENCE = {  # e'_0 to e'_3 with scikit-learn's logistic regression in five folds
    "cleveland": [0.1945, 0.2079, 0.2013, 0.2145],
    "hungarian": [0.2141, 0.1701, 0.1803, 0.1939],
    "switzerland": [0.2008, 0.0813, 0.2033, 0.2927],
    "va": [0.2000, 0.2450, 0.2100, 0.2050],
}
CAUSES = ("classes mixed everywhere", "classes mixed in the test domain", "labels turned round", "a shortcut was taken")
FLIPS = (0.1, 0.2, 0.3, 0.9)  # how often colour and label disagree: three training domains, the test domain
LABEL_NOISE = 0.25
MINI_METHODS: dict[str, dict[str, Any]] = {
    "erm": {"algorithm": "erm", "max_epochs": 25},
    "erm_long": {"algorithm": "erm", "max_epochs": 100},  # by then the label noise is memorised
    "irm": {"algorithm": "irm", "weight": 1e4, "max_epochs": 75},
}
FULL_METHODS: dict[str, dict[str, Any]] = {
    "erm": {},
    "irm": {"weight": 1e4},
    "vrex": {"weight": 1e3},
    "coral": {},
    "mmd": {},
    "dann": {},
    "group_dro": {},
}
FULL_EPOCHS = (1, 3, 9, 27)  # the shorter trainings are beginnings of the longer


def _collect(found: dict[str, FailureModes], metrics: dict[str, float], params: dict[str, Any]) -> Found:
    """Return arrays, scalars and params of several diagnoses."""
    names = {"parts": "parts_", "se": "se_", "cumulative": "cumulative_", "distinguishability": "distinguishability_"}
    arrays = {key: np.stack([getattr(modes, name) for modes in found.values()]) for key, name in names.items()}
    scalars = dict(metrics)
    for case, modes in found.items():
        scalars |= {f"{case}_e{i}": part for i, part in enumerate(modes.parts_)}
        scalars |= {f"{case}_d{i}": part for i, part in enumerate(modes.distinguishability_)}
        scalars |= {f"{case}_majority_error": modes.majority_error_, f"{case}_e0_probe": modes.diagnostics_["e0_probe"]}
    return Found(arrays, scalars, {"cases": list(found), **params})


def _four_causes(setting: Setting) -> Found:
    rng = setting.streams.numpy("data")
    found = {}
    for i, name in enumerate(CAUSES):
        X, y, X_id, y_id, X_new, y_new = _drawn(i, rng)
        head = LogisticRegression(C=0.01).fit(X, y)
        modes = FailureModes(device=setting.device, random_state=setting.seed)
        domain = np.arange(len(y)) % 2
        found[name] = modes.fit(X, y, domain, X_new, y_new, head.predict(X_id), y_id, head.predict(X_new))
    intended = [modes.parts_[i] for i, modes in enumerate(found.values())]
    return _collect(found, {"smallest_intended_part": min(intended)}, {"n_train": 800, "n_id": 400, "n_test": 400})


def _drawn(cause: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return training, held-out and test rows (X, y) in the plane, of the training domains' law and the test law."""

    def draw(n: int, test: bool) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(2, size=n)
        sign, noise = 2.0 * y - 1, rng.normal(size=(n, 2))
        if cause == 0 or (cause == 1 and test):
            return noise, y
        if cause == 3:  # a narrow safe feature, and a wide one that turns round
            return np.column_stack([sign, (-6 if test else 6) * sign]) + noise * [0.1, 1.0], y
        return np.column_stack([(-1 if cause == 2 and test else 1) * 4 * sign, np.zeros(n)]) + noise, y

    return (*draw(800, False), *draw(400, False), *draw(400, True))


def _heart(setting: Setting) -> Found:
    data = load_npz(local.find(HEART, setting.data_dir))
    X = data["X"][:, ~np.isin(data["feature_names"], UNUSABLE)].astype(np.float64)
    y, domain = data["y"], data["domain"]
    diagnose = functools.partial(FailureModes, device=setting.device, random_state=setting.seed)
    found, balanced = {}, {}
    for number, name in enumerate(data["domain_names"].tolist()):
        new = domain == number
        prepare = make_pipeline(SimpleImputer(strategy="mean"), StandardScaler()).fit(X[~new])
        Z, Z_new = prepare.transform(X[~new]), prepare.transform(X[new])
        folds = StratifiedKFold(5, shuffle=True, random_state=setting.seed)
        guessed = cross_val_predict(LogisticRegression(), Z, y[~new], cv=folds)
        head = LogisticRegression().fit(Z, y[~new])
        given = (Z, y[~new], domain[~new], Z_new, y[new], guessed, y[~new], head.predict(Z_new))
        found[name] = diagnose().fit(*given, test_domain=number)
        balanced[name] = diagnose(metric="balanced_error", distinguishability=False).fit(*given)
    expected = np.array([HEART_REFERENCE[name] for name in found])
    differences = np.abs(np.array([modes.cumulative_ for modes in found.values()]) - expected)
    metrics = {"largest_deviation": differences.max()}
    for name, modes in balanced.items():
        metrics |= {f"{name}_balanced_e{i}": part for i, part in enumerate(modes.parts_)}
    return _collect(found, metrics, {"reference": HEART_REFERENCE, "left_out_features": UNUSABLE})


def _mini_mnist(setting: Setting) -> Found:
    local.find(MNIST, setting.data_dir)  # noted for every claim, also when another one has read it
    return _mini_runs(setting)


@functools.lru_cache(maxsize=1)  # two claims read the same runs
def _mini_runs(setting: Setting) -> Found:
    found, metrics, params = _coloured(setting, MINI_METHODS, {"n_train": 1750, "n_id": 500})
    metrics |= _effect(found["erm"], found["irm"])
    metrics |= {f"{name}_long": value for name, value in _effect(found["erm_long"], found["irm"]).items()}
    return _collect(found, metrics, params)


def _full_mnist(setting: Setting) -> Found:
    methods = {
        f"{name}_{max_epochs}": {"algorithm": name, "max_epochs": max_epochs, **options}
        for name, options in FULL_METHODS.items()
        for max_epochs in FULL_EPOCHS
    }
    found, metrics, params = _coloured(setting, methods, {"n_train": 12_000, "n_id": 3000})
    last = FULL_EPOCHS[-1]
    return _collect(found, metrics | _effect(found[f"erm_{last}"], found[f"irm_{last}"]), params)


def _effect(erm: FailureModes, irm: FailureModes) -> dict[str, float]:
    change = irm.parts_ - erm.parts_
    return {"noninvariance_cut": -change[3], "underfitting_rise": change[0]}


def _coloured(
    setting: Setting, methods: dict[str, dict[str, Any]], sizes: dict[str, int]
) -> tuple[dict[str, FailureModes], dict[str, float], dict[str, Any]]:
    """Train every method on coloured digits; return the diagnoses, the accuracies on training rows, and the setting."""
    from torch import nn

    data, streams = load_npz(local.find(MNIST, setting.data_dir)), setting.streams
    train, held, new = _colour_domains(data, **sizes, rng=streams.numpy("colours"))
    common = {"selection": "last", "anneal_steps": 100, "batch_size": 1500}
    with streams.torch_global("featurizer"):
        featurizer = nn.Sequential(nn.Linear(392, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    found, accuracies = {}, {}
    for name, options in methods.items():
        chosen = {**common, **options, "featurizer": featurizer, "device": setting.device}
        model = DomainGeneralizer(**chosen, random_state=streams.child("training")).fit(*train)
        found[name] = FailureModes(device=setting.device, random_state=setting.seed).fit(
            model.transform(train[0]),
            train[1],
            train[2],
            model.transform(new[0]),
            new[1],
            model.predict(held[0]),
            held[1],
            model.predict(new[0]),
            test_domain=len(FLIPS) - 1,
        )
        accuracies[f"{name}_train_accuracy"] = model.score(*train[:2])
    return found, accuracies, {**sizes, **common, "methods": methods}


def _colour_domains(
    data: Mapping[str, np.ndarray], n_train: int, n_id: int, rng: np.random.Generator
) -> tuple[tuple[np.ndarray, ...], ...]:
    """Return (X, y, domain) of training, held-out and test rows: 14 x 14 pixels in one of two colour planes."""
    rows = rng.permutation(len(data["y_train"]))[: len(FLIPS) * (n_train + n_id)]
    domain = np.arange(len(rows)) % len(FLIPS)
    label = (data["y_train"][rows] < 5) ^ (rng.random(len(rows)) < LABEL_NOISE)
    colour = label ^ (rng.random(len(rows)) < np.array(FLIPS)[domain])
    planes = np.zeros((len(rows), 2, 14, 14), dtype=np.float32)
    planes[np.arange(len(rows)), colour.astype(int)] = data["x_train"][rows, ::2, ::2] / np.float32(255)
    X, y = planes.reshape(len(rows), -1), label.astype(np.int64)
    new = domain == len(FLIPS) - 1
    held = ~new & (np.arange(len(rows)) >= len(FLIPS) * n_train)
    return tuple((X[chosen], y[chosen], domain[chosen]) for chosen in (~new & ~held, held, new))


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "four-causes": _four_causes,
    "heart-hospitals": _heart,
    "irm-noninvariance": _mini_mnist,
    "irm-underfitting": _mini_mnist,
    "colored-mnist": _full_mnist,
}
STUDY = Study("shift.failure_modes", MEASUREMENTS, scales=("ci", "small", "paper"), gpu=True)
run = STUDY.run


def figure(claim: str, result: Result) -> Figure:
    """Draw the parts of every case; against the length of training where there are several."""
    from matplotlib.figure import Figure

    cases, parts, se = result.params["cases"], result.arrays["parts"], result.arrays["se"]
    if claim == "colored-mnist":
        return _by_length(result)
    drawing = Figure(figsize=(3.4 * len(cases), 3.5), layout="constrained")
    panels = drawing.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axes, case, own, errors in zip(panels, cases, parts, se, strict=True):
        steps(axes, own, errors, LABELS, "test\nerror")
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(case, fontsize=9)
    panels[0].set_ylabel("error (share of rows)")
    return drawing


def _by_length(result: Result) -> Figure:
    from matplotlib.figure import Figure

    parts = result.arrays["parts"].reshape(len(FULL_METHODS), len(FULL_EPOCHS), 4)
    drawing = Figure(figsize=(12, 5.5), layout="constrained")
    panels = drawing.subplots(2, 4, sharey=True).ravel()
    for axes, name, own in zip(panels, FULL_METHODS, parts, strict=False):
        stacked(axes, np.array(FULL_EPOCHS), own)
        axes.set(title=name, xscale="log", xlabel="epochs")
    for axes in panels[[0, 4]]:
        axes.set_ylabel("error (share of rows)")
    panels[-1].axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].legend(handles, labels, loc="center")
    return drawing
