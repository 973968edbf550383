"""What may come with the tokens of a call; values are looked at where that costs nothing."""

from __future__ import annotations

from typing import Any

from natwise.lm._checks import check_integers, check_length, check_tensor, is_readable
from natwise.lm.mixture_of_recursions._cache import MoRCache


def check_context(shape: tuple[int, int], mask: Any, position_ids: Any, past: MoRCache | None, config: Any) -> None:
    """Check what comes with tokens (batch, columns): mask, positions and cache."""
    if past is not None and not isinstance(past, MoRCache):
        raise TypeError(f"past_key_values must be a MoRCache, got {type(past).__name__}")
    n_rows, columns = shape
    length = columns + (past.get_seq_length() if past is not None else 0)
    longest = length
    if mask is not None:
        mask = check_tensor("attention_mask", mask)
        if mask.ndim != 2 or mask.shape[0] != n_rows or mask.shape[1] not in (columns, length):
            raise ValueError(f"attention_mask must have shape ({n_rows}, {length}), got {tuple(mask.shape)}")
        if is_readable(mask) and not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("attention_mask must hold 0 and 1")
        longest = int(mask.sum(1).max())
    if position_ids is not None:
        position_ids = check_tensor("position_ids", position_ids)
        check_integers("position_ids", position_ids)
        if position_ids.ndim != 2 or position_ids.shape[0] not in (1, n_rows) or position_ids.shape[1] != columns:
            raise ValueError(f"position_ids must have shape ({n_rows}, {columns}), got {tuple(position_ids.shape)}")
    check_length("input_ids with what is cached", longest, config)
