"""Mixture of recursions: a language model that decides for every token how often it loops over its layers."""

from natwise.lm.mixture_of_recursions._accounting import count_flops, kv_cache_bytes
from natwise.lm.mixture_of_recursions._causal_lm import MoRForCausalLM
from natwise.lm.mixture_of_recursions._config import MoRConfig
from natwise.lm.mixture_of_recursions._diagnostics import router_diagnostics
from natwise.lm.mixture_of_recursions._engine import DepthwiseBatchingEngine

__all__ = [
    "DepthwiseBatchingEngine",
    "MoRConfig",
    "MoRForCausalLM",
    "count_flops",
    "kv_cache_bytes",
    "router_diagnostics",
]
