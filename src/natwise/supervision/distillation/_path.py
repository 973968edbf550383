"""Supervision complexity at every checkpoint of a student's training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from natwise.core.linearized import empirical_ntk
from natwise.core.validation import check_array, check_option, shorten
from natwise.result import Result, provenance
from natwise.supervision.distillation._complexity import soft_targets, supervision_complexity
from natwise.supervision.distillation._kernel import FactoredKernel
from natwise.supervision.distillation._teacher import CheckpointTeacher, inputs_of, logits_of, n_classes_of

SPACES = ("probabilities", "logits")
TAKEN = ("effective_rank", "trace")


def complexity_path(
    student: CheckpointTeacher,
    X: Any,
    targets: Mapping[str, Any],
    *,
    space: str = "probabilities",
    adjusted: bool = True,
    jitter: float = 0.0,
) -> Result:
    """Follow the complexity of several supervisions while the student's tangent kernel changes.

    Parameters
    ----------
    student : CheckpointTeacher
        The student's saved states; the first counts as its initialisation and gives the predictions f0.
    X : array (n, ...)
        Inputs on which the kernel of the logits is formed, in float64: (n * k)^2 numbers.
    targets : mapping of str to array (n, k) or (T, n, k)
        Supervisions, constant or one per saved state: labels (one-hot), `soft_targets` of a teacher.
    space : {"probabilities", "logits"}
        Space of the targets, in which f0 is taken.
    adjusted, jitter
        As for `supervision_complexity`. All targets share one factorisation per state.

    Returns
    -------
    Result
        Rows are the states; arrays (T,) hold the complexity of every supervision under its name, ``effective_rank``
        and ``trace``.

    Raises
    ------
    TypeError, ValueError
        For a student or targets of the wrong kind, shapes that do not fit, or a kernel that `FactoredKernel` refuses.
    """
    check_option("space", space, SPACES)
    if not isinstance(student, CheckpointTeacher):
        raise TypeError(f"student must be a CheckpointTeacher, got {shorten(student)}")
    inputs = inputs_of(X)
    n_classes_of("student", student.load(0), inputs)
    _check_names(targets)
    with provenance() as record:
        initial = logits_of(student.load(0), inputs)
        start = soft_targets(initial, 1.0) if space == "probabilities" else initial
        supervisions = {name: _per_state(name, value, len(student), initial.shape) for name, value in targets.items()}
        rows = [_state(student, t, inputs, supervisions, start, adjusted, jitter) for t in range(len(student))]
    arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    params = {"space": space, "adjusted": adjusted, "jitter": jitter, "n": len(inputs), "n_outputs": initial.shape[1]}
    names = list(range(len(student)))
    return Result("supervision.distillation/path", arrays=arrays, rows=names, params=params, provenance=record)


def _check_names(targets: Any) -> None:
    if not isinstance(targets, Mapping) or not targets:
        raise TypeError(f"targets must be a mapping of at least one name to an array, got {shorten(targets)}")
    for name in targets:
        if not isinstance(name, str) or name in TAKEN:
            raise ValueError(f"targets must have text other than {' and '.join(TAKEN)} as names, got {name!r}")


def _state(
    student: CheckpointTeacher,
    index: int,
    inputs: torch.Tensor,
    supervisions: dict[str, np.ndarray],
    start: np.ndarray,
    adjusted: bool,
    jitter: float,
) -> dict[str, float]:
    """Return the complexities of supervisions (T, n, k) with the kernel of one state, and its rank and trace."""
    module = student.load(index).requires_grad_(True)
    kernel = FactoredKernel(empirical_ntk(module, inputs, dtype=torch.float64), jitter)
    stacked = np.stack([values[index] for values in supervisions.values()])
    found = supervision_complexity(kernel, stacked, start, adjusted)
    numbers = dict(zip(supervisions, np.atleast_1d(found), strict=True))
    return {**numbers, "effective_rank": kernel.rank, "trace": kernel.trace}


def _per_state(name: str, value: Any, n_states: int, shape: tuple[int, ...]) -> np.ndarray:
    array = check_array(f"targets[{name!r}]", value, dtype=np.float64)
    if array.shape not in (shape, (n_states, *shape)):
        raise ValueError(f"targets[{name!r}] must have shape {shape} or {(n_states, *shape)}, got {array.shape}")
    return np.broadcast_to(array, (n_states, *shape))
