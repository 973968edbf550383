"""What the models of this room may be given; values are looked at on the CPU only, where that costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from natwise.core.validation import check_integer, shorten

INTEGERS = (torch.int64, torch.int32)
IGNORED = -100
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def check_sizes(fields: Mapping[str, Any]) -> None:
    """Refuse sizes among the fields of a decoder's configuration that make no model."""
    for name in SIZES:
        if name in fields:
            check_integer(name, fields[name], minimum=1)


def check_module(name: str, value: Any) -> None:
    """Refuse what is no module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch module, got {shorten(value)} ({type(value).__name__})")


def check_training(model: Any, args: Any) -> None:
    """Refuse what transformers' Trainer cannot train with."""
    from transformers import TrainingArguments

    check_module("model", model)
    if not isinstance(args, TrainingArguments):
        raise TypeError(f"args must be TrainingArguments, got {shorten(args)} ({type(args).__name__})")


def check_tokens(name: str, ids: Any, vocab_size: int | None) -> Tensor:
    """Return token ids (batch, columns), at least one, as int64; without a vocabulary they are only not negative."""
    ids = check_tensor(name, ids)
    check_integers(name, ids)
    if ids.ndim != 2 or not ids.numel():
        raise ValueError(f"{name} must have shape (sequences, tokens) and hold tokens, got {tuple(ids.shape)}")
    if is_readable(ids):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or (vocab_size is not None and high >= vocab_size):
            last = "" if vocab_size is None else vocab_size - 1
            raise ValueError(f"{name} must be in 0..{last}, got {low}..{high}")
    return ids.long()


def check_inputs(ids: Any, embeds: Any, config: Any) -> tuple[int, int]:
    """Return (batch, columns) of the input: token ids (batch, columns) or their embeddings (batch, columns, d)."""
    if (ids is None) == (embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    if embeds is None:
        ids = check_tokens("input_ids", ids, config.vocab_size)
        return ids.shape[0], ids.shape[1]
    embeds, width = check_tensor("inputs_embeds", embeds), config.hidden_size
    if embeds.ndim != 3 or not embeds.numel() or embeds.shape[2] != width:
        raise ValueError(
            f"inputs_embeds must have shape (sequences, tokens, hidden_size={width}), got {tuple(embeds.shape)}"
        )
    if not embeds.is_floating_point():
        raise TypeError(f"inputs_embeds must hold floats, got {embeds.dtype}")
    if is_readable(embeds) and not bool(embeds.isfinite().all()):
        raise ValueError("inputs_embeds must be finite")
    return embeds.shape[0], embeds.shape[1]


def check_labels(labels: Any, shape: tuple[int, int], vocab_size: int, alone: bool) -> Tensor:
    """Return labels (batch, columns) as int64; `alone` when their mean is taken, so that one at least must count."""
    labels = check_tensor("labels", labels)
    check_integers("labels", labels)
    if labels.shape != shape:
        raise ValueError(f"labels must have the shape of the input, {shape}, got {tuple(labels.shape)}")
    if is_readable(labels):
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= vocab_size))
        if bool(wrong.any()):
            raise ValueError(f"labels must be {IGNORED} or in 0..{vocab_size - 1}, got {int(labels[wrong][0])}")
        if alone and not bool((labels[:, 1:] != IGNORED).any()):
            raise ValueError("labels must hold a token after the first column that counts, got none")
    return labels.long()


def check_length(name: str, n_tokens: int, config: Any) -> None:
    """Refuse more tokens than positions."""
    longest = config.max_position_embeddings
    if n_tokens > longest:
        raise ValueError(f"{name} must stay within max_position_embeddings={longest} tokens, got {n_tokens}")


def check_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor, of any kind and shape."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {shorten(value)} ({type(value).__name__})")
    return value


def check_integers(name: str, value: Tensor) -> None:
    """Refuse a tensor, of any shape, that torch would not index with."""
    if value.dtype not in INTEGERS:
        raise TypeError(f"{name} must hold integers (int64), got {value.dtype}")


def is_readable(value: Tensor) -> bool:
    """Say whether a look at the values, in any shape, neither waits for another device nor breaks a compiled graph."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling()
