"""What comes in, checked: tokens, masks of padding, distributions; arrays and tensors alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from natwise.core.validation import check_array, shorten

SIMPLEX_TOLERANCE = 1e-4  # of float32 sums and of what users round; half precision has its own rounding


def check_ids(name: str, value: Any, shape: Sequence[str | int | None], n_tokens: int, device: Any) -> torch.Tensor:
    """Return whole numbers in [0, n_tokens) as an int64 tensor on `device`; a tensor does not leave its device."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must hold integers, got dtype {value.dtype}")
        check_dense(name, value)
        check_shape(name, tuple(value.shape), shape)
        ids = value.to(device=device, dtype=torch.int64)
    else:
        array = check_array(name, value, shape=shape)
        if np.asarray(value).dtype.kind not in "iu" and array.size:
            raise TypeError(f"{name} must hold integers, got {shorten(value)}")
        ids = torch.as_tensor(array.astype(np.int64), device=device)
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < n_tokens):
        wrong = ids[(ids < 0) | (ids >= n_tokens)][0]
        raise ValueError(f"{name} must be in 0 … {n_tokens - 1}, the vocabulary, got {int(wrong)}")
    return ids


def check_mask(value: Any, shape: Sequence[int], device: Any) -> torch.Tensor:
    """Return the mask of a prompt, both (n_prompts, length), as an int64 tensor; padding must stand on the left."""
    mask = torch.as_tensor(check_array("mask", value, shape=shape), device=device)
    if not ((mask == 0) | (mask == 1)).all() or (mask[:, 1:] < mask[:, :-1]).any() or not (mask[:, -1] == 1).all():
        raise ValueError("mask must be 0 on padding, which stands on the left, and 1 on tokens, at least one per row")
    return mask.long()


def check_simplex(name: str, value: Any, shape: Sequence[str | int | None], device: Any = None) -> torch.Tensor:
    """Return distributions over the last of the axes in `shape` as a float tensor, in float32 or float64."""
    tolerance = SIMPLEX_TOLERANCE
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        check_dense(name, value)
        check_shape(name, tuple(value.shape), shape)
        tolerance = max(tolerance, torch.finfo(value.dtype).eps)
        found = value.to(device=device, dtype=torch.promote_types(value.dtype, torch.float32))
    else:
        found = torch.as_tensor(check_array(name, value, shape=shape, finite=False), device=device)
    with torch.no_grad():
        off = (found.sum(dim=-1) - 1).abs()
        if not ((off <= tolerance).all() and (found >= -1e-12).all()):  # NaN compares as false
            worst = found.sum(dim=-1).flatten()[int(off.flatten().nan_to_num(torch.inf).argmax())]
            least = float(found.min())
            raise ValueError(f"{name} must be >= 0 and sum to 1, got a sum of {float(worst):.6g}, least {least:.3g}")
    return found


def check_floats(
    name: str, value: Any, shape: Sequence[str | int | None] | None = None, device: Any = None
) -> torch.Tensor:
    """Return finite numbers as a float tensor on `device`; an integer or boolean one becomes float64."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        check_dense(name, value)
        found = value if device is None else value.to(device)
        if not torch.isfinite(found).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    else:
        found = torch.as_tensor(check_array(name, value), device=device)
    if shape is not None:
        check_shape(name, tuple(found.shape), shape)
    return found


def check_targets(
    value: Any, n_prompts: str | int, n_tokens: str | int, device: Any = None
) -> torch.Tensor:  # fmt: skip
    """Return targets (n_prompts, steps >= 1, n_tokens), distributions over the vocabulary."""
    targets = check_simplex("targets", value, (n_prompts, "steps", n_tokens), device)
    if not targets.shape[1]:
        raise ValueError(f"targets must have at least one step, got shape {tuple(targets.shape)}")
    return targets


def check_drawn(name: str, value: Any, shape: Sequence[str | int | None], n_tokens: int, device: Any) -> torch.Tensor:
    """Return drawn tokens (..., k >= 1), k per thought, as an int64 tensor on `device`."""
    drawn = check_ids(name, value, shape, n_tokens, device)
    if not drawn.shape[-1]:
        raise ValueError(f"{name} must hold at least one token per thought, got shape {tuple(drawn.shape)}")
    return drawn


def check_dense(name: str, value: torch.Tensor) -> None:
    """Refuse sparse tensors of any shape."""
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of {value.layout}")


def check_shape(name: str, got: tuple[int, ...], shape: Sequence[str | int | None]) -> None:
    """Compare the shape of a tensor with what is expected; text and None are free."""
    fits = len(got) == len(shape) and all(not isinstance(e, int) or e == g for e, g in zip(shape, got, strict=True))
    if not fits:
        expected = ", ".join("any" if axis is None else str(axis) for axis in shape)
        raise ValueError(f"{name} must have shape ({expected}), got {got}")
