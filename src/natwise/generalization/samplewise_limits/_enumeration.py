"""What exact enumeration needs: checked probabilities, a budget, and divergences that are exact near zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import xlog1py

from natwise.core.validation import check_array

BUDGET = 10**8
_ROUNDING = 1e-6  # of a sum of float32 probabilities
_BLOCK = 2**18  # entries of a table worked on at once


def check_budget(n_points: int, n_samples: int, n_hypotheses: int, budget: int) -> None:
    """Raise `ValueError` when the table of all (training set, hypothesis) pairs would exceed the budget."""
    entries = n_points**n_samples * n_hypotheses
    if entries > budget:
        needed = f"= {entries:,}" if entries < 10**15 else f"= about 1e{math.log10(entries):.0f}"
        raise ValueError(
            f"budget must cover all training sets and hypotheses: {n_points} ** {n_samples} * {n_hypotheses} {needed} "
            f"numbers of 8 bytes, got {budget:,}"
        )


def check_distributions(name: str, value: Any, shape: tuple[int | str | None, ...] | None = None) -> np.ndarray:
    """Return `value` as float64 pmfs along its last axis; `ValueError` when one is negative or does not sum to 1.

    What float32 leaves of a sum of 1 is made good.
    """
    table = check_array(name, value, dtype=np.float64, shape=shape)
    if table.ndim == 0 or table.size == 0:
        raise ValueError(f"{name} must hold at least one probability, got shape {table.shape}")
    if table.min() < 0:
        raise ValueError(f"{name} must hold probabilities >= 0, got {table.min():.6g}")
    totals = table.sum(axis=-1)
    worst = float(totals.flat[np.abs(totals - 1).argmax()])
    if abs(worst - 1) > _ROUNDING:
        raise ValueError(f"{name} must sum to 1{' in every row' * (table.ndim > 1)}, got a sum of {worst:.10g}")
    return table if abs(worst - 1) < 1e-12 else table / totals[..., None]


def row_blocks(n_rows: int, width: int) -> Iterator[slice]:
    """Cut the rows of a table (n_rows, width) into parts that fit the cache."""
    step = max(_BLOCK // width, 1)
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def mutual_information(weights: np.ndarray, rows: np.ndarray) -> float:
    """Return I(row; W) in nats, where row s (W's distribution given s) has probability ``weights[s]``.

    Summed as q((1 + d) log(1 + d) - d) with d = p / q - 1: no term is negative, and near independence the rounding
    error is of the order of d, not of 1, so that exact independence reads 0 and its square root does too.
    """
    marginal = weights @ rows
    rows, marginal = rows[:, marginal > 0], marginal[marginal > 0]
    total = 0.0
    for block in row_blocks(*rows.shape):
        excess = (rows[block] - marginal) / marginal
        total += float(weights[block] @ ((xlog1py(1 + excess, excess) - excess) @ marginal))
    return max(total, 0.0)
