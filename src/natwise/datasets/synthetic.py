"""Sequence tasks that can be made at any size: copying, and recall of key-value pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from natwise.core.validation import check_integer, check_real

IGNORED = -100
Draw = Callable[[int, np.random.Generator], tuple[torch.Tensor, torch.Tensor]]


def copying(vocabulary: int, lengths: tuple[int, int], *, mixed: bool = False) -> Draw:
    """Return ``draw(batch_size, rng)`` for the copying task: a_1 … a_L, a separator, a_1 … a_L.

    Parameters
    ----------
    vocabulary : int
        Symbols 0 … vocabulary - 1; the separator is the number `vocabulary`.
    lengths : tuple of int
        Shortest and longest L.
    mixed : bool
        Whether every sequence draws its own L, shorter ones being filled up with the separator, instead of one L for
        all sequences of a batch.

    Returns
    -------
    callable
        Gives tokens and labels, int64 (batch_size, 2 L) with the longest L of the batch. Labels stand under the token
        before the one that is to be predicted, and are -100 but for the second copy.
    """
    check_integer("vocabulary", vocabulary, minimum=2)
    shortest, longest = (check_integer("lengths", value, minimum=1) for value in lengths)
    if shortest > longest:
        raise ValueError(f"lengths must be a shortest and a longest, got {lengths}")

    def draw(batch_size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        length = rng.integers(shortest, longest + 1, size=(batch_size if mixed else 1, 1))
        most = length.max()
        position = np.arange(2 * most + 1)
        symbols = rng.integers(vocabulary, size=(batch_size, most))
        again = position - length - 1
        inside = (again >= 0) & (again < length)
        source = np.broadcast_to(np.where(inside, again, np.minimum(position, most - 1)), (batch_size, len(position)))
        sequence = np.where((position < length) | inside, np.take_along_axis(symbols, source, axis=1), vocabulary)
        labels = np.where(inside, sequence, IGNORED)
        return torch.from_numpy(sequence[:, :-1]), torch.from_numpy(labels[:, 1:])

    return draw


def associative_recall(vocabulary: int, length: int, pairs: int, *, power: float = 0.01) -> Draw:
    """Return ``draw(batch_size, rng)`` for multi-query associative recall (MQAR, Arora et al. 2023).

    The first ``2 * pairs`` tokens are keys, each followed by its value; then every key comes once more, and its value
    is to be predicted there.

    Parameters
    ----------
    vocabulary : int
        Keys are 1 … vocabulary / 2 - 1, values the upper half, both drawn without replacement; 0 fills the gaps.
    length : int
        Even, at least ``4 * pairs``.
    pairs : int
    power : float
        Gaps g between the pairs and the queries have probability proportional to g^(power - 1): small ones are likely.

    Returns
    -------
    callable
        Gives tokens and labels, int64 (batch_size, length); the label at a query is its value, all others are -100.
    """
    check_integer("pairs", pairs, minimum=1)
    if check_integer("length", length, minimum=4 * pairs) % 2:
        raise ValueError(f"length must be even, got {length}")
    check_integer("vocabulary", vocabulary, minimum=2 * pairs + 2)
    check_real("power", power, minimum=0.0, exclusive=True)
    slots = (length - 2 * pairs) // 2
    chance = power * np.arange(1, slots + 1) ** (power - 1.0)
    chance /= chance.sum()
    half = vocabulary // 2

    def draw(batch_size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        keys = 1 + _without_replacement(half - 1, pairs, batch_size, rng)
        values = half + _without_replacement(vocabulary - half, pairs, batch_size, rng)
        # the order of the slots by exponential races, so that small gaps win as often as their chance says
        order = np.argsort(rng.exponential(size=(batch_size, slots)) / chance, axis=1)[:, :pairs]
        query = 2 * pairs + 2 * order
        tokens = np.zeros((batch_size, length), dtype=np.int64)
        labels = np.full((batch_size, length), IGNORED)
        tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
        np.put_along_axis(tokens, query, keys, axis=1)
        np.put_along_axis(labels, query, values, axis=1)
        return torch.from_numpy(tokens), torch.from_numpy(labels)

    return draw


def _without_replacement(n: int, count: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` different numbers below n in each row."""
    return np.argsort(rng.random((rows, n)), axis=1)[:, :count]
