"""A teacher as the sequence of its own checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from natwise.core.linearized import check_evaluation_mode
from natwise.core.training import Trainer
from natwise.core.validation import check_array, check_integer, shorten


class CheckpointTeacher:
    """A teacher saved at several moments of its training, which teaches as it then was.

    Parameters
    ----------
    checkpoints : sequence of modules, or of state dicts
        In the order of the training. Modules must not be in training mode where that changes their outputs (dropout,
        batch normalisation). They are never changed.
    steps : sequence of int, optional
        When each checkpoint was saved, strictly increasing, counted in steps of the student. Default: spread evenly
        over the student's training, so that m checkpoints teach for one m-th of it each.
    module : torch.nn.Module, optional
        The network that the state dicts belong to; only with state dicts.

    Raises
    ------
    TypeError, ValueError
        If there are no checkpoints, they are neither modules nor state dicts of `module`, a module is in training mode,
        or the steps are not increasing or not as many.
    """

    def __init__(
        self,
        checkpoints: Sequence[nn.Module] | Sequence[Mapping[str, torch.Tensor]],
        steps: Sequence[int] | None = None,
        module: nn.Module | None = None,
    ):
        self.checkpoints, self.steps, self.module = _check_checkpoints(checkpoints, module), steps, module
        if steps is not None:
            self.steps = [check_integer(f"steps[{i}]", step, minimum=0) for i, step in enumerate(steps)]
            if len(self.steps) != len(self.checkpoints):
                raise ValueError(f"steps must have {len(self.checkpoints)} entries, got {len(self.steps)}")
            if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
                raise ValueError(f"steps must be strictly increasing, got {shorten(self.steps)}")

    def __len__(self) -> int:
        return len(self.checkpoints)

    def index_at(self, step: int, n_steps: int) -> int:
        """Return which checkpoint teaches a student that has made `step` of its `n_steps` updates.

        It is the first that was saved after that many steps; the last one when none was.
        """
        m = len(self.checkpoints)
        saved = self.steps if self.steps is not None else [n_steps * (j + 1) // m for j in range(m)]
        return min(int(np.searchsorted(saved, step, side="right")), m - 1)

    def load(self, index: int, device: str | torch.device = "cpu") -> nn.Module:
        """Return a copy of a checkpoint in evaluation mode, without gradients."""
        checkpoint = self.checkpoints[index]
        loaded: nn.Module = copy.deepcopy(checkpoint if self.module is None else self.module)
        if self.module is not None:
            loaded.load_state_dict(checkpoint)
        return loaded.to(device).eval().requires_grad_(False)

    @classmethod
    def record(
        cls, module: nn.Module, trainer: Trainer, loss: Any, data: Any, *, every: int = 1, start: bool = False
    ) -> CheckpointTeacher:
        """Train a teacher in place and keep its state after every so many epochs.

        Parameters
        ----------
        module : torch.nn.Module
            The teacher.
        trainer, loss, data
            As for `natwise.core.training.Trainer.fit`.
        every : int
            Epochs between two checkpoints; the last epoch is always kept.
        start : bool
            Keep the untrained teacher too, as the first checkpoint.

        Returns
        -------
        CheckpointTeacher
            With default steps.
        """
        every = check_integer("every", every, minimum=1)
        states = [_state(module)] if start else []
        epoch = 0

        def keep(model: nn.Module) -> float:
            nonlocal epoch
            epoch += 1
            if epoch % every == 0 or epoch == trainer.max_epochs:
                states.append(_state(model))
            return float(-epoch)  # always the best, so that the training ends with its last weights

        trainer.fit(module, loss, data, validate=keep)
        return cls(states, module=copy.deepcopy(module))

    def outputs(self, X: torch.Tensor, batch_size: int = 1024) -> Iterator[np.ndarray]:
        """Yield the logits (n, k) of every checkpoint on the same inputs, in float64."""
        for index in range(len(self)):
            yield logits_of(self.load(index), X, batch_size)


def inputs_of(X: Any) -> torch.Tensor:
    """Return X as a float32 tensor (n, ...) when it holds at least one sample of at least one axis."""
    array = check_array("X", X, dtype=np.float32)
    if array.ndim < 2 or not array.size:
        raise ValueError(f"X must have shape (n >= 1, ...), got {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array))


def n_classes_of(name: str, module: nn.Module, inputs: torch.Tensor, expected: int | None = None) -> int:
    """Return the number of outputs of a module for the first of `inputs` (n, ...), which is to be as expected."""
    device = next((p.device for p in module.parameters()), inputs.device)
    try:
        shape = logits_of(module, inputs[:1].to(device)).shape
    except RuntimeError as error:  # torch's name for shapes that do not fit
        shown = shorten(str(error), 100)
        raise ValueError(f"{name} must take inputs of shape {tuple(inputs.shape[1:])} like X's, got {shown}") from error
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(f"{name} must give logits of shape (n, k >= 2), got {shape}")
    if expected is not None and shape[1] != expected:
        raise ValueError(f"{name} must have the student's {expected} classes, got {shape[1]}")
    return int(shape[1])


def logits_of(module: nn.Module, X: torch.Tensor, batch_size: int = 1024) -> np.ndarray:
    """Return the outputs (n, k) for X (n, ...) in evaluation mode, in float64; the mode is put back."""
    training = module.training
    module.eval()
    with torch.no_grad():
        parts = [module(part).cpu().double() for part in X.split(batch_size)]
    module.train(training)
    return torch.cat(parts).numpy()


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def _check_checkpoints(checkpoints: Any, module: Any) -> list[Any]:
    if isinstance(checkpoints, (str, bytes, Mapping, nn.Module)) or not hasattr(checkpoints, "__iter__"):
        raise TypeError(f"teacher_checkpoints must be a list of modules or state dicts, got {shorten(checkpoints)}")
    listed = list(checkpoints)
    if not listed:
        raise ValueError("teacher_checkpoints must hold a checkpoint, got none")
    if module is not None and not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    for i, checkpoint in enumerate(listed):
        if isinstance(checkpoint, nn.Module) and module is None:
            _check_mode(i, checkpoint)
        elif isinstance(checkpoint, Mapping) and module is not None:
            _check_state(i, checkpoint, module)
        else:
            wanted = "a torch.nn.Module" if module is None else "a state dict of the module"
            raise TypeError(f"teacher_checkpoints[{i}] must be {wanted}, got {type(checkpoint).__name__}")
    return listed


def _check_mode(index: int, checkpoint: nn.Module) -> None:
    try:
        check_evaluation_mode(checkpoint)
    except ValueError as error:
        raise ValueError(f"teacher_checkpoints[{index}] must be in evaluation mode: {error}") from None


def _check_state(index: int, state: Mapping[str, torch.Tensor], module: nn.Module) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    got = {str(name): tuple(getattr(value, "shape", ())) for name, value in state.items()}
    if wanted != got:
        differing = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
        raise ValueError(f"teacher_checkpoints[{index}] must be a state of module, it differs in {shorten(differing)}")
