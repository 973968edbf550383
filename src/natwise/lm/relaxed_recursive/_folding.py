"""Norm gains and biases moved into the linear maps behind the norm: another model with the same output."""

from __future__ import annotations

import torch

Tensors = dict[str, torch.Tensor]
Readers = dict[str, tuple[str, ...]]

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj")
LLAMA: Readers = {"input_layernorm": _ATTENTION, "post_attention_layernorm": _MLP}
_GEMMA: Readers = {"input_layernorm": _ATTENTION, "pre_feedforward_layernorm": _MLP}
_NEOX: Readers = {"input_layernorm": ("attention.query_key_value",), "post_attention_layernorm": ("mlp.dense_h_to_4h",)}

# Which linear maps read what a norm returns.
READERS: dict[str, Readers] = {"gpt_neox": _NEOX, "gemma2": _GEMMA, "gemma3_text": _GEMMA}


def fold_norms(layer: Tensors, family: str) -> Tensors:
    """Return the parameters of a layer with the gains and biases of its norms folded into the maps that read them.

    Parameters
    ----------
    layer : dict of tensor
        Parameters of one layer by name; not changed.
    family : str
        Model type; Gemma's gain is 1 + weight.

    Returns
    -------
    dict of tensor
        The same names. W becomes W diag(gain), a bias b becomes b + W c for a norm's bias c; gains become 1, the norm's
        biases 0. Gains that nothing linear reads (norms of queries and keys, norms behind a map) stay.
    """
    folded = dict(layer)
    one = 1.0 if family.startswith("gemma") else 0.0
    for norm, readers in READERS.get(family, LLAMA).items():
        weight = f"{norm}.weight"
        wide = torch.promote_types(layer[weight].dtype, torch.float32)
        gain, bias = layer[weight].to(wide) + one, layer.get(f"{norm}.bias")
        for reader in readers:
            matrix = layer[f"{reader}.weight"]
            folded[f"{reader}.weight"] = (matrix.to(wide) * gain).to(matrix.dtype)
            if bias is not None:
                shift = matrix.to(wide) @ bias.to(wide)
                folded[f"{reader}.bias"] = (layer[f"{reader}.bias"].to(wide) + shift).to(matrix.dtype)
        folded[weight] = torch.full_like(layer[weight], 1.0 - one)
        if bias is not None:
            folded[f"{norm}.bias"] = torch.zeros_like(bias)
    return folded


def has_other_vectors(layer: Tensors, family: str) -> bool:
    """Say whether a folded layer has vectors that carry information: biases, or gains that could not be folded."""
    norms = {f"{norm}.{leaf}" for norm in READERS.get(family, LLAMA) for leaf in ("weight", "bias")}
    return any(value.ndim == 1 and name not in norms for name, value in layer.items())
