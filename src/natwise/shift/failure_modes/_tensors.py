"""What penalties ask of the tensors they are given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def check_float(name: str, value: torch.Tensor, ndim: int | None = None) -> None:
    """Raise when `value` is no dense tensor of finite floats, with entries, and of `ndim` dimensions if given."""
    if not isinstance(value, torch.Tensor) or not (is_dense(value) and value.is_floating_point()):
        raise TypeError(f"{name} must be a dense float tensor, got {_kind(value)}")
    if value.ndim != (value.ndim if ndim is None else ndim) or value.numel() == 0:
        expected = "" if ndim is None else f" of {ndim} dimensions"
        raise ValueError(f"{name} must be a tensor{expected} with entries, got shape {tuple(value.shape)}")
    if not torch.isfinite(value.detach()).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def check_ids(name: str, value: torch.Tensor, n: int) -> None:
    """Raise when `value` is no dense tensor of integers, shape (n,)."""
    if not isinstance(value, torch.Tensor) or not is_dense(value) or value.is_floating_point():
        raise TypeError(f"{name} must be a dense integer tensor, got {_kind(value)}")
    if value.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one entry per row, got {tuple(value.shape)}")


def check_logits(logits: torch.Tensor, y: torch.Tensor) -> None:
    """Raise when these are no logits (n, n_classes) and classes (n,) from 0 on."""
    check_float("logits", logits, 2)
    check_ids("y", y, len(logits))
    if y.min() < 0 or y.max() >= logits.shape[1]:
        raise ValueError(f"y must hold classes 0 to {logits.shape[1] - 1}, got {y.min()} to {y.max()}")


def with_gradients(parameters: Any) -> list[torch.Tensor]:
    """Return those of the parameters, an iterable of tensors of any shape or one, that have gradients."""
    one = isinstance(parameters, torch.Tensor) or not isinstance(parameters, Iterable)
    chosen = [parameters] if one else list(parameters)
    for parameter in chosen:
        if not isinstance(parameter, torch.Tensor):
            raise TypeError(f"parameters must hold tensors, got {type(parameter).__name__}")
    return [parameter for parameter in chosen if parameter.requires_grad]


def is_dense(value: torch.Tensor) -> bool:
    """Return whether a tensor of any shape is strided, and holds real numbers."""
    return value.layout == torch.strided and not value.is_complex()


def _kind(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return str(value.dtype) if value.layout == torch.strided else f"{value.layout} {value.dtype}"
