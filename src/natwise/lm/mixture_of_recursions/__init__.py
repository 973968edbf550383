"""Mixture of recursions: a language model that decides for every token how often it loops over its layers."""

import lazy_loader

# On first use: the modules import torch and transformers, which the command line does not want to wait for.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_accounting": ["count_flops", "kv_cache_bytes"],
        "_causal_lm": ["MoRForCausalLM"],  # which registers it with the Auto classes
        "_config": ["MoRConfig"],
        "_diagnostics": ["router_diagnostics"],
        "_engine": ["DepthwiseBatchingEngine"],
        "_serving": ["serving_benchmark"],
    },
)
