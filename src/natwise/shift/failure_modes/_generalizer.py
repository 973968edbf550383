"""`DomainGeneralizer`: classifiers trained on several domains, by eleven algorithms and three ways to select."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from natwise.core.labels import check_labels, check_same_kind
from natwise.core.random import RandomState, Streams
from natwise.core.training import Trainer
from natwise.core.validation import check_integer, check_option, check_real, for_sklearn, shorten
from natwise.shift._inputs import to_candidates
from natwise.shift.failure_modes._inputs import check_domains
from natwise.shift.failure_modes._objective import ANNEALED, WEIGHTS, Objective, Perceptron

SELECTIONS = ("training_domain", "leave_one_domain_out", "oracle", "last")
ROWS_AT_ONCE = 4096
ANNEALED_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class _Task:
    """Training rows, and the sets on which epochs are scored: one per domain, or the oracle's one."""

    X: np.ndarray
    y: np.ndarray
    domain: np.ndarray
    scored: tuple[tuple[np.ndarray, np.ndarray], ...]
    n_classes: int
    streams: Streams


@dataclass(frozen=True, eq=False)
class _Run:
    """A finished training: the network of the kept epoch (from 0), losses and mean accuracies of all epochs."""

    network: Objective
    best_epoch: int
    losses: np.ndarray
    accuracies: np.ndarray


class DomainGeneralizer(ClassifierMixin, TransformerMixin, BaseEstimator):
    """Classifier for data of several domains, trained to work on others.

    Every step draws the same number of rows from each domain and minimises the mean cross-entropy of the domains plus
    weighted penalties. `transform` gives the representation that `FailureModes` diagnoses.

    Parameters
    ----------
    algorithm : str or mapping of str to float
        "erm", "irm", "vrex", "coral", "mmd", "dann", "group_dro", "hsic", "conditional_hsic", "spectral_decoupling"
        or "gradient_penalty" (of the head), see `penalties`; or several with their weights, such as
        ``{"hsic": 1.0, "spectral_decoupling": 0.01}``.
    weight : float, sequence of float, or None
        Weight of the penalty (group_dro: the step size of the domains' weights). Of several candidates `selection`
        chooses. None: irm 100, vrex 10, group_dro and spectral_decoupling 0.01, others 1.
    featurizer : torch.nn.Module, optional
        Maps float32 features to representations (n, d); a copy is trained. Default: a hidden layer of `n_hidden`
        rectified units on standardised features.
    n_hidden : int
        Width of the default featurizer.
    selection : {"training_domain", "leave_one_domain_out", "oracle", "last"}
        How the epoch, and the weight where there are candidates, are chosen. "training_domain": accuracy on a
        held-out part of each training domain, blind to what fails elsewhere. "leave_one_domain_out": every training
        domain in turn is left out and scored, then all are trained on (one more training per domain and candidate).
        "oracle": accuracy on data of the test domain, given as `validation`: optimistic, for comparison only. "last":
        the last epoch, nothing is chosen.
    validation_fraction : float
        Share of each domain and class that "training_domain" holds out.
    anneal_steps : int, optional
        Updates before the first epoch in which irm and vrex have weight 1; then the optimiser starts anew. None: a
        tenth of all updates for irm and vrex.
    irm_estimator : {"split", "full"}
        See `penalties.irm`.
    max_epochs, batch_size : int
        Length of the training, and rows per step over all domains together (at least two of each).
    learning_rate, weight_decay : float
        Of AdamW. For irm and vrex the whole loss is divided by their weight when that exceeds 1.
    device : str or torch.device
        Where to train and predict.
    random_state : int, Generator, RandomState, Streams or None
        Seeds weights, split and batches.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Attributes
    ----------
    classes_, domains_ : ndarray
        Class labels and ids of the training domains.
    network_ : torch.nn.Module
        The trained network; ``featurizer`` and ``head`` are its parts.
    weight_ : float or None
        The weight that was used; None for a mapping.
    candidate_scores_ : ndarray of shape (n_candidates,)
        Best accuracy of every candidate under `selection`; empty for "last".
    best_epoch_ : int
        The epoch (from 0) that is kept.
    history_ : dict of str to ndarray
        Per epoch ``loss``, and ``validation_accuracy`` where there is any: means over the scored domains.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y, domain = rng.integers(2, size=300), np.arange(300) % 3
    >>> X = rng.normal(size=(300, 2)) + 3 * y[:, None] + domain[:, None]
    >>> model = DomainGeneralizer("coral", max_epochs=20, random_state=0).fit(X, y, domain)
    >>> model.score(X, y) > 0.9, model.transform(X).shape
    (True, (300, 64))
    """

    def __init__(
        self,
        algorithm: str | Mapping[str, float] = "erm",
        *,
        weight: float | Sequence[float] | None = None,
        featurizer: nn.Module | None = None,
        n_hidden: int = 64,
        selection: str = "training_domain",
        validation_fraction: float = 0.2,
        anneal_steps: int | None = None,
        irm_estimator: str = "split",
        max_epochs: int = 50,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        device: str | torch.device = "cpu",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.algorithm = algorithm
        self.weight = weight
        self.featurizer = featurizer
        self.n_hidden = n_hidden
        self.selection = selection
        self.validation_fraction = validation_fraction
        self.anneal_steps = anneal_steps
        self.irm_estimator = irm_estimator
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, domain: Any, *, validation: tuple[Any, Any] | None = None) -> DomainGeneralizer:
        """Train on the domains.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Features; cast to float32.
        y : array-like of shape (n_samples,)
            Classes: integers or text.
        domain : array-like of shape (n_samples,)
            Domain of each row: integers or text, at least two (three for "leave_one_domain_out").
        validation : tuple (X, y), optional
            Labelled data of the test domain, for "oracle" and for nothing else.

        Raises
        ------
        TypeError, ValueError
            For wrong data or options.
        """
        candidates = self._check_options()
        task = self._prepare(X, y, domain, validation)
        if self.selection == "leave_one_domain_out":
            return self._keep(candidates, *self._leave_one_out(candidates, task))
        runs = [self._train(weights, task, self.max_epochs) for weights in candidates]
        scores = [run.accuracies.max() for run in runs if len(run.accuracies)]
        best = int(np.argmax(scores)) if scores else 0
        return self._keep(candidates, best, np.array(scores), runs[best])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities (n_samples, n_classes) in float64."""
        return self._logits(X).double().softmax(dim=1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the likeliest class of each row, (n_samples,)."""
        best = self._logits(X).argmax(dim=1).numpy()
        return self.classes_[best]

    def transform(self, X: Any) -> np.ndarray:
        """Return the representation (n_samples, d) in float32, which the linear head reads."""
        check_is_fitted(self)
        X = self._check_rows("X", X, reset=False)
        return _represent(self.network_, X).numpy()

    def _logits(self, X: Any) -> torch.Tensor:
        Z = torch.from_numpy(self.transform(X))
        with torch.no_grad():
            return self.network_.head(Z.to(self.network_.q.device)).cpu()

    def _keep(self, candidates: list[dict[str, float]], best: int, scores: np.ndarray, run: _Run) -> DomainGeneralizer:
        self.network_, self.best_epoch_ = run.network, run.best_epoch
        self.weight_ = candidates[best][self.algorithm] if isinstance(self.algorithm, str) else None
        self.candidate_scores_ = scores
        self.history_ = {"loss": run.losses}
        if len(run.accuracies):
            self.history_["validation_accuracy"] = run.accuracies
        return self

    def _leave_one_out(self, candidates: list[dict[str, float]], task: _Task) -> tuple[int, np.ndarray, _Run]:
        """Return the candidate whose best epoch is best on domains left out, all scores, and its run on all domains."""
        curves = []
        for weights in candidates:
            runs = [self._train(weights, _without(task, left), self.max_epochs) for left in range(len(self.domains_))]
            curves.append(np.mean([run.accuracies for run in runs], axis=0))
        scores = np.array([curve.max() for curve in curves])
        best = int(scores.argmax())
        n_epochs = int(curves[best].argmax()) + 1
        run = self._train(candidates[best], task, n_epochs)
        return best, scores, replace(run, accuracies=curves[best])

    def _check_options(self) -> list[dict[str, float]]:
        """Return the weights of the algorithms for every candidate."""
        for name in ("max_epochs", "n_hidden"):
            check_integer(name, getattr(self, name), minimum=1)
        check_integer("batch_size", self.batch_size, minimum=4)
        check_real("learning_rate", self.learning_rate, minimum=0.0, exclusive=True)
        check_real("weight_decay", self.weight_decay, minimum=0.0)
        check_option("selection", self.selection, SELECTIONS)
        check_option("irm_estimator", self.irm_estimator, ("split", "full"))
        check_real("validation_fraction", self.validation_fraction, minimum=0.0, maximum=1.0, exclusive=True)
        if self.anneal_steps is not None:
            check_integer("anneal_steps", self.anneal_steps, minimum=0)
        if isinstance(self.algorithm, Mapping):
            if self.weight is not None:
                raise ValueError(f"weight must be None when algorithm is a mapping, got {shorten(self.weight)}")
            if not self.algorithm:
                raise ValueError("algorithm must name at least one algorithm, got an empty mapping")
            for name, weight in self.algorithm.items():
                check_option("algorithm", name, tuple(WEIGHTS))
                check_real("algorithm", weight, minimum=0.0)
            return [{name: float(weight) for name, weight in self.algorithm.items()}]
        check_option("algorithm", self.algorithm, tuple(WEIGHTS))
        return [{self.algorithm: weight} for weight in self._weights()]

    def _weights(self) -> list[float]:
        if self.weight is None:
            return [WEIGHTS[str(self.algorithm)]]
        given = to_candidates("weight", self.weight)
        if len(given) > 1 and self.selection == "last":
            raise ValueError(f"weight must be one number when selection='last', got {len(given)} candidates")
        return [check_real("weight", weight, minimum=0.0) for weight in given]

    def _prepare(self, X: Any, y: Any, domain: Any, validation: Any) -> _Task:
        X = self._check_rows("X", X, reset=True)
        self.classes_, codes = np.unique(check_labels("y", y, len(X), "row of X"), return_inverse=True)
        self.domains_, numbers = np.unique(check_domains("domain", domain, len(X)), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes, got 1: {shorten(self.classes_.tolist())}")
        fewest = 3 if self.selection == "leave_one_domain_out" else 2
        if len(self.domains_) < fewest:
            found = shorten(self.domains_.tolist())
            raise ValueError(f"domain must hold at least {fewest} domains, got {len(self.domains_)}: {found}")
        if np.bincount(numbers).min() < 2:
            raise ValueError("domain must hold at least 2 rows of each domain, got 1")
        if self.batch_size < 2 * len(self.domains_):
            raise ValueError(
                f"batch_size must be >= 2 per domain ({len(self.domains_)} domains), got {self.batch_size}"
            )
        if (validation is not None) != (self.selection == "oracle"):
            expected = "a tuple (X, y)" if self.selection == "oracle" else "None"
            raise ValueError(f"validation must be {expected} when selection={self.selection!r}")
        task = _Task(X, codes, numbers, (), len(self.classes_), Streams.of(self.random_state))
        if self.selection == "oracle":
            return replace(task, scored=(self._check_validation(validation),))
        return _split(task, self.validation_fraction) if self.selection == "training_domain" else task

    def _check_rows(self, name: str, X: Any, *, reset: bool) -> np.ndarray:
        """Return features (n_samples, ...) as finite float32."""
        return validate_data(self, for_sklearn(name, X), dtype=np.float32, allow_nd=True, reset=reset)

    def _check_validation(self, validation: Any) -> tuple[np.ndarray, np.ndarray]:
        if not isinstance(validation, tuple) or len(validation) != 2:
            raise TypeError(f"validation must be a tuple (X, y), got {shorten(validation)}")
        X = self._check_rows("validation", validation[0], reset=False)
        y = check_labels("validation", validation[1], len(X))
        check_same_kind("validation", y, "y", self.classes_)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"validation must hold classes that y holds, got {shorten(unknown.tolist())}")
        return X, np.searchsorted(self.classes_, y)

    def _network(self, weights: dict[str, float], task: _Task) -> Objective:
        with task.streams.torch_global("network"):
            if self.featurizer is None:
                featurizer: nn.Module = Perceptron(task.X, self.n_hidden)
            elif isinstance(self.featurizer, nn.Module):
                featurizer = copy.deepcopy(self.featurizer)
            else:
                raise TypeError(f"featurizer must be a torch.nn.Module or None, got {type(self.featurizer).__name__}")
            with torch.no_grad():
                z = featurizer.cpu().eval()(torch.from_numpy(task.X[:2]))
            if z.ndim != 2 or len(z) != 2:
                raise ValueError(f"featurizer must return shape (n, d), got {tuple(z.shape)} for 2 rows")
            n_domains = int(task.domain.max()) + 1
            return Objective(featurizer, z.shape[1], task.n_classes, n_domains, weights, self.irm_estimator)

    def _train(self, weights: dict[str, float], task: _Task, max_epochs: int) -> _Run:
        """Train by drawn batches; score every epoch on the task's sets where there are any."""
        network = self._network(weights, task)
        rows = [np.flatnonzero(task.domain == number) for number in range(network.n_domains)]
        size = self.batch_size // network.n_domains

        def draw(_: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            chosen = np.concatenate([rng.choice(own, min(size, len(own)), replace=False) for own in rows])
            return task.X[chosen], task.y[chosen], task.domain[chosen]

        steps = math.ceil(len(task.y) / (size * network.n_domains))
        trainer = Trainer(
            max_epochs=max_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer=self._optimizer,
            steps_per_epoch=steps,
            device=self.device,
            random_state=task.streams.child("training"),
            verbose=self.verbose,
        )
        self._anneal(network, draw, trainer, task.streams.child("annealing"))
        accuracies: list[float] = []
        epochs = itertools.count(1)

        def validate(model: nn.Module) -> float:
            if not task.scored:
                return -float(next(epochs))  # ever lower: the last weights are kept
            accuracies.append(float(np.mean([_accuracy(network, X, y) for X, y in task.scored])))
            return -accuracies[-1]

        history = trainer.fit(network, lambda model, batch, step: model(*batch), draw, validate=validate)
        return _Run(network, history.best_epoch or 0, np.array(history.losses), np.array(accuracies))

    def _anneal(self, network: Objective, draw: Any, trainer: Trainer, streams: Streams) -> None:
        """Train with annealed penalties at weight 1; what follows has an optimiser of its own."""
        default = round(ANNEALED_SHARE * self.max_epochs * (trainer.steps_per_epoch or 0))
        n_steps = default if self.anneal_steps is None else self.anneal_steps
        if n_steps and any(name in network.weights for name in ANNEALED):
            network.annealing = True
            first = replace(trainer, max_epochs=1, steps_per_epoch=n_steps, random_state=streams)
            first.fit(network, lambda model, batch, step: model(*batch), draw)
            network.annealing = False

    def _optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=self.weight_decay)


def _split(task: _Task, fraction: float) -> _Task:
    """Hold out a share of every domain and class, rounded, never all of it; each domain is scored by itself."""
    rng = task.streams.numpy("validation")
    held = np.zeros(len(task.y), dtype=bool)
    cells = task.domain * task.n_classes + task.y
    for cell in np.unique(cells):
        rows = np.flatnonzero(cells == cell)
        held[rng.permutation(rows)[: min(round(fraction * len(rows)), len(rows) - 1)]] = True
    scored = [held & (task.domain == number) for number in np.unique(task.domain)]
    if not all(own.any() for own in scored):
        raise ValueError(f"validation_fraction must leave rows of every domain to score on, got {fraction}")
    return _Task(
        task.X[~held],
        task.y[~held],
        task.domain[~held],
        tuple((task.X[own], task.y[own]) for own in scored),
        task.n_classes,
        task.streams,
    )


def _without(task: _Task, left: int) -> _Task:
    """Train on all domains but one, and score that one."""
    own = task.domain == left
    domain = task.domain[~own]
    return _Task(
        task.X[~own],
        task.y[~own],
        domain - (domain > left),
        ((task.X[own], task.y[own]),),
        task.n_classes,
        task.streams.child(left),
    )


def _represent(network: Objective, X: np.ndarray) -> torch.Tensor:
    """Return the representation (n, d) of features (n, ...), on the CPU."""
    device = network.q.device
    with torch.no_grad():
        parts = [network.featurizer(part.to(device)).cpu() for part in torch.from_numpy(X).split(ROWS_AT_ONCE)]
    return torch.cat(parts)


def _accuracy(network: Objective, X: np.ndarray, y: np.ndarray) -> float:
    """Return the share of rows X (n, ...) that are given their class y (n,)."""
    with torch.no_grad():
        logits = network.head(_represent(network, X).to(network.q.device)).cpu()
    return float((logits.argmax(dim=1).numpy() == y).mean())
