"""What every loss asks of its logits and labels, and how it reduces over the batch."""

from __future__ import annotations

from typing import Any

import torch

REDUCTIONS = ("mean", "sum")


def check_logits(name: str, logits: Any, n: int | None = None, n_classes: int | None = None) -> torch.Tensor:
    """Return `logits` when they are a finite float tensor of shape (n, n_classes) with at least two classes."""
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise TypeError(f"{name} must be a float tensor, got {kind}")
    if logits.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {logits.layout}")
    if logits.ndim != 2 or logits.shape[0] == 0 or logits.shape[1] < 2:
        raise ValueError(f"{name} must have shape (n >= 1, n_classes >= 2), got {tuple(logits.shape)}")
    if n is not None and len(logits) != n:
        raise ValueError(f"{name} must have {n} rows, one per sample, got {len(logits)}")
    if n_classes is not None and logits.shape[1] != n_classes:
        raise ValueError(f"{name} must have {n_classes} columns, one per class, got {logits.shape[1]}")
    if not torch.isfinite(logits.detach()).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return logits


def check_labels(name: str, y: Any, n: int, n_classes: int) -> torch.Tensor:
    """Return `y` as int64 when it holds `n` class numbers within [0, n_classes)."""
    if not isinstance(y, torch.Tensor):
        raise TypeError(f"{name} must be an integer tensor, got {type(y).__name__}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got dtype {y.dtype}")
    if y.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one integer per sample, got {tuple(y.shape)}")
    low, high = (int(value) for value in torch.aminmax(y))
    if low < 0 or high >= n_classes:
        raise ValueError(f"{name} must lie within 0 and {n_classes - 1}, got {low if low < 0 else high}")
    return y.long()


def one_hot(y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the labels as rows of `like`'s shape and dtype, 1 at the label and 0 elsewhere."""
    return torch.zeros_like(like).scatter_(1, y[:, None], 1.0)


def reduce(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return the mean or the sum of per-sample losses of shape (n,)."""
    return losses.mean() if reduction == "mean" else losses.sum()
