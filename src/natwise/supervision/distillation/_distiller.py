"""Distillation from teachers that become harder while the student learns."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn.functional import cross_entropy

from natwise.core.distillation import KINDS, soft_label_loss
from natwise.core.random import RandomState
from natwise.core.training import Trainer, TrainingHistory
from natwise.core.validation import (
    check_array,
    check_flag,
    check_integer,
    check_option,
    check_real,
    check_same_length,
)
from natwise.supervision.distillation._teacher import CheckpointTeacher, inputs_of, logits_of, n_classes_of


def nesterov_sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Return stochastic gradient descent with Nesterov momentum 0.9."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True)


class OnlineDistiller(BaseEstimator):
    """Train a student on the predictions of a teacher that is only as far trained as the student (online distillation).

    At each step the next saved checkpoint of the teacher gives the targets: easy ones at first, hard ones at the end.
    With a single checkpoint this is plain (offline) distillation, to the last bit. No label enters.

    Parameters
    ----------
    student : torch.nn.Module
        Maps float32 inputs (n, ...) to logits (n, k); a copy is trained.
    teacher_checkpoints : list of modules, CheckpointTeacher, or torch.nn.Module
        In the order of the teacher's training; a list teaches for equal shares of the steps. A single untrained module
        is trained side by side with the student, on the labels given to `fit`; for offline distillation write
        ``[teacher]``.
    temperature : float
        tau of the teacher's probabilities.
    student_temperature : float, optional
        The student's; default `temperature`.
    scale_by_tau2 : bool
        Multiply the loss by ``temperature ** 2``, so that gradients keep their size.
    loss : {"forward_kl", "reverse_kl", "jsd", "tvd"}
        See `natwise.core.distillation.soft_label_loss`.
    max_epochs, batch_size : int
        Length of the training and samples per step.
    learning_rate : float
        Handed to `optimizer`.
    optimizer : callable, optional
        ``optimizer(parameters, lr=learning_rate)``; default SGD with Nesterov momentum 0.9.
    schedule : callable, optional
        ``schedule(step, n_steps)`` returns the factor on the learning rate.
    augment : callable, optional
        Maps a batch of inputs to a view, drawing from torch's generators only; teacher and student see the same.
    checkpoint : path, optional
        File to resume from when it exists, and to write while training.
    device : str or torch.device
        Where to train.
    random_state : int, Generator, RandomState, Streams or None
        Orders the data and seeds what modules draw.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Attributes
    ----------
    student_ : torch.nn.Module
        The trained student, in evaluation mode, on the CPU.
    teacher_ : CheckpointTeacher or torch.nn.Module
        The teacher's checkpoints; trained side by side, the trained teacher.
    history_ : natwise.core.training.TrainingHistory
        Losses per epoch (those of teacher and student together when trained side by side).
    classes_ : ndarray (k,)
        0 … k - 1.
    n_features_in_ : int
        Size of the second axis of X.

    Notes
    -----
    Harutyunyan et al., ICLR 2023. No original code exists; temperature and scaling conventions are options because
    they could not be checked against the paper.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher_checkpoints: Sequence[nn.Module] | CheckpointTeacher | nn.Module,
        temperature: float = 1.0,
        *,
        student_temperature: float | None = None,
        scale_by_tau2: bool = True,
        loss: str = "forward_kl",
        max_epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 0.05,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        schedule: Callable[[int, int], float] | None = None,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.student = student
        self.teacher_checkpoints = teacher_checkpoints
        self.temperature = temperature
        self.student_temperature = student_temperature
        self.scale_by_tau2 = scale_by_tau2
        self.loss = loss
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.schedule = schedule
        self.augment = augment
        self.checkpoint = checkpoint
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> OnlineDistiller:
        """Train the student.

        Parameters
        ----------
        X : array (n, ...)
            Inputs.
        y : array (n,) of int, optional
            Class numbers for a teacher that is trained side by side; else ignored.

        Raises
        ------
        TypeError, ValueError
            For an input that is empty or not finite, checkpoints that `CheckpointTeacher` refuses, a teacher with
            another number of classes than the student, or a wrong option.
        """
        inputs = inputs_of(X)
        self._check()
        student = copy.deepcopy(self.student)
        n_classes = n_classes_of("student", student, inputs)
        trainer = Trainer(
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer or nesterov_sgd,
            schedule=self.schedule,
            device=self.device,
            random_state=self.random_state,
            verbose=self.verbose,
        )
        teacher = self.teacher_checkpoints
        if isinstance(teacher, nn.Module):
            self._fit_side_by_side(trainer, copy.deepcopy(teacher), student, inputs, _labels(y, inputs, n_classes))
        else:
            teacher = teacher if isinstance(teacher, CheckpointTeacher) else CheckpointTeacher(teacher)
            self._fit_to_checkpoints(trainer, teacher, student, inputs)
        self.n_features_in_ = int(inputs.shape[1])
        self.student_ = student.cpu().eval()
        self.classes_ = np.arange(n_classes)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the student's logits (n, k), float64."""
        check_is_fitted(self)
        inputs = inputs_of(X)
        n_classes_of("the fitted student", self.student_, inputs)
        return logits_of(self.student_, inputs)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the student's class probabilities (n, k) at temperature 1."""
        logits = self.decision_function(X)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """Return the student's classes (n,)."""
        return self.decision_function(X).argmax(axis=1)

    def score(self, X: Any, y: Any) -> float:
        """Return the student's accuracy on class numbers y (n,)."""
        predicted, labels = self.predict(X), check_array("y", y, shape=("n",), dtype=np.int64)
        check_same_length(X=predicted, y=labels)
        return float(np.mean(predicted == labels))

    def _check(self) -> None:
        if not isinstance(self.student, nn.Module):
            raise TypeError(f"student must be a torch.nn.Module, got {type(self.student).__name__}")
        for name in ("temperature", "student_temperature"):
            if getattr(self, name) is not None or name == "temperature":
                check_real(name, getattr(self, name), minimum=0.0, exclusive=True)
        check_option("loss", self.loss, KINDS)
        check_flag("scale_by_tau2", self.scale_by_tau2)
        for name in ("max_epochs", "batch_size"):
            check_integer(name, getattr(self, name), minimum=1)
        for name in ("augment", "optimizer", "schedule"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} must be callable, got {type(getattr(self, name)).__name__}")

    def _distance(self, student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        return soft_label_loss(
            student_logits,
            teacher_logits,
            kind=self.loss,
            temperature=self.temperature,
            student_temperature=self.student_temperature,
            scale_by_tau2=self.scale_by_tau2,
        )

    def _fit_to_checkpoints(
        self, trainer: Trainer, teacher: CheckpointTeacher, student: nn.Module, inputs: torch.Tensor
    ) -> None:
        """Train the student on inputs (n, ...) and the outputs of the checkpoint whose turn it is."""
        n_classes = n_classes_of("student", student, inputs)
        for index in range(len(teacher)):
            n_classes_of(f"teacher_checkpoints[{index}]", teacher.load(index), inputs, n_classes)
        n_steps = trainer.max_epochs * -(-len(inputs) // trainer.batch_size)
        loaded: dict[int, nn.Module] = {}

        def loss(model: nn.Module, batch: tuple[torch.Tensor], step: int) -> torch.Tensor:
            index = teacher.index_at(step, n_steps)
            view = self._view(batch[0])
            if index not in loaded:
                loaded.clear()
                loaded[index] = teacher.load(index, view.device)
            with torch.no_grad():
                target = loaded[index](view)
            return self._distance(model(view), target)

        self.history_: TrainingHistory = trainer.fit(student, loss, (inputs,), checkpoint=self.checkpoint)
        self.teacher_: CheckpointTeacher | nn.Module = teacher

    def _fit_side_by_side(
        self,
        trainer: Trainer,
        teacher: nn.Module,
        student: nn.Module,
        inputs: torch.Tensor,
        labels: torch.Tensor,
    ) -> None:
        """Train both on inputs (n, ...), the teacher on labels (n,), the student on what it says then."""
        n_classes_of("teacher_checkpoints", teacher, inputs, n_classes_of("student", student, inputs))

        def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
            own, target, logits = model(self._view(batch[0]))
            return cross_entropy(own, batch[1]) + self._distance(logits, target)

        self.history_ = trainer.fit(_Pair(teacher, student), loss, (inputs, labels), checkpoint=self.checkpoint)
        self.teacher_ = teacher.cpu().eval()

    def _view(self, batch: torch.Tensor) -> torch.Tensor:
        return batch if self.augment is None else self.augment(batch)


class _Pair(nn.Module):
    """Teacher and student as one module, for one optimiser; no gradient of one reaches the other."""

    def __init__(self, teacher: nn.Module, student: nn.Module):
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(self, X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the teacher's logits as trained and as a teacher, and the student's, each (b, k)."""
        own = self.teacher(X)
        self.teacher.eval()
        with torch.no_grad():
            target = self.teacher(X)
        self.teacher.train(self.training)
        return own, target, self.student(X)


def _labels(y: Any, inputs: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Return class numbers (n,) for the teacher that is trained side by side."""
    if y is None:
        raise ValueError("y must be given to train a single teacher module; for offline distillation pass [teacher]")
    labels = check_array("y", y, shape=("n",), dtype=np.int64)
    check_same_length(X=inputs, y=labels)
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"y must hold class numbers within 0 and {n_classes - 1}, got {labels.min()} to {labels.max()}"
        )
    return torch.tensor(labels)
