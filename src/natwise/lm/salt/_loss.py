"""The mixed-target cross-entropy of SALT: chunk by chunk over the tokens, with its gradient written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from natwise.core.validation import check_integer, check_option, check_real
from natwise.lm._checks import IGNORED

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
REDUCTIONS = ("mean", "sum", "none")


class SoftTargets(Protocol):
    """What a teacher says about the next token, for some rows at a time."""

    def mixed(self, rows: slice, probabilities: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight times the target (rows, V), and weight times its cross-entropy beyond -target . logits."""


@dataclass(frozen=True)
class DenseTargets:
    """softmax(inverse_temperature * logits) for logits (n, V)."""

    logits: torch.Tensor
    inverse_temperature: float

    def mixed(self, rows: slice, probabilities: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        target = self.logits[rows].to(probabilities.dtype)
        target = (target - target.amax(dim=-1, keepdim=True)).mul_(self.inverse_temperature).exp_()
        return target.mul_(weight / target.sum(dim=-1, keepdim=True)), probabilities.new_zeros(())


@dataclass(frozen=True)
class TopKTargets:
    """The teacher's k largest probabilities and their tokens, each (n, k); what is left is one bucket of all others.

    Inside the bucket the target has the student's own proportions, so that only the bucket's total is taught.
    """

    probabilities: torch.Tensor
    tokens: torch.Tensor

    def mixed(self, rows: slice, probabilities: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        top = self.probabilities[rows].to(probabilities.dtype)
        tokens = self.tokens[rows].long()
        known = top.sum(dim=-1, keepdim=True)  # rounded to half precision: up to about 1e-3 off
        top = top * (weight / (known if top.shape[-1] == probabilities.shape[-1] else known.clamp_min(1.0)))
        tail = (weight - top.sum(dim=-1, keepdim=True)).clamp_min(0.0)
        others = probabilities.scatter(-1, tokens, 0.0)
        share = others.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(others.dtype).tiny)
        target = others.mul_(tail / share)
        # -tail log(share) is what the bucket costs; `-target . logits + logsumexp` counts it token by token
        inside = torch.special.xlogy(target, target / tail.clamp_min(torch.finfo(target.dtype).tiny)).sum(-1)
        return target.scatter_(-1, tokens, top), inside


def salt_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    labels: torch.Tensor,
    weight: float,
    inverse_temperature: float = 1.0,
    *,
    reduction: str = "mean",
    chunk_size: int = 1024,
) -> torch.Tensor:
    r"""Cross-entropy to a mixture of the true next token and a teacher's prediction.

    .. math:: L = (1 - w)\, (-\log P(x)) + w \sum_v Q(v)\, (-\log P(v)), \qquad Q = softmax(\rho \cdot teacher)

    The student is not tempered and nothing is multiplied by a squared temperature. The gradient with respect to the
    student's logits is softmax(student) - [(1 - w) onehot + w Q]; it is computed in chunks of rows, so beside the
    logits and their gradient only chunk_size x V numbers are alive. See `linear_salt_loss` for a loss that never
    holds the logits of all tokens.

    Parameters
    ----------
    student_logits : tensor or ndarray (..., V)
        Float; half precision is computed in float32.
    teacher_logits : tensor or ndarray (..., V), or None
        Any float dtype. No gradient reaches them. They may be None when `weight` is 0.
    labels : int tensor or ndarray (...)
        True next tokens, aligned with the logits (not shifted); -100 marks rows that do not count, whatever they hold.
    weight : float
        w in [0, 1]; at 0 this is `torch.nn.functional.cross_entropy`, bit for bit.
    inverse_temperature : float
        rho >= 0: below 1 flattens the teacher, 0 makes it uniform, above 1 sharpens it.
    reduction : {"mean", "sum", "none"}
        Over the rows that count; ``none`` returns (...), zero where masked.
    chunk_size : int
        Rows per chunk.

    Returns
    -------
    tensor
        Scalar, or (...) for ``none``, in nats per token.

    Raises
    ------
    TypeError, ValueError
        Naming the argument: for tensors of other kinds or shapes, labels outside the vocabulary, no label that
        counts, a weight outside [0, 1], a negative inverse temperature, NaN or infinite logits in rows that count.

    Notes
    -----
    Equation for :math:`L^w` of the paper (Section 2). Its published temperature exponent could not be checked; the
    default here is 1.
    """
    weight = check_real("weight", weight, minimum=0.0, maximum=1.0)
    rho = check_real("inverse_temperature", inverse_temperature, minimum=0.0)
    check_option("reduction", reduction, REDUCTIONS)
    size = check_integer("chunk_size", chunk_size, minimum=1)
    student_logits, teacher_logits, labels = map(as_tensor, (student_logits, teacher_logits, labels))
    check_floats("student_logits", student_logits, labels)
    labels = check_labels(labels, student_logits.shape[-1])
    student, aligned = student_logits.flatten(0, -2), labels.flatten()
    _check_teacher(teacher_logits, student_logits, labels, needed=weight > 0)
    if weight == 0.0:
        _check_finite("student_logits", student, aligned)
        wide = student if student.dtype == torch.float64 else student.float()
        losses = cross_entropy(wide, aligned, ignore_index=IGNORED, reduction=reduction)
    else:
        targets = DenseTargets(teacher_logits.detach().flatten(0, -2), rho)
        _check_finite("teacher_logits", targets.logits, aligned)
        losses = mixed_cross_entropy(student, targets, aligned, weight, reduction, size)
    return losses.view(labels.shape) if reduction == "none" else losses


def linear_salt_loss(
    student_hidden: torch.Tensor,
    student_weight: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_weight: torch.Tensor,
    labels: torch.Tensor,
    weight: float,
    inverse_temperature: float = 1.0,
    *,
    reduction: str = "mean",
    chunk_size: int = 128,
) -> torch.Tensor:
    """Compute `salt_loss` of hidden states and output matrices without ever holding the logits of all tokens.

    Loss and gradient of each chunk are computed together in the forward pass; rows that do not count cost nothing.
    Peak memory is about 4 x chunk_size x V numbers and the gradient of the student's output matrix.

    Parameters
    ----------
    student_hidden, teacher_hidden : tensor (..., width)
        Last hidden states; the widths may differ.
    student_weight, teacher_weight : tensor (V, width)
        Output matrices (``lm_head.weight``). No gradient reaches the teacher's.
    labels, weight, inverse_temperature, chunk_size
        See `salt_loss`.
    reduction : {"mean", "sum"}
        Over the rows that count.

    Returns
    -------
    tensor
        Scalar in nats per token.

    Raises
    ------
    TypeError, ValueError
        As `salt_loss`; also for output matrices of another width, vocabulary or dtype.
    """
    weight = check_real("weight", weight, minimum=0.0, maximum=1.0)
    rho = check_real("inverse_temperature", inverse_temperature, minimum=0.0)
    check_option("reduction", reduction, REDUCTIONS[:2])
    size = check_integer("chunk_size", chunk_size, minimum=1)
    for name, hidden, matrix in (
        ("student", student_hidden, student_weight),
        ("teacher", teacher_hidden, teacher_weight),
    ):
        check_floats(f"{name}_hidden", hidden, labels)
        _check_matrix(name, matrix, hidden)
    if len(student_weight) != len(teacher_weight):
        sizes = f"{len(teacher_weight)} and {len(student_weight)} rows"
        raise ValueError(f"teacher_weight and student_weight must share one vocabulary, got {sizes}")
    labels = check_labels(labels, len(student_weight))
    keep = (labels != IGNORED).flatten()
    hidden, taught = student_hidden.flatten(0, -2)[keep], teacher_hidden.detach().flatten(0, -2)[keep]
    teacher = (taught, teacher_weight.detach(), rho)
    total: torch.Tensor = _LinearMixedCrossEntropy.apply(
        hidden, student_weight, teacher, labels.flatten()[keep], weight, size
    )
    return total if reduction == "sum" else total / len(hidden)


def mixed_cross_entropy(
    student: torch.Tensor, targets: SoftTargets, labels: torch.Tensor, weight: float, reduction: str, chunk_size: int
) -> torch.Tensor:
    """Return the loss of student logits (n, V) towards any soft targets; labels (n,) as in `salt_loss`."""
    _check_finite("student_logits", student, labels)
    rows: torch.Tensor = _MixedCrossEntropy.apply(student, targets, labels, weight, chunk_size)
    if reduction == "none":
        return rows
    total = rows.sum()
    return total if reduction == "sum" else total / (labels != IGNORED).sum()


def as_tensor(value: Any) -> Any:
    """Return a NumPy array of numbers as a tensor of its own; anything else as it is."""
    is_array = isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)
    return torch.tensor(value) if is_array and value.dtype.kind in "fiub" else value


def check_labels(labels: Any, n_tokens: int) -> torch.Tensor:
    """Return labels (...) as int64; refuse what is no integer, not in [0, n_tokens) or -100, or all -100."""
    if not isinstance(labels, torch.Tensor) or labels.dtype not in INTEGERS:
        raise TypeError(f"labels must be an integer tensor, got {_kind(labels)}")
    labels = labels.long()
    counted = labels[labels != IGNORED]
    if not len(counted):
        raise ValueError(f"labels must hold a token that counts, got only {IGNORED}")
    low, high = int(counted.min()), int(counted.max())
    if low < 0 or high >= n_tokens:
        raise ValueError(f"labels must lie in [0, {n_tokens}) or be {IGNORED}, got {low} to {high}")
    return labels


def _chunk_loss(
    logits: torch.Tensor, targets: SoftTargets, rows: slice, labels: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses (c,) of some rows, and the gradient (c, V) with respect to their logits.

    Softmaxes are written in place: a chunk takes three times its own size.
    """
    largest = logits.amax(dim=-1, keepdim=True)
    probabilities = (logits - largest).exp_()
    total = probabilities.sum(dim=-1, keepdim=True)
    probabilities.div_(total)
    target, beyond = targets.mixed(rows, probabilities, weight)
    truth = labels.clamp_min(0)[:, None]
    target.scatter_add_(-1, truth, torch.full_like(truth, 1 - weight, dtype=target.dtype))
    losses = (largest + total.log())[:, 0] - torch.linalg.vecdot(target, logits) + beyond
    return losses, probabilities.sub_(target)


class _MixedCrossEntropy(torch.autograd.Function):
    """Losses (n,) of logits (n, V); the gradient is computed again, chunk by chunk, where it is asked for."""

    @staticmethod
    def forward(ctx, logits, targets, labels, weight, chunk_size):
        losses = logits.new_zeros(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))
        for rows in _slices(len(logits), chunk_size):
            losses[rows] = _chunk_loss(logits[rows].to(losses.dtype), targets, rows, labels[rows], weight)[0]
        losses = torch.where(labels != IGNORED, losses, 0.0)
        ctx.save_for_backward(logits, labels)
        ctx.setting = targets, weight, chunk_size
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):
        logits, labels = ctx.saved_tensors
        targets, weight, chunk_size = ctx.setting
        gradient = torch.empty_like(logits)
        for rows in _slices(len(logits), chunk_size):
            wide = logits[rows].to(outer.dtype)
            gradient[rows] = _chunk_loss(wide, targets, rows, labels[rows], weight)[1].mul_(outer[rows, None])
        gradient[labels == IGNORED] = 0.0  # zero times what was never looked at may be NaN
        return gradient, None, None, None, None


class _LinearMixedCrossEntropy(torch.autograd.Function):
    """The sum of the losses of hidden states (n, d) under an output matrix (V, d)."""

    @staticmethod
    def forward(ctx, hidden, matrix, teacher, labels, weight, chunk_size):
        taught, teacher_matrix, rho = teacher
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_matrix = torch.zeros_like(matrix, dtype=wide) if ctx.needs_input_grad[1] else None
        for rows in _slices(len(hidden), chunk_size):
            logits = (hidden[rows] @ matrix.T).to(wide)
            targets = DenseTargets(taught[rows] @ teacher_matrix.T, rho)
            losses, gradient = _chunk_loss(logits, targets, slice(None), labels[rows], weight)
            total += losses.sum()
            gradient = gradient.to(hidden.dtype)
            if by_hidden is not None:
                by_hidden[rows] = gradient @ matrix
            if by_matrix is not None:
                by_matrix += gradient.T @ hidden[rows]
        if not torch.isfinite(total):
            names = "student_hidden, student_weight, teacher_hidden and teacher_weight"
            raise ValueError(f"{names} must be finite, got NaN or infinity")
        ctx.save_for_backward(by_hidden, None if by_matrix is None else by_matrix.to(matrix.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):
        by_hidden, by_matrix = ctx.saved_tensors
        scaled = (None if part is None else part * outer.to(part.dtype) for part in (by_hidden, by_matrix))
        return (*scaled, None, None, None, None)


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


def _check_finite(name: str, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Look at the extremes of the rows of (n, V) that count; no array of the size of the logits is made."""
    extremes = torch.stack(torch.aminmax(logits.detach(), dim=-1))[:, labels != IGNORED]
    if not torch.isfinite(extremes).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def _check_teacher(teacher: Any, student: torch.Tensor, labels: torch.Tensor, *, needed: bool) -> None:
    if teacher is None and not needed:
        return
    check_floats("teacher_logits", teacher, labels)
    if teacher.shape != student.shape:
        wanted, got = tuple(student.shape), tuple(teacher.shape)
        raise ValueError(f"teacher_logits must have the student's shape {wanted} (one vocabulary), got {got}")


def check_floats(name: str, value: Any, labels: Any) -> None:
    """Refuse what is no float tensor (..., n, V); labels, when they are a tensor, must be (..., n)."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a float tensor, got {_kind(value)}")
    if value.ndim < 2 or not value.numel():
        raise ValueError(f"{name} must have shape (..., tokens >= 1, V >= 1), got {tuple(value.shape)}")
    if isinstance(labels, torch.Tensor) and labels.shape != value.shape[:-1]:
        shapes = f"{tuple(labels.shape)} for {name} {tuple(value.shape)}"
        raise ValueError(f"labels must have the shape of {name} without its last axis, got {shapes}")


def _check_matrix(name: str, matrix: Any, hidden: torch.Tensor) -> None:
    """Check an output matrix (V, d) beside hidden states (..., d) that have been checked."""
    kind, width = hidden.dtype, hidden.shape[-1]
    if not isinstance(matrix, torch.Tensor) or matrix.ndim != 2 or matrix.shape[1] != width:
        raise ValueError(f"{name}_weight must be a tensor (V, {width}) like {name}_hidden, got {_kind(matrix)}")
    mixes = matrix.is_floating_point() and torch.is_autocast_enabled(hidden.device.type)
    if matrix.dtype != kind and not mixes:
        raise TypeError(f"{name}_weight must hold {kind} like {name}_hidden, got {_kind(matrix)}")


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
