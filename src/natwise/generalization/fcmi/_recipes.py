"""Training recipes of every kind behind one call: train on some rows of a supersample, predict all of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from sklearn.base import clone
from sklearn.utils import _safe_indexing

from natwise.core.validation import shorten


class Recipe(Protocol):
    """What an experiment needs of a recipe; `BatchedTrainer` is one."""

    def chunk_size(self, n_runs: int) -> int:
        """Return how many runs are trained together."""

    def fit_predict(self, X: Any, y: np.ndarray, train: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Return the class codes (n_runs, n_examples) of runs trained on the rows `train` (n_runs, n)."""


class OneByOne:
    """Runs of ``train(X_train, y_train, X_query, seed)``, which takes and returns the user's own classes.

    Parameters
    ----------
    train : callable
        The recipe.
    classes : ndarray of shape (n_classes,)
        The user's classes, ascending; a code is a position among them.
    """

    def __init__(self, train: Callable[[Any, np.ndarray, Any, int], Any], classes: np.ndarray):
        self.train, self.classes = train, classes

    def chunk_size(self, n_runs: int) -> int:
        """Return 1."""
        return 1

    def fit_predict(self, X: Any, y: np.ndarray, train: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Return the class codes (n_runs, n_examples) of runs trained on the rows `train` (n_runs, n)."""
        return np.stack([self._run(X, y, rows, seed) for rows, seed in zip(train, seeds, strict=True)])

    def _run(self, X: Any, y: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
        """Return the codes (n_examples,) that a run on the examples `rows` (n,) predicts."""
        if (y[rows] == y[rows[0]]).all():
            return np.full(len(y), y[rows[0]])
        predicted = np.asarray(self.train(_safe_indexing(X, rows), self.classes[y[rows]], X, seed))
        if predicted.shape != y.shape:
            raise ValueError(f"estimator must predict a class per row, shape {y.shape}, got shape {predicted.shape}")
        codes = np.searchsorted(self.classes, predicted).clip(max=len(self.classes) - 1)
        if (unknown := self.classes[codes] != predicted).any():
            raise ValueError(f"estimator must predict classes of y, got {shorten(predicted[unknown][0])}")
        return codes


class Classifier:
    """A scikit-learn classifier as a train function; seeds go where its ``random_state`` is free."""

    def __init__(self, estimator: Any):
        self.estimator = estimator

    def __call__(self, X: Any, y: np.ndarray, X_query: Any, seed: int) -> np.ndarray:
        """Return the classes (n_query,) that a fresh clone predicts for `X_query` after fitting X (n, …) and y (n,)."""
        model = clone(self.estimator)
        free = [
            name
            for name, value in model.get_params().items()
            if value is None and name.rpartition("__")[2] == "random_state"
        ]
        return np.asarray(model.set_params(**dict.fromkeys(free, seed)).fit(X, y).predict(X_query))


def as_recipe(estimator: Any, classes: np.ndarray) -> Recipe:
    """Return a classifier, a trainer, a torch factory or a train function as a recipe for classes (n_classes,)."""
    if inspect.isclass(estimator) and hasattr(estimator, "fit"):
        raise TypeError(f"estimator must be an instance, got the class {estimator.__name__}")
    if hasattr(estimator, "chunk_size"):
        return estimator
    if hasattr(estimator, "fit") and hasattr(estimator, "predict"):
        return OneByOne(Classifier(estimator), classes)
    if not callable(estimator) or (hasattr(estimator, "forward") and not inspect.isclass(estimator)):
        raise TypeError(
            "estimator must be a classifier, a BatchedTrainer, a factory of torch modules or a train function, "
            f"got {shorten(estimator)}"
        )
    needed = _required_arguments(estimator)
    if needed == 4:
        return OneByOne(estimator, classes)
    if needed:
        raise TypeError(f"estimator must take no argument (a factory) or four (X, y, X_query, seed), it takes {needed}")
    from ._batched import BatchedTrainer

    return BatchedTrainer(estimator)


def describe(estimator: Any) -> str:
    """Return a recipe and its settings in words that are the same in every process."""
    if hasattr(estimator, "get_params"):
        settings = estimator.get_params()
    else:
        settings = {name: value for name, value in getattr(estimator, "__dict__", {}).items() if name != "verbose"}
    name = getattr(estimator, "__qualname__", type(estimator).__qualname__)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{name} {sorted(settings.items())!r}")


def _required_arguments(function: Callable[..., Any]) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.default is inspect.Parameter.empty and p.kind in positional for p in parameters)
