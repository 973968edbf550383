"""What a call of the model may be given; values are looked at on the CPU only, where that costs nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from natwise.core.validation import shorten
from natwise.lm.mixture_of_recursions._cache import MoRCache

INTEGERS = (torch.int64, torch.int32)


def check_tokens(ids: Tensor | None, embeds: Tensor | None, config: Any) -> tuple[int, int]:
    """Return (batch, columns) of the input: token ids (batch, columns) or their embeddings (batch, columns, d)."""
    if (ids is None) == (embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    given, name, n_axes = (ids, "input_ids", 2) if embeds is None else (embeds, "inputs_embeds", 3)
    given = _tensor(name, given)
    if given.ndim != n_axes or 0 in given.shape[:2]:
        raise ValueError(f"{name} must have {n_axes} axes and hold tokens, got shape {tuple(given.shape)}")
    if embeds is None:
        _check_integers(name, given)
        if given.device.type == "cpu" and not bool(((given >= 0) & (given < config.vocab_size)).all()):
            raise ValueError(
                f"{name} must be in 0..{config.vocab_size - 1}, got {int(given.min())}..{int(given.max())}"
            )
    elif given.shape[2] != config.hidden_size:
        raise ValueError(f"{name} must have hidden_size={config.hidden_size} columns, got {given.shape[2]}")
    elif given.device.type == "cpu" and not bool(given.isfinite().all()):
        raise ValueError(f"{name} must be finite")
    return given.shape[0], given.shape[1]


def check_context(shape: tuple[int, int], mask: Any, position_ids: Any, past: MoRCache | None, config: Any) -> None:
    """Check what comes with tokens (batch, columns): mask, positions and cache."""
    if past is not None and not isinstance(past, MoRCache):
        raise TypeError(f"past_key_values must be a MoRCache, got {type(past).__name__}")
    n_rows, columns = shape
    length = columns + (past.get_seq_length() if past is not None else 0)
    longest = length
    if mask is not None:
        mask = _tensor("attention_mask", mask)
        if mask.ndim != 2 or mask.shape[0] != n_rows or mask.shape[1] not in (columns, length):
            raise ValueError(f"attention_mask must have shape ({n_rows}, {length}), got {tuple(mask.shape)}")
        if mask.device.type == "cpu" and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("attention_mask must hold 0 and 1")
        longest = int(mask.sum(1).max())
    if position_ids is not None:
        position_ids = _tensor("position_ids", position_ids)
        _check_integers("position_ids", position_ids)
        if position_ids.ndim != 2 or position_ids.shape[0] not in (1, n_rows) or position_ids.shape[1] != columns:
            raise ValueError(f"position_ids must have shape ({n_rows}, {columns}), got {tuple(position_ids.shape)}")
    check_length("input_ids with what is cached", longest, config)


def check_labels(labels: Any, shape: tuple[int, int], vocab_size: int, alone: bool) -> None:
    """Check labels (batch, columns); `alone` when their mean is taken, so that one at least must count."""
    labels = _tensor("labels", labels)
    _check_integers("labels", labels)
    if labels.shape != shape:
        raise ValueError(f"labels must have the shape of the input, {shape}, got {tuple(labels.shape)}")
    if labels.device.type == "cpu":
        wrong = (labels != -100) & ((labels < 0) | (labels >= vocab_size))
        if bool(wrong.any()):
            raise ValueError(f"labels must be -100 or in 0..{vocab_size - 1}, got {int(labels[wrong][0])}")
        if alone and not bool((labels[:, 1:] != -100).any()):
            raise ValueError("labels must hold a token after the first column that counts, got none")


def check_length(name: str, n_tokens: int, config: Any) -> None:
    """Refuse more tokens than positions."""
    longest = config.max_position_embeddings
    if n_tokens > longest:
        raise ValueError(f"{name} must stay within max_position_embeddings={longest} tokens, got {n_tokens}")


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {shorten(value)} ({type(value).__name__})")
    return value


def _check_integers(name: str, value: Tensor) -> None:
    if value.dtype not in INTEGERS:
        raise TypeError(f"{name} must hold integers (int64), got {value.dtype}")
