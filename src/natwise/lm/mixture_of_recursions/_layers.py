"""Llama's decoder layer as a function of what its queries attend to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import rotate_half

Rope = tuple[Tensor, Tensor]
Memory = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


def project_keys(attention: Any, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """Return rotated keys, and values, (batch, n, heads, width) of normalised hidden states (batch, n, d)."""
    shape = (*x.shape[:-1], -1, attention.head_dim)
    return rotate(attention.k_proj(x).view(shape), rope), attention.v_proj(x).view(shape)


def rotate(heads: Tensor, rope: Rope) -> Tensor:
    """Return (batch, n, heads, width) rotated to the tokens' positions."""
    cos, sin = (part.unsqueeze(2) for part in rope)
    return heads * cos + rotate_half(heads) * sin


def decoder_layer(
    layer: Any, attention: Any, hidden: Tensor, rope: Rope, mask: Tensor | None, memory: Memory
) -> Tensor:
    """Return the layer's output (batch, n, d), its residual stream included.

    Parameters
    ----------
    layer : LlamaDecoderLayer
        Gives norms and feed-forward network.
    attention : LlamaAttention
        Its own, or another with the same shapes.
    hidden : Tensor
    rope : pair of Tensor
        Cosines and sines (batch, n, width) of the tokens' positions.
    mask : Tensor or None
        bool (batch, 1, n, length): what each query may see; None is causal among the tokens themselves.
    memory : callable
        ``memory(attention, x)`` returns keys and values (batch, length, heads, width), given the normalised input.
    """
    x = layer.input_layernorm(hidden)
    query = rotate(attention.q_proj(x).view(*x.shape[:-1], -1, attention.head_dim), rope)
    keys, values = memory(attention, x)
    seen = scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=attention.attention_dropout if attention.training else 0.0,
        scale=attention.scaling,
        enable_gqa=query.shape[2] != keys.shape[2],
    )
    hidden = hidden + attention.o_proj(seen.transpose(1, 2).reshape(*x.shape[:-1], -1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
