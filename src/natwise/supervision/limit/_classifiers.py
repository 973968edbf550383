"""Scikit-learn classifiers over torch networks that are trained on wrong labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from natwise.core.random import RandomState
from natwise.core.validation import check_flag, check_integer, check_real, shorten
from natwise.supervision.limit._limit import LIMITLoss, LIMITPenaltyLoss, check_separate_networks
from natwise.supervision.limit._losses import CoTeachingLoss, GCELoss, LabelSmoothingLoss
from natwise.supervision.limit._training import NetworkClassifier, Objective, Run, Task, batch_size_for, probabilities


class LIMITClassifier(NetworkClassifier):
    """Classifier whose updates never use a label directly, so that it memorises few wrong ones (LIMIT).

    A second network q predicts the gradient of the loss at the classifier's logits from the features alone; the
    classifier follows q's prediction. The weights of the epoch with the best accuracy on validation labels are
    kept, and these labels may be as noisy as the others: noise lowers all accuracies alike.

    Parameters
    ----------
    classifier : torch.nn.Module, optional
        Maps float32 features to logits (n, n_classes); a copy is trained. Default: the paper's small convolutional
        network for images of at least 28 pixels, (n, height, width) or (n, channels, height, width); else a
        perceptron with two hidden layers.
    q_network : torch.nn.Module, optional
        The network q, without a common parameter. Default: the classifier's architecture, parameters drawn anew.
        A network that is given starts from its own weights and BatchNorm statistics.
    q_dist : {"gaussian", "laplace", "ce", "dot"}
        Loss of q, see `LIMITLoss`. Laplace (LIMIT_L) resists heavy noise better.
    grad_l2 : float or sequence of float
        beta, the penalty on predicted gradients; larger memorises less and learns slower. Of several candidates the
        one with the best accuracy on the validation labels is kept.
    sample : bool
        Draw the classifier's gradient from q's distribution, with precision `lamb`.
    lamb : float
        See `LIMITLoss`; used only with `sample`.
    q_warm_start : bool
        First train q alone by cross-entropy on the given labels, stopping early, so that its weights and BatchNorm
        statistics start from there (the "init" variant of the paper).
    warm_up_epochs : int
        Epochs at the beginning in which q learns and the classifier rests.
    max_epochs, batch_size : int
        Length of the training and samples per step. One more sample is taken per step where a network with
        BatchNorm would else be left with a last batch of one.
    lr : float
        Learning rate of Adam, one optimiser for both networks.
    patience : int, optional
        Stop after so many epochs without better validation accuracy.
    validation_fraction : float
        Share of the training data held out for validation, in [0, 0.9]; 0 trains to the last epoch.
    record_train_error : bool
        Evaluate the error on the given training labels after every epoch, for `memorized_label_information`.
    device : str or torch.device
        Where to train and predict.
    random_state : int, Generator, RandomState, Streams or None
        Seeds initial weights, split, order and draws.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    classifier_, q_network_ : torch.nn.Module
        The trained networks, in evaluation mode.
    grad_l2_ : float
        The penalty that was chosen.
    candidate_scores_ : ndarray of shape (n_candidates,)
        Best validation accuracy of every candidate for `grad_l2`; empty without validation.
    best_epoch_ : int
        The epoch (from 0) whose weights are kept.
    history_ : dict of str to ndarray
        Per epoch ``loss`` and, where there are any, ``validation_accuracy`` and ``train_error``.
    validation_labels_ : {"noisy", "clean"}
        What the validation accuracies were measured on.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    The original initialised q's parameters from a trained network but not its BatchNorm statistics; here both are.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> X, y = make_blobs(300, centers=3, random_state=0)
    >>> LIMITClassifier(max_epochs=20, random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    def __init__(
        self,
        classifier: nn.Module | None = None,
        q_network: nn.Module | None = None,
        *,
        q_dist: str = "laplace",
        grad_l2: float | Sequence[float] = 1.0,
        sample: bool = False,
        lamb: float = 50.0,
        q_warm_start: bool = False,
        warm_up_epochs: int = 0,
        max_epochs: int = 100,
        batch_size: int = 256,
        lr: float = 1e-3,
        patience: int | None = 20,
        validation_fraction: float = 0.2,
        record_train_error: bool = False,
        device: str | torch.device = "cpu",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.classifier = classifier
        self.q_network = q_network
        self.q_dist = q_dist
        self.grad_l2 = grad_l2
        self.sample = sample
        self.lamb = lamb
        self.q_warm_start = q_warm_start
        self.warm_up_epochs = warm_up_epochs
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.record_train_error = record_train_error
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, X: Any, y: Any, *, validation: tuple[Any, Any] | None = None, validation_labels: str | None = None
    ) -> LIMITClassifier:
        """Train both networks.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Features, or images; cast to float32.
        y : array-like of shape (n_samples,)
            Given labels, some of them wrong.
        validation : tuple (X, y), optional
            Validation data in the place of a held-out part of X.
        validation_labels : {"noisy", "clean"}
            Whether the labels in `validation` are as noisy as y; must be said when `validation` is given. Training
            is the same, but accuracies on clean labels are no longer comparable to those of a noisy part.

        Raises
        ------
        TypeError, ValueError
            For wrong data or options; for networks that share a parameter or give logits of a wrong shape.
        """
        task = self._prepare(X, y, validation, validation_labels)
        losses = [
            LIMITLoss(self.q_dist, float(grad_l2), self.sample, lamb=self.lamb) for grad_l2 in self._candidates(task)
        ]
        check_integer("warm_up_epochs", self.warm_up_epochs, minimum=0)
        if self.classifier is not None and self.q_network is not None:
            check_separate_networks(self.classifier, self.q_network)  # the copies would no longer share
        classifier = self._network("classifier", self.classifier, None, task)
        q = self._network("q_network", self.q_network, classifier, task)
        if check_flag("q_warm_start", self.q_warm_start):
            self._train("q_warm_start", Objective([q], LabelSmoothingLoss(0.0)), task)
        runs = [self._run(classifier, q, loss, task) for loss in losses]
        scores = [run.history["validation_accuracy"].max() for run in runs if len(task.y_val)]
        best = int(np.argmax(scores)) if scores else 0
        self.classifier_, self.q_network_ = runs[best].objective.networks
        self.best_epoch_, self.history_ = runs[best].best_epoch, runs[best].history
        self.grad_l2_, self.candidate_scores_ = losses[best].grad_l2, np.array(scores)
        self.validation_labels_ = validation_labels or "noisy"
        return self

    def label_quality(self, X: Any, y: Any) -> np.ndarray:
        """Return how credible each given label is, q's probability of it in [0, 1]; low is suspicious.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Features.
        y : array-like of shape (n_samples,)
            Given labels, of classes seen in `fit`.

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        X, y = validate_data(self, X, y, dtype=np.float32, allow_nd=True, reset=False)
        return probabilities(self.q_network_, X)[np.arange(len(X)), self._encode(y)]

    def _predictor(self) -> nn.Module:
        return self.classifier_

    def _candidates(self, task: Task) -> np.ndarray:
        candidates = np.atleast_1d(np.asarray(self.grad_l2, dtype=object))
        for value in candidates:
            check_real("grad_l2", value, minimum=0.0)
        if candidates.ndim != 1 or not len(candidates):
            raise ValueError(f"grad_l2 must be a number or a list of numbers, got {shorten(self.grad_l2)}")
        if len(candidates) > 1 and not len(task.y_val):
            raise ValueError("grad_l2 must be one number without validation data, got several candidates")
        return candidates

    def _run(self, classifier: nn.Module, q: nn.Module, loss: LIMITLoss, task: Task) -> Run:
        networks = nn.ModuleList([copy.deepcopy(classifier), copy.deepcopy(q)])
        n_steps = math.ceil(len(task.train) / batch_size_for(self.batch_size, len(task.train), networks))
        return self._train("training", Objective(networks, loss, self.warm_up_epochs * n_steps), task)


class RobustClassifier(NetworkClassifier):
    """Classifier trained with any loss for wrong labels; the weights best on validation labels are kept.

    Parameters
    ----------
    network : torch.nn.Module, optional
        Maps float32 features to logits (n, n_classes); a copy is trained. Default: as in `LIMITClassifier`.
    loss : torch.nn.Module, optional
        Any loss of this room for one network, or `CoTeachingLoss`, for which a second network of the same
        architecture is trained beside. An `ELRLoss` needs ``n_samples=len(X)``. A copy is used. Default:
        `GCELoss()`. ``LabelSmoothingLoss(0.0)`` is plain cross-entropy.
    max_epochs, batch_size, lr, patience, validation_fraction, record_train_error, device, random_state, verbose
        As in `LIMITClassifier`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    network_ : torch.nn.Module
        The trained network, in evaluation mode.
    loss_ : torch.nn.Module
        The loss with what it has learned.
    best_epoch_ : int
        The epoch (from 0) whose weights are kept.
    history_ : dict of str to ndarray
        Per epoch ``loss`` and, where there are any, ``validation_accuracy`` and ``train_error``.
    n_features_in_, feature_names_in_
        As in scikit-learn.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        loss: nn.Module | None = None,
        *,
        max_epochs: int = 100,
        batch_size: int = 256,
        lr: float = 1e-3,
        patience: int | None = 20,
        validation_fraction: float = 0.2,
        record_train_error: bool = False,
        device: str | torch.device = "cpu",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.network = network
        self.loss = loss
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.record_train_error = record_train_error
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self, X: Any, y: Any, *, validation: tuple[Any, Any] | None = None, validation_labels: str | None = None
    ) -> RobustClassifier:
        """Train the network; the arguments and errors are those of `LIMITClassifier.fit`."""
        if self.loss is not None and not isinstance(self.loss, nn.Module):
            raise TypeError(f"loss must be a torch.nn.Module or None, got {type(self.loss).__name__}")
        if isinstance(self.loss, (LIMITLoss, LIMITPenaltyLoss)):
            raise TypeError(f"loss must take the logits of one network, got {type(self.loss).__name__}")
        task = self._prepare(X, y, validation, validation_labels)
        networks = [self._network("network", self.network, None, task)]
        loss = GCELoss() if self.loss is None else copy.deepcopy(self.loss)
        if isinstance(loss, CoTeachingLoss):
            networks.append(self._network("second", None, networks[0], task))
        objective = Objective(networks, loss)
        run = self._train("training", objective, task)
        self.network_, self.loss_ = objective.networks[0], objective.loss
        self.best_epoch_, self.history_ = run.best_epoch, run.history
        return self

    def _predictor(self) -> nn.Module:
        return self.network_
