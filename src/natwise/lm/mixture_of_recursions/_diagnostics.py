"""How healthy the routers of a model are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natwise.core.validation import check_real
from natwise.lm.mixture_of_recursions._causal_lm import MoRForCausalLM
from natwise.result import Result


@torch.no_grad()
def router_diagnostics(model: Any, batches: Tensor | Iterable[Tensor], *, max_vio: float = 0.5) -> Result:
    """Measure dead tokens, balance, and how far the causal rule is from top-k.

    Parameters
    ----------
    model : MoRForCausalLM
        Left in the mode it was in.
    batches : Tensor or iterable of Tensor
        Token ids (batch, columns), int64, without padding; all of the same number of columns.
    max_vio : float
        Above this violation of balance there is a warning.

    Returns
    -------
    Result
        Arrays: ``active`` (num_recursions,), share of the tokens in each recursion under the causal rule; ``selected``
        (columns,), how often a position came to the last recursion; ``depth_share`` (num_recursions,), share of tokens
        whose depth is 1, 2, ... Scalars: ``dead``, share of positions that never came to the last recursion (under
        top-k, for expert choice); ``sampling_accuracy`` (1 for token choice, which is causal); ``max_vio``, the
        largest relative excess of a depth over its due share; ``entropy`` of the depths in nats; ``lm_loss_gap``, what
        the causal rule costs in nats per token. The warnings name what is out of bounds.
    """
    if not isinstance(model, MoRForCausalLM):
        raise TypeError(f"model must be a MoRForCausalLM, got {type(model).__name__}")
    max_vio = check_real("max_vio", max_vio, minimum=0.0)
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be tensors of token ids, got {type(batches).__name__}")
    given = [batches] if isinstance(batches, Tensor) else list(batches)
    shapes = {tuple(ids.shape[1:]) if isinstance(ids, Tensor) else type(ids).__name__ for ids in given}
    if len(shapes) != 1 or not isinstance(shape := shapes.pop(), tuple) or len(shape) != 1 or shape[0] < 2:
        raise ValueError("batches must be tensors of token ids, all with the same number of columns, 2 or more")
    training, steps, bias = model.training, model.model.training_steps.clone(), model.model.router_bias.clone()
    model.eval()
    depths, selected, accuracy, gap = [], [], [], []
    expert = model.config.routing == "expert_choice"
    for ids in given:
        causal = model(input_ids=ids, labels=ids, use_cache=False)
        depths.append(causal.depths)
        chosen = model(input_ids=ids, labels=ids, use_cache=False, selection="top_k") if expert else causal
        selected.append(chosen.depths == model.config.num_recursions)
        accuracy.append(float(chosen.sampling_accuracy) if expert else 1.0)
        gap.append(float(causal.lm_loss - chosen.lm_loss))
    model.train(training)
    model.model.training_steps.copy_(steps)
    model.model.router_bias.copy_(bias)
    arrays, scalars = _summary(torch.cat(depths), torch.cat(selected), model.config)
    scalars |= {"sampling_accuracy": float(np.mean(accuracy)), "lm_loss_gap": float(np.mean(gap))}
    return Result(
        "lm.mixture_of_recursions/diagnostics",
        arrays=arrays,
        scalars=scalars,
        params={"tokens": int(sum(ids.numel() for ids in given)), "routing": model.config.routing},
        warnings=_warnings(scalars, max_vio),
    )


def _summary(depths: Tensor, selected: Tensor, config: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return arrays and scalars of the result; depths int64 (n, columns), selected bool (n, columns)."""
    n = config.num_recursions
    share = np.bincount(depths.flatten().cpu().numpy(), minlength=n + 1)[1:] / depths.numel()
    due = np.array(config.capacity) if config.routing == "expert_choice" else (n - np.arange(n)) / n
    due = due - np.append(due[1:], 0.0)
    often = selected.double().mean(0).cpu().numpy()
    arrays = {"active": share[::-1].cumsum()[::-1].copy(), "selected": often, "depth_share": share}
    held, wanted = share[share > 0], due[due > 0]
    scalars = {
        "dead": float((often == 0).mean()),
        "max_vio": float((share[due > 0] / wanted - 1).max()),
        "entropy": float(-(held * np.log(held)).sum()),
    }
    return arrays, scalars


def _warnings(scalars: dict[str, float], max_vio: float) -> tuple[str, ...]:
    found = []
    if scalars["dead"] > 0:
        found.append(f"{scalars['dead']:.1%} of the positions never come to the last recursion")
    if scalars["max_vio"] > max_vio:
        found.append(f"a depth holds {1 + scalars['max_vio']:.2f} times its due share of the tokens")
    if scalars["sampling_accuracy"] < 0.95:
        found.append(f"the causal rule agrees with top-k on {scalars['sampling_accuracy']:.1%} of the tokens only")
    return tuple(found)
