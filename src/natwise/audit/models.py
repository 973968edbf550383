"""Models and their out-of-fold predictions: every row is judged by models that never saw it.

A factory takes the number of features and a seed and returns a fresh estimator. With classes, predictions are
probabilities (n, n_classes); for a number to be predicted, ``n_classes`` is 0 and predictions have shape (n, 1).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from joblib import effective_n_jobs
from sklearn.utils.parallel import Parallel, delayed

from natwise.audit.context import Deadline, one_thread
from natwise.core.random import Streams

N_FOLDS = 5
PILOT_ROWS = 2000
MICRO_ROWS = 200
FLOOR = 1e-3
MAX_BOOSTED_CLASSES = 3
MIN_TRAIN = 100
Factory: TypeAlias = Callable[[int, int], Any]


def logistic_regression(n_features: int, seed: int) -> Any:
    """Return a strongly regularised linear model; missing values count as the median, with a flag."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    filled = SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True)
    return make_pipeline(filled, LogisticRegression(C=0.02, max_iter=100))


def kernel_machine(n_features: int, seed: int) -> Any:
    """Return logistic regression on 400 random points of a Gaussian kernel (Nyström)."""
    from sklearn.impute import SimpleImputer
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    filled = SimpleImputer(strategy="constant", fill_value=0.0)
    kernel = Nystroem(gamma=0.5 / n_features, n_components=400, random_state=seed)
    return make_pipeline(filled, kernel, LogisticRegression(C=3.0, max_iter=100))


def ridge_regression(n_features: int, seed: int) -> Any:
    """Return a regularised linear model of a number; missing values count as the median, with a flag."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    return make_pipeline(SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True), Ridge(10.0))


def kernel_ridge(n_features: int, seed: int) -> Any:
    """Return ridge regression on 400 random points of a Gaussian kernel (Nyström)."""
    from sklearn.impute import SimpleImputer
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    filled = SimpleImputer(strategy="constant", fill_value=0.0)
    kernel = Nystroem(gamma=0.2 / n_features, n_components=400, random_state=seed)
    return make_pipeline(filled, kernel, Ridge(0.1))


def extra_trees_regression(n_features: int, seed: int) -> Any:
    """Return 100 extremely randomised regression trees."""
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(100, min_samples_leaf=3, max_features=0.5, random_state=seed)


def boosted_regression(n_features: int, seed: int) -> Any:
    """Return 100 rounds of histogram gradient boosting of the absolute error, which few wrong labels hardly move."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        loss="absolute_error", max_iter=100, max_leaf_nodes=15, early_stopping=False, random_state=seed
    )


def extra_trees(n_features: int, seed: int) -> Any:
    """Return 100 extremely randomised trees."""
    from sklearn.ensemble import ExtraTreesClassifier

    return ExtraTreesClassifier(100, min_samples_leaf=2, random_state=seed)


def boosted_trees(n_features: int, seed: int) -> Any:
    """Return 60 rounds of histogram gradient boosting with small trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=seed)


CLASSIFIERS: dict[str, Factory] = {
    "logistic regression": logistic_regression,
    "kernel machine": kernel_machine,
    "extra trees": extra_trees,
    "boosted trees": boosted_trees,
}
REGRESSORS: dict[str, Factory] = {
    "ridge regression": ridge_regression,
    "kernel ridge regression": kernel_ridge,
    "extra trees": extra_trees_regression,
    "boosted trees": boosted_regression,
}


def default_models(n_classes: int) -> dict[str, Factory]:
    """Return the candidates for a number of classes, 0 for a number; boosting costs too much with many classes."""
    if not n_classes:
        return REGRESSORS
    left_out = "boosted trees" if n_classes > MAX_BOOSTED_CLASSES else ""
    return {name: factory for name, factory in CLASSIFIERS.items() if name != left_out}


def make_folds(labels: np.ndarray, clusters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a fold per row, classes spread evenly; rows of one cluster (duplicates) share a fold."""
    _, first, member = np.unique(clusters, return_index=True, return_inverse=True)
    order = rng.permutation(len(first))
    order = order[np.argsort(labels[first[order]], kind="stable")]
    fold = np.empty(len(first), dtype=np.int64)
    fold[order] = np.arange(len(order)) % N_FOLDS
    return fold[member]


def out_of_fold(
    factory: Factory,
    X: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    folds: np.ndarray,
    streams: Streams,
    max_train: int | None = None,
) -> np.ndarray:
    """Return predictions in float64: each row's from a model trained on the other folds.

    Parameters
    ----------
    factory : callable
        See the module.
    X : ndarray, shape (n, d)
        Features, NaN where missing.
    labels : ndarray, shape (n,)
        Class (0 to n_classes - 1) or number of each row; a class that a training part lacks gets probability 0 there.
    n_classes : int
        0 for numbers.
    folds : ndarray of int, shape (n,)
        Fold of each row.
    streams : Streams
        Seeds the models and the subsamples.
    max_train : int, optional
        Train each model on at most this many rows, chosen at random.
    """
    predictions = np.zeros((len(X), max(n_classes, 1)))

    def judge(fold: int) -> None:
        train, rows = np.flatnonzero(folds != fold), folds == fold
        if max_train is not None and len(train) > max_train:
            train = np.sort(streams.numpy(f"subsample-{fold}").choice(train, max_train, replace=False))
        with one_thread():
            seed = streams.seed(f"model-{fold}")
            predictions[rows] = fit_predict(factory, X[train], labels[train], X[rows], n_classes, seed)

    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")  # convergence to the last digit does not matter here
        Parallel(n_jobs=min(N_FOLDS, effective_n_jobs(-1)), prefer="threads")(map(delayed(judge), np.unique(folds)))
    return predictions


def fit_predict(
    factory: Factory, X: np.ndarray, labels: np.ndarray, X_new: np.ndarray, n_classes: int, seed: int
) -> np.ndarray:
    """Return what a fresh model, fitted on (X, labels), predicts for `X_new` (m, d): shape (m, n_classes or 1)."""
    if not n_classes:
        return np.reshape(factory(X.shape[1], seed).fit(X, labels).predict(X_new), (len(X_new), 1))
    predictions = np.zeros((len(X_new), n_classes))
    present = np.unique(labels)
    if len(present) < 2:
        predictions[:, present] = 1.0
    elif len(X_new):
        predictions[:, present] = factory(X.shape[1], seed).fit(X, labels).predict_proba(X_new)
    return predictions


def blend(
    factories: Mapping[str, Factory],
    X: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    folds: np.ndarray,
    streams: Streams,
    max_train: int | None = None,
) -> np.ndarray:
    """Return the average (n, n_classes or 1) of `out_of_fold` over several models."""
    parts = [
        out_of_fold(factory, X, labels, n_classes, folds, streams.child(name), max_train)
        for name, factory in factories.items()
    ]
    return np.mean(parts, axis=0)


@dataclass(frozen=True, eq=False)
class Choice:
    """The model that was chosen, and the pilot that decided.

    `names` are averaged; `seconds` is what one cross-validation on `rows` rows took; `losses` holds the mean
    out-of-fold loss (see `loss`) of everything tried.
    """

    names: tuple[str, ...]
    rows: int
    seconds: float
    losses: dict[str, float]


def choose(
    factories: Mapping[str, Factory],
    X: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    folds: np.ndarray,
    streams: Streams,
    deadline: Deadline,
) -> Choice:
    """Compare models on a subsample of X (n, d) by out-of-fold loss; the two best averaged is one more candidate.

    A model whose predicted time does not fit before the deadline is not tried; the first always is.
    """
    rows = streams.numpy("pilot").permutation(len(X))[:PILOT_ROWS]
    small = rows[:MICRO_ROWS]
    found: dict[str, tuple[np.ndarray, float]] = {}

    def judged(name: str, some: np.ndarray) -> tuple[np.ndarray, float]:
        args = (factories[name], X[some], labels[some], n_classes, folds[some], streams.child(name))
        return timed(lambda: out_of_fold(*args))

    for name in factories:
        _, seconds = judged(name, small)
        if found and seconds * len(rows) / len(small) > deadline.left():
            continue
        found[name] = judged(name, rows)
    losses = {name: loss(predictions, labels[rows]) for name, (predictions, _) in found.items()}
    names = tuple(sorted(losses, key=lambda name: losses[name])[:2])
    if len(names) == 2:
        losses[" + ".join(names)] = loss(np.mean([found[name][0] for name in names], axis=0), labels[rows])
    best = min(losses, key=lambda name: losses[name])
    names = names if " + " in best else (best,)
    return Choice(names, len(rows), sum(found[name][1] for name in names), losses)


def loss(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean log-loss in nats of probabilities (n, k), or of numbers (n, 1) the mean absolute error.

    No probability counts as less than 1/1000, since trees say 0 lightly.
    """
    if predictions.shape[1] == 1:
        return float(np.abs(predictions[:, 0] - labels).mean())
    given = predictions[np.arange(len(labels)), labels]
    return float(-np.log((given + FLOOR) / (1 + FLOOR * predictions.shape[1])).mean())


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what `work` returns and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def affordable_rows(seconds_at: float, rows: int, runs: int, deadline: Deadline, available: int) -> int:
    """Return how many training rows fit into `runs` cross-validations before the deadline.

    Costs are taken to grow as rows^1.2 (trees sort), from one measured cross-validation on `rows` rows.
    """
    allowed = deadline.left() / max(runs, 1)
    rows_allowed = 0.8 * rows * (allowed / max(seconds_at, 1e-3)) ** (1 / 1.2)
    return int(np.clip(rows_allowed, MIN_TRAIN, available))
