"""Default classifiers and their out-of-fold probabilities: every row is judged by models that never saw it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def extra_trees(n_features: int, seed: int) -> Any:
    """Return 100 extremely randomised trees."""
    from sklearn.ensemble import ExtraTreesClassifier

    return ExtraTreesClassifier(100, min_samples_leaf=2, random_state=seed)


def boosted_trees(n_features: int, seed: int) -> Any:
    """Return 60 rounds of histogram gradient boosting with small trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=seed)


CANDIDATES: dict[str, Callable[[int, int], Any]] = {
    "logistic regression": logistic_regression,
    "kernel machine": kernel_machine,
    "extra trees": extra_trees,
    "boosted trees": boosted_trees,
}


def make_folds(labels: np.ndarray, clusters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a fold per row, classes spread evenly; rows of one cluster (duplicates) share a fold."""
    _, first, member = np.unique(clusters, return_index=True, return_inverse=True)
    order = rng.permutation(len(first))
    order = order[np.argsort(labels[first[order]], kind="stable")]
    fold = np.empty(len(first), dtype=np.int64)
    fold[order] = np.arange(len(order)) % N_FOLDS
    return fold[member]


def out_of_fold(
    name: str,
    X: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    folds: np.ndarray,
    streams: Streams,
    max_train: int | None = None,
) -> np.ndarray:
    """Return probabilities (n, n_classes) in float64: each row's from a model trained on the other folds.

    Parameters
    ----------
    name : str
        A key of `CANDIDATES`.
    X : ndarray, shape (n, d)
        Features, NaN where missing.
    labels, folds : ndarray of int, shape (n,)
        Class and fold of each row.
    n_classes : int
        Classes are 0 to n_classes - 1; one that a training part lacks gets probability 0 there.
    streams : Streams
        Seeds the models and the subsamples.
    max_train : int, optional
        Train each model on at most this many rows, chosen at random.
    """
    probabilities = np.zeros((len(X), n_classes))

    def judge(fold: int) -> None:
        train, rows = np.flatnonzero(folds != fold), folds == fold
        if max_train is not None and len(train) > max_train:
            train = np.sort(streams.numpy(f"subsample-{fold}").choice(train, max_train, replace=False))
        present = np.unique(labels[train])
        if len(present) < 2:
            probabilities[np.ix_(rows, present)] = 1.0
            return
        model = CANDIDATES[name](X.shape[1], streams.seed(f"model-{fold}"))
        with one_thread():
            model.fit(X[train], labels[train])
            probabilities[np.ix_(rows, present)] = model.predict_proba(X[rows])

    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")  # convergence to the last digit does not matter here
        Parallel(n_jobs=min(N_FOLDS, effective_n_jobs(-1)), prefer="threads")(map(delayed(judge), np.unique(folds)))
    return probabilities


def blend(
    names: tuple[str, ...],
    X: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    folds: np.ndarray,
    streams: Streams,
    max_train: int | None = None,
) -> np.ndarray:
    """Return the average of `out_of_fold` over several candidates."""
    parts = [out_of_fold(name, X, labels, n_classes, folds, streams.child(name), max_train) for name in names]
    return np.mean(parts, axis=0)


@dataclass(frozen=True, eq=False)
class Choice:
    """The model that was chosen, and the pilot that decided.

    `names` are averaged; `seconds` is what one cross-validation on `rows` rows took; `losses` holds the mean
    out-of-fold log-loss (nats) of everything tried.
    """

    names: tuple[str, ...]
    rows: int
    seconds: float
    losses: dict[str, float]


def choose(
    X: np.ndarray, labels: np.ndarray, n_classes: int, folds: np.ndarray, streams: Streams, deadline: Deadline
) -> Choice:
    """Compare the candidates on a subsample by out-of-fold log-loss; the two best averaged is one more candidate.

    A candidate whose predicted time does not fit before the deadline is not tried; the first always is.
    """
    rows = streams.numpy("pilot").permutation(len(X))[:PILOT_ROWS]
    small = rows[:MICRO_ROWS]
    found: dict[str, tuple[np.ndarray, float]] = {}
    for name in CANDIDATES:
        if name == "boosted trees" and n_classes > MAX_BOOSTED_CLASSES:
            continue  # its cost grows with the number of classes
        args = (n_classes, folds, streams.child(name))
        _, seconds = timed(lambda: _rows_only(name, X, labels, small, *args))  # noqa: B023  # runs at once
        if found and seconds * len(rows) / len(small) > deadline.left():
            continue
        found[name] = timed(lambda: _rows_only(name, X, labels, rows, *args))  # noqa: B023
    losses = {name: log_loss(probabilities, labels[rows]) for name, (probabilities, _) in found.items()}
    names = tuple(sorted(losses, key=lambda name: losses[name])[:2])
    if len(names) == 2:
        losses[" + ".join(names)] = log_loss(np.mean([found[name][0] for name in names], axis=0), labels[rows])
    best = min(losses, key=lambda name: losses[name])
    names = names if " + " in best else (best,)
    return Choice(names, len(rows), sum(found[name][1] for name in names), losses)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean log-loss in nats; no probability counts as less than 1/1000, since trees say 0 lightly."""
    given = probabilities[np.arange(len(labels)), labels]
    return float(-np.log((given + FLOOR) / (1 + FLOOR * probabilities.shape[1])).mean())


def _rows_only(
    name: str, X: np.ndarray, labels: np.ndarray, rows: np.ndarray, n_classes: int, folds: np.ndarray, streams: Streams
) -> np.ndarray:
    return out_of_fold(name, X[rows], labels[rows], n_classes, folds[rows], streams)


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
