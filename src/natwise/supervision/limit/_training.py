"""What the classifiers share: data, the training run by validation accuracy, and predictions."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from natwise.core.random import Streams
from natwise.core.training import Trainer
from natwise.core.validation import check_flag, check_integer, check_option, check_real, shorten
from natwise.supervision.limit._limit import LIMITOutput
from natwise.supervision.limit._losses import ELRLoss
from natwise.supervision.limit._networks import default_network, fresh_copy

_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Task:
    """What a fit works on: float32 features, class numbers, and the rows that are trained on or held out."""

    X: np.ndarray
    y: np.ndarray
    train: np.ndarray
    X_val: np.ndarray
    y_val: np.ndarray
    n_classes: int
    streams: Streams


class Objective(nn.Module):
    """Networks and their loss as one module, so that a loss with parameters or state is trained and kept too."""

    def __init__(self, networks: Iterable[nn.Module], loss: nn.Module, warm_up_steps: int = 0):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.loss = loss
        self.warm_up_steps = warm_up_steps

    def forward(self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, step: int) -> torch.Tensor:
        """Return the loss of a batch: x (b, ...), class numbers y (b,), positions in the data (b,)."""
        logits = [network(x) for network in self.networks]
        output = self.loss(*logits, y, index) if isinstance(self.loss, ELRLoss) else self.loss(*logits, y)
        if isinstance(output, LIMITOutput):
            return output.q if step < self.warm_up_steps else output.total
        return output


class NetworkClassifier(ClassifierMixin, BaseEstimator):
    """What the classifiers have in common: data, the training run, and predictions of the network `_predictor`."""

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities, shape (n_samples, n_classes), columns as in `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, allow_nd=True, reset=False)
        return probabilities(self._predictor(), X)

    def predict(self, X: Any) -> np.ndarray:
        """Return the likeliest class of every sample, shape (n_samples,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def _predictor(self) -> nn.Module:
        raise NotImplementedError

    def _prepare(self, X: Any, y: Any, validation: Any, validation_labels: str | None) -> Task:
        """Check options and data, X (n, ...) and y (n,), and split off what is held out."""
        self._check_options()
        X, y = validate_data(self, X, y, dtype=np.float32, allow_nd=True)
        check_classification_targets(y)
        self.classes_, y = np.unique(y, return_inverse=True)
        n_classes = len(self.classes_)
        if n_classes < 2:
            raise ValueError(f"y must hold at least two classes, got 1 class: {shorten(self.classes_.tolist())}")
        streams = Streams.of(self.random_state)
        if validation is not None:
            check_option("validation_labels", validation_labels, ("noisy", "clean"))
            X_val, labels = validate_data(self, *validation, dtype=np.float32, allow_nd=True, reset=False)
            return Task(X, y, np.arange(len(y)), X_val, self._encode(labels), n_classes, streams)
        if validation_labels is not None:
            raise ValueError(f"validation_labels must be None without validation, got {validation_labels!r}")
        train, held = _split(y, self.validation_fraction, streams.seed("validation"))
        return Task(X, y, train, X[held], y[held], n_classes, streams)

    def _check_options(self) -> None:
        for name in ("max_epochs", "batch_size"):
            check_integer(name, getattr(self, name), minimum=1)
        check_real("lr", self.lr, minimum=0.0, exclusive=True)
        check_flag("record_train_error", self.record_train_error)
        if self.patience is not None:
            check_integer("patience", self.patience, minimum=1)
        check_real("validation_fraction", self.validation_fraction, minimum=0.0, maximum=0.9)

    def _encode(self, labels: Any) -> np.ndarray:
        """Return the class numbers (n,) of labels (n,) that were all seen in `fit`."""
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise ValueError(f"y must hold classes seen in fit, got {shorten(unknown.tolist())}")
        return np.searchsorted(self.classes_, labels)

    def _network(self, name: str, given: nn.Module | None, like: nn.Module | None, task: Task) -> nn.Module:
        """Return a copy of the given network, else a fresh one like another, else the default for the data."""
        with task.streams.torch_global(name):
            if given is not None:
                if not isinstance(given, nn.Module):
                    raise TypeError(f"{name} must be a torch.nn.Module or None, got {type(given).__name__}")
                network = copy.deepcopy(given)
            else:
                network = default_network(task.X, task.n_classes) if like is None else fresh_copy(like)
            _check_output(name, network, task.X[:2], task.n_classes)
        return network

    def _train(self, name: str, objective: Objective, task: Task) -> Run:
        """Train by accuracy on the validation labels, or to the last epoch when there are none."""
        curves: dict[str, list[float]] = {"validation_accuracy": [], "train_error": []}
        rows, network = task.train, objective.networks[0]
        epochs = itertools.count(1)

        def validate(_: nn.Module) -> float:
            if self.record_train_error:
                curves["train_error"].append(1 - _accuracy(network, task.X[rows], task.y[rows]))
            if not len(task.y_val):
                return -float(next(epochs))  # ever lower: the last weights are kept
            curves["validation_accuracy"].append(_accuracy(network, task.X_val, task.y_val))
            return -curves["validation_accuracy"][-1]

        trainer = Trainer(
            max_epochs=self.max_epochs,
            batch_size=batch_size_for(self.batch_size, len(rows), objective),
            learning_rate=self.lr,
            patience=self.patience if len(task.y_val) else None,
            device=self.device,
            random_state=task.streams.child(name),
            verbose=self.verbose,
        )
        data = task.X[rows], task.y[rows], rows
        history = trainer.fit(objective, lambda model, batch, step: model(*batch, step), data, validate=validate)
        found = {"loss": history.losses, **curves}
        return Run(objective, history.best_epoch or 0, {name: np.array(v) for name, v in found.items() if v})


@dataclass(frozen=True)
class Run:
    """A finished training run: the objective with the kept weights, their epoch, and the curves over the epochs."""

    objective: Objective
    best_epoch: int
    history: dict[str, np.ndarray]


def _split(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows to train on and rows to hold out, in proportion to the classes where they are large enough."""
    rows, n_held = np.arange(len(y)), round(fraction * len(y))
    counts = np.bincount(y)
    if n_held == 0 or len(y) - n_held < len(counts):
        return rows, rows[:0]
    stratify = y if counts.min() >= 2 and n_held >= len(counts) else None
    train, held = train_test_split(rows, test_size=n_held, random_state=seed, stratify=stratify)
    return train, held


def batch_size_for(wanted: int, n: int, networks: nn.Module) -> int:
    """Return the batch size, one or more larger where BatchNorm would be left with a last batch of one sample."""
    size = min(wanted, n)
    if any(isinstance(module, _BatchNorm) for module in networks.modules()):
        if size < 2:
            raise ValueError(f"batch_size must be >= 2 for a network with BatchNorm, got {wanted} for {n} samples")
        while n % size == 1:
            size += 1
    return size


def _check_output(name: str, network: nn.Module, X: np.ndarray, n_classes: int) -> None:
    """Refuse a network that does not turn features X (n, ...) into logits (n, n_classes)."""
    training = network.training
    try:
        with torch.no_grad():
            logits = network.cpu().eval()(torch.from_numpy(X))
    except (RuntimeError, ValueError) as error:
        reason = shorten(str(error), 100)
        raise ValueError(f"{name} must take features of shape {X.shape[1:]} in float32, got {reason}") from error
    if getattr(logits, "shape", None) != (len(X), n_classes):
        shape = tuple(logits.shape) if hasattr(logits, "shape") else type(logits).__name__
        raise ValueError(f"{name} must give logits of shape (n, {n_classes}), got {shape} for {len(X)} samples")
    network.train(training)


def probabilities(network: nn.Module, X: np.ndarray) -> np.ndarray:
    """Return the softmax of the network's logits for X (n, ...) as float64 (n, n_classes), some rows at a time."""
    device = next(network.parameters()).device
    batches = torch.from_numpy(X).split(_ROWS_AT_ONCE)
    with torch.no_grad():
        parts = [network(batch.to(device)).double().softmax(dim=1).cpu() for batch in batches]
    return torch.cat(parts).numpy()


def _accuracy(network: nn.Module, X: np.ndarray, y: np.ndarray) -> float:
    """Return the share of X (n, ...) whose likeliest class is y (n,)."""
    return float((probabilities(network, X).argmax(axis=1) == y).mean())
