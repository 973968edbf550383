"""Distributions over tokens: from logits, with a floor, against targets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def wide(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the softmax over the last axis in float32 at least; `ValueError` when it is not finite."""
    found = wide(logits).softmax(dim=-1)
    if not torch.isfinite(found).all():
        raise ValueError("the model's logits must be finite, got NaN or infinity")
    return found


def floored(alpha: torch.Tensor, floor: float) -> torch.Tensor:
    """Return distributions with no entry below `floor`, renormalised.

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
        Distributions.

    Returns
    -------
    tensor of shape ()
        In nats.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"targets must have the shape of logits, {tuple(logits.shape)}, got {tuple(targets.shape)}")
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
