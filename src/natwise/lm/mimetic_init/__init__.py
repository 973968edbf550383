"""Mimetic initialisation of state space layers, and the layers themselves in plain torch."""

from natwise.lm.mimetic_init._init import mimetic_init_, safe_decay
from natwise.lm.mimetic_init._mamba import Mamba1, Mamba2, MambaLM, parameter_groups
from natwise.lm.mimetic_init._scan import ssd_attention_map, ssd_scan

__all__ = [
    "Mamba1",
    "Mamba2",
    "MambaLM",
    "mimetic_init_",
    "parameter_groups",
    "safe_decay",
    "ssd_attention_map",
    "ssd_scan",
]
