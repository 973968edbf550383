"""A user's own model in the audit: found by name, checked before long work, and its failures said in one line."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone

from natwise.audit.models import Factory
from natwise.core.validation import shorten, suggest

TRIAL_ROWS, TRIAL_ROWS_OF_CLASS = 60, 10
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class OwnModel(BaseEstimator):
    """An estimator behind one interface: missing values are 0 (the median), an error of any kind is a ValueError.

    Parameters
    ----------
    estimator : object
        With ``fit(X, y)`` and ``predict_proba(X)``, for numbers ``predict(X)``; fitted as a copy.
    """

    def __init__(self, estimator: Any):
        self.estimator = estimator

    def fit(self, X: np.ndarray, y: np.ndarray) -> OwnModel:
        """Fit a copy of the estimator on features (n, d) and class codes or numbers (n,)."""
        self.classes_ = np.unique(y)
        self.estimator_ = clone(self.estimator, safe=False)
        _guarded(self.estimator_, "fit", np.nan_to_num(X), y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return probabilities (n, classes), checked and scaled to sum to 1."""
        found = np.asarray(_guarded(self.estimator_, "predict_proba", np.nan_to_num(X)), dtype=np.float64)
        expected = len(X), len(self.classes_)
        if found.shape != expected:
            raise ValueError(
                f"predict_proba of {_name(self.estimator)} must return shape {expected}, a column per class that "
                f"it was fitted on, got {found.shape}"
            )
        if not (np.isfinite(found).all() and (found >= 0).all() and (found.sum(axis=1) > 0).all()):
            raise ValueError(f"predict_proba of {_name(self.estimator)} must return probabilities, got other numbers")
        return found / found.sum(axis=1, keepdims=True)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the likeliest class, or the predicted number, of each row: (n,)."""
        if hasattr(self.estimator_, "predict_proba"):
            return self.classes_[self.predict_proba(X).argmax(axis=1)]
        found = np.asarray(_guarded(self.estimator_, "predict", np.nan_to_num(X)), dtype=np.float64).reshape(-1)
        if found.shape != (len(X),) or not np.isfinite(found).all():
            raise ValueError(f"predict of {_name(self.estimator)} must return a finite number per row")
        return found


def own_factory(model: Any, n_classes: int) -> tuple[str, Factory]:
    """Return the name and the factory of a user's model.

    Parameters
    ----------
    model : str, estimator or callable
        ``"package:factory"`` names a callable of an importable module (the working folder counts); a callable without
        arguments returns a fresh estimator; an estimator is copied.
    n_classes : int
        0 for numbers: then ``predict`` is needed, else ``predict_proba``.
    """
    given = _find(model) if isinstance(model, str) else model
    if inspect.isclass(given) or not hasattr(given, "fit"):
        if not callable(given):
            raise TypeError(
                f"model must be an estimator, a callable that returns one, or its name, got {shorten(model)}"
            )
        estimator = _guarded(given, "__call__")
    else:
        estimator = given
    needed = ("fit", "predict_proba" if n_classes else "predict")
    missing = [method for method in needed if not callable(getattr(estimator, method, None))]
    if missing:
        task = "classes" if n_classes else "numbers"
        raise TypeError(
            f"model must have {' and '.join(needed)} to judge {task}; {_name(estimator)} has no {missing[0]}"
        )

    def factory(n_features: int, seed: int) -> OwnModel:
        fresh = OwnModel(clone(estimator, safe=False))
        free = [
            name
            for name, value in fresh.get_params().items()
            if value is None and name.rpartition("__")[2] == "random_state"
        ]
        return fresh.set_params(**dict.fromkeys(free, seed % 2**31))

    return model if isinstance(model, str) else _name(estimator), factory


def try_model(factory: Factory, X: np.ndarray, labels: np.ndarray, n_classes: int) -> None:
    """Fit the model on a few rows of X (n, d) of every class, to say what is wrong with it before long work."""
    some = [np.flatnonzero(labels == c)[:TRIAL_ROWS_OF_CLASS] for c in range(min(n_classes, 10))]
    rows = np.concatenate(some) if n_classes else np.arange(min(len(labels), TRIAL_ROWS))
    if len(np.unique(labels[rows])) > 1:
        fitted = factory(X.shape[1], 0).fit(X[rows], labels[rows])
        fitted.predict_proba(X[rows]) if n_classes else fitted.predict(X[rows])


def _find(name: str) -> Any:
    if not _NAME.fullmatch(name):
        raise ValueError(f"model must be named package:factory, got {shorten(name)}")
    module_name, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's: whatever it raises is said
        raise ValueError(f"model: {module_name} cannot be imported: {_reason(error)}") from error
    finally:
        if added:
            sys.path.remove(folder)
    if not hasattr(module, attribute):
        raise ValueError(
            f"model: {module_name} has no {shorten(attribute)}.{suggest(attribute, dir(module))}".rstrip(".")
        )
    return getattr(module, attribute)


def _guarded(estimator: Any, method: str, *arguments: Any) -> Any:
    try:
        return getattr(estimator, method)(*arguments)
    except Exception as error:  # the code is the user's: whatever it raises is said
        what = "the factory" if method == "__call__" else method
        raise ValueError(f"model: {what} of {_name(estimator)} failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(str(error), 200)}"


def _name(estimator: Any) -> str:
    return getattr(estimator, "__name__", type(estimator).__name__)
