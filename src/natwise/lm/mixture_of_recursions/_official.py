"""Weights and settings of the original code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from natwise.core.validation import shorten
from natwise.lm.mixture_of_recursions._config import MoRConfig

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")
_BLOCK = re.compile(r"(?:block|block_list\.(?P<recursion>\d+))\.(?P<layer>\d+)\.(?P<rest>.*)")


def read_official(config_json: str, weights: Mapping[str, Any]) -> tuple[MoRConfig, dict[str, Tensor]]:
    """Return configuration and state dict of a model of ours for the original's configuration and weights."""
    if not isinstance(config_json, str):
        raise TypeError(f"config_json must be text, got {type(config_json).__name__}")
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a dict of names and tensors, got {type(weights).__name__}")
    fields = _fields(config_json)
    tensors = {str(name): torch.as_tensor(value) for name, value in weights.items()}
    probe = MoRConfig(**fields, tie_attention=False)
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        ours = _rename(name, probe)
        if ours in state and not torch.equal(state[ours], value):
            raise ValueError(f"weights must agree where recursions share them, {name} does not")
        state[ours] = value
    tied = not any(".attentions." in name for name in state) or _all_tied(state, probe)
    if tied:
        state = {name: value for name, value in state.items() if ".attentions." not in name}
    return MoRConfig(**fields, tie_attention=tied), state


def _fields(config_json: str) -> dict[str, Any]:
    """Return the fields of our configuration."""
    try:
        given = json.loads(config_json)
        llama, mor = given["llama"], given["mor"]
        recursive, shared, routing = mor["recursive"], mor["kv_sharing"], mor["mor"]
        expert = routing["type"] == "expert"
        part = routing["expert" if expert else "token"]
        fields = {
            **llama,
            "num_recursions": recursive["num_recursion"],
            "sharing": recursive["sharing"],
            "routing": "expert_choice" if expert else "token_choice",
            "kv": ("hybrid" if shared["update_cache"] else "share") if shared["enable"] else "cache",
            "router": routing["router_type"],
            "router_activation": part["router_func"],
            "alpha": part["alpha"],
            "temperature": routing["temp"],
            "gating": part["gating"],
            "z_coef": routing["z_coeff"] if routing["z_loss"] else 0.0,
        }
        fields |= _expert_fields(routing, part) if expert else _token_fields(part)
        usual = {"rand_router": not routing["rand_router"], "ln_share": bool(recursive.get("ln_share", True))}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"config_json must hold 'llama' and 'mor' as in the original code, got {shorten(config_json)} ({error})"
        ) from None
    for name, kept in usual.items():
        if not kept:
            raise ValueError(f"config_json must keep {name} at its default: nothing else is supported")
    return fields


def _expert_fields(routing: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    capacity = routing["capacity"]
    return {
        "capacity": [float(c) for c in capacity.split(",")] if isinstance(capacity, str) else list(capacity),
        "capacity_warmup_steps": part["cap_warmup_step"],
        "sampling": part["sampling"],
        "sampling_coef": part["coeff"],
        "sampling_first": part["include_first"],
    }


def _token_fields(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "balancing": part["balancing"],
        "balancing_coef": part["coeff"],
        "balancing_step": part["u"],
        "balancing_warmup_steps": part["bal_warmup_step"],
    }


def _rename(name: str, config: MoRConfig) -> str:
    """Return our name of an original one."""
    matched = _LAYER.fullmatch(name)
    if matched is None:
        return name
    index, rest = int(matched[1]), matched[2]
    n_loops = config.num_recursions if config.routing == "expert_choice" else 1
    recursion = index - config.n_outer
    if 0 <= recursion < n_loops:
        return _rename_in_loop(recursion, rest, config)
    unique = index if recursion < 0 else config.n_outer + config.block_length
    return f"model.layers.{unique}.{rest}"


def _rename_in_loop(recursion: int, rest: str, config: MoRConfig) -> str:
    for theirs, ours in (("mor_router.router", "routers"), ("mlp_router.router", "aux_routers")):
        if rest.startswith(theirs):
            return f"model.{ours}.{recursion}.map{rest.removeprefix(theirs)}"
    if rest == "router_bias":
        return "model.router_bias"
    matched = _BLOCK.fullmatch(rest)
    if matched is None:
        raise ValueError(f"weights must have the names of the original code, got {rest!r} in a recursion")
    recursion = int(matched["recursion"] or recursion)
    layer, inner = int(matched["layer"]), matched["rest"]
    depth = config.n_outer + recursion * config.block_length + layer
    if recursion and inner.startswith("self_attn."):
        later = (recursion - 1) * config.block_length + layer
        return f"model.attentions.{later}.{inner.removeprefix('self_attn.')}"
    return f"model.layers.{config.layer_map[depth]}.{inner}"


def _all_tied(state: dict[str, Tensor], config: MoRConfig) -> bool:
    """Say whether the attentions of later recursions equal those of the first."""
    for name, value in state.items():
        if name.startswith("model.attentions."):
            later, inner = name.removeprefix("model.attentions.").split(".", 1)
            unique = config.layer_map[config.n_outer + config.block_length + int(later)]
            if not torch.equal(value, state[f"model.layers.{unique}.self_attn.{inner}"]):
                return False
    return True
