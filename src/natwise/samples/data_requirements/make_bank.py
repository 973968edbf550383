"""Measure the bank of learning curves that `MetaPiecewisePowerLaw` learns from, and write `bank.json`.

    python -m natwise.samples.data_requirements.make_bank [--out bank.json]

Data come from scikit-learn (bundled files and generators, nothing is downloaded) and, when ``$NATWISE_DATA`` is
set, from our own measurements on MNIST and digits in ``curves/learning_curves_sklearn.json``. About five minutes
on one core.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from joblib import parallel_config
from sklearn import datasets as sk
from sklearn.base import ClassifierMixin
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from natwise.core.io import write_text
from natwise.datasets import local

from ._measure import measure_learning_curve

N_SYNTHETIC = 4000
SHARED_CURVES = "curves/learning_curves_sklearn.json"

LEARNERS: dict[str, ClassifierMixin] = {
    "logistic": LogisticRegression(max_iter=500),
    "neighbours": KNeighborsClassifier(1),
    "bayes": GaussianNB(var_smoothing=1e-3),
    "trees": ExtraTreesClassifier(50),
    "svc": SVC(C=3.0),
    "mlp": MLPClassifier((64,), max_iter=60, learning_rate_init=0.01),
}


def _classification(i: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one of a range of Gaussian-cluster problems: classes, dimension, separation and noise vary."""
    rng = np.random.default_rng(i)
    n_classes = int(rng.choice([2, 3, 5, 10]))
    n_informative = int(rng.integers(5, 16))
    return sk.make_classification(
        N_SYNTHETIC,
        n_features=n_informative + int(rng.integers(0, 40)),
        n_informative=n_informative,
        n_redundant=0,
        n_classes=n_classes,
        n_clusters_per_class=int(rng.integers(1, 4)),
        class_sep=float(rng.uniform(0.7, 2.0)),
        flip_y=float(rng.choice([0.0, 0.0, 0.05])),
        random_state=i,
    )


def _friedman(i: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a regression problem of Friedman, cut into classes at quantiles."""
    make = (sk.make_friedman1, sk.make_friedman2, sk.make_friedman3)[i]
    X, target = make(N_SYNTHETIC, random_state=i)
    return X, np.digitize(target, np.quantile(target, np.linspace(0, 1, i + 3)[1:-1]))


def _quantiles(i: int) -> tuple[np.ndarray, np.ndarray]:
    return sk.make_gaussian_quantiles(n_samples=N_SYNTHETIC, n_features=4 + 4 * i, n_classes=2 + i, random_state=i)


def _diabetes(_: int) -> tuple[np.ndarray, np.ndarray]:
    X, target = sk.load_diabetes(return_X_y=True)
    return X, (target > np.median(target)).astype(int)


def _bundled(load: Callable[..., Any]) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    return lambda _: load(return_X_y=True)


# family -> (how to make data set i, how many); a family is what an honest evaluation leaves out as a whole
FAMILIES: dict[str, tuple[Callable[[int], tuple[np.ndarray, np.ndarray]], int]] = {
    "digits": (_bundled(sk.load_digits), 1),
    "wine": (_bundled(sk.load_wine), 1),
    "breast_cancer": (_bundled(sk.load_breast_cancer), 1),
    "iris": (_bundled(sk.load_iris), 1),
    "diabetes": (_diabetes, 1),
    "clusters": (_classification, 16),
    "friedman": (_friedman, 3),
    "quantiles": (_quantiles, 3),
    "hastie": (lambda i: sk.make_hastie_10_2(N_SYNTHETIC, random_state=i), 1),
    "moons": (lambda i: sk.make_moons(N_SYNTHETIC, noise=0.2 + 0.15 * i, random_state=i), 2),
    "circles": (lambda i: sk.make_circles(N_SYNTHETIC, noise=0.1 + 0.1 * i, factor=0.6, random_state=i), 2),
}


def main() -> None:
    """Measure all curves and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("bank.json"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    with parallel_config(n_jobs=1):
        curves = [*_measure_all(arguments.repeats), *_shared()]
    lines = ",\n".join(json.dumps(curve, separators=(",", ":")) for curve in curves)
    write_text(arguments.out, f"[\n{lines}\n]\n")
    print(f"{len(curves)} curves in {arguments.out}")


def _measure_all(repeats: int) -> Iterator[dict[str, Any]]:
    for family, (make, count) in FAMILIES.items():
        for i in range(count):
            X, y = make(i)
            for learner, estimator in LEARNERS.items():
                print(family, i, learner, flush=True)
                model = make_pipeline(StandardScaler(), estimator)
                pool = int(0.75 * len(X))
                smallest = max(8, 3 * len(np.unique(y)))
                sizes = np.geomspace(smallest, pool, 12).round().astype(int)
                result = measure_learning_curve(model, X, y, sizes=sizes.tolist(), repeats=repeats, random_state=i)
                yield _entry(family, f"{family}-{i}", learner, y, result.arrays["n"], result.arrays["errors"])


def _entry(family: str, dataset: str, learner: str, y: Any, n: np.ndarray, errors: np.ndarray) -> dict[str, Any]:
    """Return a curve as JSON: per size the geometric mean of the errors of its repeats."""
    sizes = np.unique(n)
    means = [float(np.exp(np.log(errors[n == size]).mean())) for size in sizes]
    return {
        "family": family,
        "dataset": dataset,
        "learner": learner,
        "n_classes": len(np.unique(y)),
        "n": sizes.astype(int).tolist(),
        "errors": [float(f"{mean:.4g}") for mean in means],
    }


def _shared() -> Iterator[dict[str, Any]]:
    try:
        curves = json.loads(local.find(SHARED_CURVES).read_text())
    except local.DataNotFoundError as error:
        print(f"left out: {error}")
        return
    for curve in curves:
        floor = 0.5 / curve["n_test"]
        pairs = [(p["n"], max(error, floor)) for p in curve["curve"] for error in p["errors"]]
        n, errors = (np.array(column) for column in zip(*pairs, strict=True))
        dataset = f"{curve['dataset']}-{curve['task']}"
        classes = range(curve["n_classes"])
        yield _entry(curve["dataset"], dataset, curve["learner"], classes, n, errors)


if __name__ == "__main__":
    main()
