"""Distributions over tokens: from logits, with a floor, against targets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from natwise.lm.continuous_cot._checks import check_dense


def wide(logits: torch.Tensor) -> torch.Tensor:
    """Return logits of any shape in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the softmax of logits (..., n_tokens) in float32 at least; `ValueError` when it is not finite."""
    found = wide(logits).softmax(dim=-1)
    if not torch.isfinite(found).all():
        raise ValueError("the model's logits must be finite, got NaN or infinity")
    return found


def floored(alpha: torch.Tensor, floor: float) -> torch.Tensor:
    """Return distributions (..., n_tokens) with no entry below `floor`, renormalised.

    The original code drops tokens under the floor for the models at hand, so that densities of different models
    live on different simplices; here all tokens stay.
    """
    raised = alpha.clamp(min=floor)
    return raised / raised.sum(dim=-1, keepdim=True)


def trace_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence of softmax(logits) from `targets`: sum over steps, mean over prompts.

    Parameters
    ----------
    logits : float tensor of shape (n_prompts, steps, n_tokens)
        What `ContinuousCoT.forward` returns.
    targets : float tensor of shape (n_prompts, steps, n_tokens)
        Distributions, which `ContinuousCoT.loss` checks whole.

    Returns
    -------
    tensor of shape ()
        In nats.

    Raises
    ------
    TypeError, ValueError
        For what is no float tensor, or of another shape; for numbers that are not finite and targets below 0, which are
        looked at on the CPU only.

    Source: section 2 of the paper.
    """
    for name, value in {"logits": logits, "targets": targets}.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a float tensor, got {kind}")
        check_dense(name, value)
        if value.device.type == "cpu" and not value.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if logits.ndim != 3 or not logits.numel():
        raise ValueError(f"logits must have shape (n_prompts, steps, n_tokens), got {tuple(logits.shape)}")
    if logits.shape != targets.shape:
        raise ValueError(f"targets must have the shape of logits, {tuple(logits.shape)}, got {tuple(targets.shape)}")
    if targets.device.type == "cpu" and targets.min() < 0:
        raise ValueError(f"targets must be >= 0, got {float(targets.min()):.3g}")
    return divergence(logits, targets)


def divergence(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return `trace_loss` of logits and targets (n_prompts, steps, n_tokens) that are checked."""
    log_p = wide(logits).log_softmax(dim=-1)
    entropies = torch.special.xlogy(targets, targets)
    return (entropies - targets * log_p).sum(dim=(1, 2)).mean()


@contextmanager
def evaluation(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside the block: dropout would make a policy differ from itself."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
