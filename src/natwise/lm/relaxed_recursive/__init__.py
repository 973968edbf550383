"""Relaxed recursive transformers: a trained language model as a smaller one that loops over shared layers."""

import lazy_loader

# On first use: the modules import torch and transformers, which the command line does not want to wait for.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_convert": ["to_recursive"],
        "_exits": ["EarlyExitLoss", "evaluate_exits"],
        "_model": ["RecursiveConfig", "RecursiveForCausalLM"],  # which registers them with the Auto classes
        "_trainer": ["UptrainTrainer"],
    },
)
