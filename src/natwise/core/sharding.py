"""Models whose weights are spread over processes (FSDP2), as ``accelerate launch --use_fsdp --fsdp_version 2`` asks."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def shard_on_cpu(accelerator: Accelerator, mixed_precision: str) -> None:
    """Let processes without GPUs shard too: accelerate falls back to DDP there, torch does not need to."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not wanted or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version must be 2 to train on CPUs, got {plugin.fsdp_version}")
    if mixed_precision != "no":
        plugin.set_mixed_precision(mixed_precision)
    accelerator.state._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)


def full_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Any] | None) -> dict[str, Any]:
    """Return the whole state of a sharded model, its optimiser and its best weights, on the main process.

    The other processes get empty states; all must call it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    from torch.distributed.tensor import DTensor

    weights, moments = get_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if best is not None:
        best = {
            name: value.full_tensor().cpu() if isinstance(value, DTensor) else value for name, value in best.items()
        }
    return {"model": weights, "optimizer": moments, "best": best}


def load_full_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> dict[str, Any] | None:
    """Give each process its part of what `full_state` returned; return its part of the best weights."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_state_dict

    options, best = StateDictOptions(full_state_dict=True), None
    if state["best"] is not None:
        set_model_state_dict(model, state["best"], options=options)
        best = copy.deepcopy(model.state_dict())
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options
    )
    return best
