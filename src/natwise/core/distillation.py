"""Losses towards a teacher's soft labels, with the temperature conventions written out and memory kept small.

Every loss takes logits. Rows (samples or tokens) go through in chunks that are computed again in the backward pass,
so beside the logits and their gradient at most chunk_size x n_classes numbers per intermediate are alive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from natwise.core.validation import check_integer, check_option, check_real

KINDS = ("forward_kl", "reverse_kl", "jsd", "tvd")
REDUCTIONS = ("mean", "sum", "none")
Head = Callable[[torch.Tensor], torch.Tensor]


def soft_label_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    student_temperature: float | None = None,
    scale_by_tau2: bool = True,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
    chunk_size: int = 1024,
) -> torch.Tensor:
    """Measure how far the student's class probabilities are from the teacher's.

    Parameters
    ----------
    student_logits, teacher_logits : tensor (..., n_classes)
        Finite logits of the same shape. No gradient reaches the teacher.
    kind : {"forward_kl", "reverse_kl", "jsd", "tvd"}
        KL(teacher || student), which has the gradient of cross-entropy to soft labels; KL(student || teacher);
        Jensen-Shannon divergence (at most log 2); total variation distance (at most 1). Nats, but for the last.
    temperature : float
        tau; the teacher's probabilities are softmax(logits / tau).
    student_temperature : float, optional
        The student's; default `temperature`.
    scale_by_tau2 : bool
        Multiply by ``temperature ** 2``. The gradient of the KL divergences and of `jsd` shrinks like 1 / tau^2 when
        both are softened, so this keeps it of the same size; that of `tvd` shrinks like 1 / tau only.
    mask : bool tensor (...), optional
        Rows that count.
    reduction : {"mean", "sum", "none"}
        Over the rows that count; ``none`` returns them all, shape (...), zero where masked out.
    chunk_size : int
        Rows per chunk.

    Returns
    -------
    tensor
        Scalar, or (...) for ``none``.

    Raises
    ------
    TypeError, ValueError
        For tensors of unequal shape, of integers or not finite, an unknown option, a temperature that is not positive,
        or a mask without a row.
    """
    _check_pair(student_logits, teacher_logits, same_width=True)
    return chunked_soft_label_loss(
        student_logits,
        _identity,
        teacher_logits,
        _identity,
        kind=kind,
        temperature=temperature,
        student_temperature=student_temperature,
        scale_by_tau2=scale_by_tau2,
        mask=mask,
        reduction=reduction,
        chunk_size=chunk_size,
    )


def chunked_soft_label_loss(
    student_hidden: torch.Tensor,
    student_head: Head,
    teacher_hidden: torch.Tensor,
    teacher_head: Head,
    *,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    student_temperature: float | None = None,
    scale_by_tau2: bool = True,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
    chunk_size: int = 1024,
) -> torch.Tensor:
    """Compute `soft_label_loss` from hidden states, without ever holding the logits of all rows.

    Parameters
    ----------
    student_hidden, teacher_hidden : tensor (..., width)
        Equal but for the width.
    student_head, teacher_head : callable
        Map (chunk, width) to logits (chunk, n_classes), row by row.
    kind, temperature, student_temperature, scale_by_tau2, mask, reduction, chunk_size
        See `soft_label_loss`.
    """
    _check_pair(student_hidden, teacher_hidden, same_width=False)
    check_option("kind", kind, KINDS)
    check_option("reduction", reduction, REDUCTIONS)
    size = check_integer("chunk_size", chunk_size, minimum=1)
    tau = check_real("temperature", temperature, minimum=0.0, exclusive=True)
    own = tau if student_temperature is None else student_temperature
    own = check_real("student_temperature", own, minimum=0.0, exclusive=True)
    shape = student_hidden.shape[:-1]
    weights = _row_weights(mask, shape)
    rows = partial(_chunk, student_head=student_head, teacher_head=teacher_head, kind=kind, tau=tau, own=own)
    parts = [
        checkpoint(rows, *pair, use_reentrant=False)
        for pair in zip(_split(student_hidden, size), _split(teacher_hidden.detach(), size), strict=True)
    ]
    losses = torch.cat(parts)
    if scale_by_tau2:
        losses = losses * tau**2
    if weights is not None:
        losses = torch.where(weights, losses, 0.0)
    if reduction == "none":
        return losses.reshape(shape)
    total = losses.sum()
    return total if reduction == "sum" else total / (len(losses) if weights is None else weights.sum())


def _chunk(
    student: torch.Tensor,
    teacher: torch.Tensor,
    student_head: Head,
    teacher_head: Head,
    kind: str,
    tau: float,
    own: float,
) -> torch.Tensor:
    """Return the loss of every row of a chunk."""
    with torch.no_grad():
        target = _log_probabilities("teacher_logits", teacher_head(teacher), tau)
    return _DIVERGENCES[kind](target, _log_probabilities("student_logits", student_head(student), own))


def _log_probabilities(name: str, logits: torch.Tensor, tau: float) -> torch.Tensor:
    if not torch.isfinite(logits.detach()).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision loses small probabilities
    return torch.log_softmax(wide / tau, dim=-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) of every row of log-probabilities."""
    return (p.exp() * (p - q)).sum(-1)


def _jsd(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    middle = torch.logaddexp(teacher, student) - math.log(2)
    return (_kl(teacher, middle) + _kl(student, middle)) / 2


def _tvd(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return (teacher.exp() - student.exp()).abs().sum(-1) / 2


_DIVERGENCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "forward_kl": _kl,
    "reverse_kl": lambda teacher, student: _kl(student, teacher),
    "jsd": _jsd,
    "tvd": _tvd,
}


def _identity(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _split(tensor: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    return tensor.reshape(-1, tensor.shape[-1]).split(size)


def _row_weights(mask: Any, shape: torch.Size) -> torch.Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(f"mask must be a bool tensor of shape {tuple(shape)}, got {_kind(mask)}")
    if not mask.any():
        raise ValueError("mask must keep a row, got none")
    return mask.reshape(-1)


def _check_pair(student: Any, teacher: Any, *, same_width: bool) -> None:
    """Refuse what is no float tensor, has no row, or has another shape than its partner."""
    for name, value in {"student": student, "teacher": teacher}.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a float tensor, got {_kind(value)}")
        if value.ndim < 2 or value.numel() == 0:
            raise ValueError(f"{name} must have shape (n >= 1, n_classes >= 1), got {tuple(value.shape)}")
    wanted, got = (tuple(value.shape if same_width else value.shape[:-1]) for value in (student, teacher))
    if wanted != got:
        raise ValueError(f"teacher and student must give the same shape, got {got} and {wanted}")


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
