"""Coconut: hidden states as thoughts, learned stage by stage; what continuous chains are compared with."""

from __future__ import annotations

from typing import Any

import torch

from natwise.core.validation import check_integer
from natwise.lm.continuous_cot._checks import check_targets
from natwise.lm.continuous_cot._distributions import divergence
from natwise.lm.continuous_cot._model import ContinuousCoT, check_cot


def coconut_loss(cot: ContinuousCoT, prompt: Any, targets: Any, n_latent: int, *, mask: Any = None) -> torch.Tensor:
    """Return Coconut's loss at one stage: the first thoughts are hidden states without targets, the rest is taught.

    Parameters
    ----------
    cot : ContinuousCoT
    prompt : int array or tensor of shape (n_prompts, length)
        Tokens.
    targets : array or tensor of shape (n_prompts, steps, n_tokens)
        One-hot rows of the discrete trace (``MNNS.token_targets(kind="trace")``).
    n_latent : int
        Stage: thoughts that are the last hidden state of the step before, 0 … steps - 1. 0 is the discrete chain.
        The curriculum raises it during training; decode with ``generate(..., feedback="hidden")`` after the last.
    mask : array or tensor of shape (n_prompts, length), optional
        See `ContinuousCoT.forward`.

    Returns
    -------
    tensor of shape ()
        In nats: sum over taught steps, mean over prompts.

    Raises
    ------
    TypeError, ValueError
        As `ContinuousCoT.loss`, and for stages that there are not.

    Source: Hao and others, Training Large Language Models to Reason in a Continuous Latent Space, 2024.
    """
    check_cot(cot)
    prompt, mask = cot.check_prompt(prompt, mask)
    aims = check_targets(targets, len(prompt), cot.n_tokens, cot.device)
    stage = check_integer("n_latent", n_latent, minimum=0, maximum=aims.shape[1] - 1)

    def feed(step: int, logits: torch.Tensor, output: Any) -> torch.Tensor:
        return output.hidden_states[-1][:, -1:] if step < stage else cot.embed(aims[:, step : step + 1])

    logits = cot.unroll(prompt, aims.shape[1], feed, mask, hidden=True)
    return divergence(logits[:, stage:], aims[:, stage:])
