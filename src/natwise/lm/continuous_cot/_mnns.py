"""Minimum non-negative sum: choose signs of digits so that their sum is the least that is not negative."""

from __future__ import annotations

import itertools
import numbers
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_option, check_real, shorten

MAX_SEQUENCES = 1_000_000
MAX_LENGTH = 20
MAX_NUMBERS = 400_000_000  # partial sums of all choices of signs, or entries of targets
BLOCK = 4_000_000  # partial sums held at a time
KINDS = ("superposed", "trace", "answer")
BOS, ARROW, FIRST_DIGIT = 1, 3, 6  # PAD 0, BOS 1, EOS 2, arrow 3, plus 4, minus 5, digits, sums


@dataclass(frozen=True, eq=False)
class MNNS:
    """All sequences of digits of one length, their answers, traces and superposed targets.

    Attributes
    ----------
    digits : int64 array of shape (n, length)
    answers : int64 array of shape (n,)
        Least non-negative signed sum.
    traces : int64 array of shape (n, length)
        Partial sums of the discrete chain of thought: of the first choice of signs, plus before minus, that attains
        the answer.
    states : int64 array of shape (2 length high + 1,)
        The sums that targets are distributions over, from the least.
    targets : float64 array of shape (n, length, len(states))
        Distribution of the kept traces' partial sums at each step; at the last, one on the answer.
    train, validation : int64 array
        Rows; orders of the same digits are never in both.
    high : int
        Largest digit of the vocabulary.
    """

    digits: np.ndarray
    answers: np.ndarray
    traces: np.ndarray
    states: np.ndarray
    targets: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    high: int

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary: six special tokens, digits 0 … high, then the sums; 89 by default."""
        return self.first_state + len(self.states)

    @property
    def first_state(self) -> int:
        """Token of the least sum."""
        return FIRST_DIGIT + self.high + 1

    @property
    def answer_tokens(self) -> np.ndarray:
        """Token of each answer, shape (n,)."""
        return self.answers - self.states[0] + self.first_state

    def prompts(self, rows: Any = slice(None), *, n_arrows: int = 1) -> torch.Tensor:
        """Return ``BOS d_1 … d_m ->`` as int64 tensor (n_rows, 1 + length + n_arrows).

        Parameters
        ----------
        rows : index
            Which sequences.
        n_arrows : int
            Arrows at the end: 1; 0 as the original code has it for continuous thoughts only; `length` for answers
            without a chain of thought, so that there are as many passes.
        """
        check_integer("n_arrows", n_arrows, minimum=0)
        digits = self.digits[self._rows(rows)] + FIRST_DIGIT
        first, last = np.full((len(digits), 1), BOS), np.full((len(digits), n_arrows), ARROW)
        return torch.from_numpy(np.concatenate([first, digits, last], axis=1))

    def token_targets(self, rows: Any = slice(None), *, kind: str = "superposed") -> torch.Tensor:
        """Return targets over the vocabulary as float32 tensor (n_rows, steps, n_tokens).

        Parameters
        ----------
        rows : index
            Which sequences.
        kind : {"superposed", "trace", "answer"}
            `targets`; the discrete trace as one-hot rows; or the answer alone, one step.
        """
        rows = self._rows(rows)
        if check_option("kind", kind, KINDS) == "superposed":
            chosen = self.targets[rows]
        else:
            sums = self.traces[rows] if kind == "trace" else self.answers[rows, None]
            chosen = (sums[..., None] == self.states).astype(np.float64)
        return torch.nn.functional.pad(torch.from_numpy(chosen).float(), (self.first_state, 0))

    def _rows(self, rows: Any) -> np.ndarray:
        """Return what an index chooses as row numbers (n_rows,); one number is one row."""
        try:
            chosen = np.atleast_1d(np.arange(len(self.digits))[rows])
        except (IndexError, TypeError, ValueError) as error:  # whatever NumPy makes of it
            raise ValueError(f"rows must choose among {len(self.digits)} sequences, got {shorten(rows)}") from error
        if chosen.ndim > 1:
            raise ValueError(f"rows must be an index of one axis, got {shorten(rows)}")
        return chosen


def mnns_dataset(
    low: int = 1, high: int = 9, length: int = 4, *,
    budget: int | None = None, train_fraction: float = 0.8, random_state: RandomState = 42,
) -> MNNS:  # fmt: skip
    """Enumerate the minimum-non-negative-sum task: every sequence of `length` digits low … high.

    Parameters
    ----------
    low, high : int
        Smallest and largest digit, 0 <= low <= high.
    length : int
        Digits per sequence, m, at most 20.
    budget : int, optional
        Traces kept per sequence, 1 … 2^length, those with the least absolute sum first. Default: all.
    train_fraction : float
        Share of the sets of digits whose orders are for training, in (0, 1).
    random_state : int, Generator, RandomState, Streams or None
        Splits. 42 gives the split of the original code (5253 and 1308 sequences by default).

    Returns
    -------
    MNNS
        ``.digits, .answers, .traces, .states, .targets, .train, .validation``; ``.prompts()`` and
        ``.token_targets()`` for language models.

    Raises
    ------
    ValueError
        For impossible ranges, budgets and fractions, and above a million sequences or 4e8 partial sums or targets.

    Source: the task of the paper's experiments, with tokens, split and choice of traces of its code.
    """
    low = check_integer("low", low, minimum=0)
    high = check_integer("high", high, minimum=max(low, 1), maximum=MAX_NUMBERS)
    length = check_integer("length", length, minimum=1, maximum=MAX_LENGTH)
    check_real("train_fraction", train_fraction, minimum=0.0, maximum=1.0, exclusive=True)
    count = (high - low + 1) ** length
    if count > MAX_SEQUENCES:
        raise ValueError(f"length must leave at most {MAX_SEQUENCES:,} sequences, got {length}: {count:,}")
    _check_size("length", count, length, length * high)
    digits = np.array(list(itertools.product(range(low, high + 1), repeat=length)), dtype=np.int64)
    targets = mnns_targets(digits, budget=budget, max_sum=length * high)
    traces = np.concatenate([_discrete_traces(block) for block in _blocks(digits)])
    states = np.arange(-length * high, length * high + 1)
    targets[:, -1] = traces[:, -1:] == states
    train, validation = _split(digits, train_fraction, random_state)
    return MNNS(digits, traces[:, -1], traces, states, targets, train, validation, high)


def mnns_targets(digits: Any, *, budget: int | None = None, max_sum: int | None = None) -> np.ndarray:
    """Return the distribution of partial sums over the best traces of each sequence of digits.

    Parameters
    ----------
    digits : int array of shape (n, m)
        Non-negative.
    budget : int, optional
        Traces kept per sequence, B in 1 … 2^m: in order of the absolute final sum, at equal ones the non-negative
        before the negative, then the signs compared as numbers from the first. Default: all.
    max_sum : int, optional
        The vocabulary of sums is -max_sum … max_sum. Default: the largest that occurs.

    Returns
    -------
    float64 array of shape (n, m, 2 max_sum + 1)
        alpha*_t(s) = share of kept traces whose sum after t digits is s. The last step holds the final sums, for
        which `mnns_dataset` has the answer instead.

    Raises
    ------
    TypeError, ValueError
        For digits that are negative, not whole or more than 20, budgets that do not exist, more than 4e8 partial sums
        or targets, and sums outside the vocabulary (the original code drops their mass without a word).
    """
    array = check_array("digits", digits, shape=("n", "m"), dtype=np.int64)
    if not array.size:
        raise ValueError(f"digits must hold at least one sequence of at least one digit, got shape {array.shape}")
    n, m = array.shape
    if not (array.min() >= 0 and array.max() <= MAX_NUMBERS and m <= MAX_LENGTH):
        wrong = f"{m} from {array.min()} to {array.max()}"
        raise ValueError(f"digits must be at most {MAX_LENGTH}, each >= 0 and <= {MAX_NUMBERS:,}, got {wrong}")
    kept = 2**m if budget is None else check_integer("budget", budget, minimum=1, maximum=2**m)
    largest = int(array.sum(axis=1).max())
    limit = largest if max_sum is None else check_integer("max_sum", max_sum, minimum=0)
    if largest > limit:
        raise ValueError(f"max_sum must be at least the largest sum of digits, {largest}, got {limit}")
    _check_size("digits" if max_sum is None else "max_sum", n, m, limit)
    return np.concatenate([_kept_shares(block, kept, limit) for block in _blocks(array)])


def _kept_shares(digits: np.ndarray, kept: int, limit: int) -> np.ndarray:
    """Return the shares of the best traces of digits (n, m) in each sum, (n, m, 2 limit + 1)."""
    n, m = digits.shape
    sums = _partial_sums(digits)[:, ::-1]  # signs in ascending order: the last tie-break, as sorting is stable
    final = sums[..., -1]
    best = np.argsort(2 * np.abs(final) + (final < 0), axis=1, kind="stable")[:, :kept]
    chosen = np.take_along_axis(sums, best[..., None], axis=1)
    width = 2 * limit + 1
    cells = (np.arange(n)[:, None, None] * m + np.arange(m)) * width + chosen + limit
    return np.bincount(cells.ravel(), minlength=n * m * width).reshape(n, m, width) / kept


def _check_size(name: str, n: int, m: int, limit: int) -> None:
    """Refuse n sequences of m digits with sums up to `limit` that are too many to enumerate or to hold."""
    if n * m * max(2**m, 2 * limit + 1) > MAX_NUMBERS:
        got = f"{n:,} x {m} digits and sums up to {limit:,}"
        raise ValueError(f"{name} must leave at most {MAX_NUMBERS:,} partial sums or targets, got {got}")


def _blocks(digits: np.ndarray) -> list[np.ndarray]:
    """Return digits (n, m) in parts of which all partial sums fit into memory."""
    n, m = digits.shape
    return np.array_split(digits, min(n, -(-n * m * 2**m // BLOCK)))


def _partial_sums(digits: np.ndarray) -> np.ndarray:
    """Return the sums of digits (n, m) for all choices of signs, (n, 2^m, m), plus before minus."""
    signs = np.array(list(itertools.product((1, -1), repeat=digits.shape[1])))
    return np.cumsum(signs * digits[:, None], axis=-1)


def _discrete_traces(digits: np.ndarray) -> np.ndarray:
    """Return the partial sums (n, m) of the first choice of signs that attains the answer for digits (n, m)."""
    sums = _partial_sums(digits)
    final = sums[..., -1]
    first = np.where(final >= 0, final, np.iinfo(np.int64).max).argmin(axis=1)
    return sums[np.arange(len(digits)), first]


def _split(digits: np.ndarray, fraction: float, random_state: RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of digits (n, m) of both sides; sets are shuffled by Python's generator, as in the original."""
    sets, member = np.unique(np.sort(digits, axis=1), axis=0, return_inverse=True)
    n_train = int(fraction * len(sets))
    if not 0 < n_train < len(sets):
        raise ValueError(f"train_fraction must leave sets of digits on both sides of {len(sets)}, got {fraction}")
    plain = isinstance(random_state, numbers.Integral) and not isinstance(random_state, bool)
    stream = Streams.of(random_state)
    order = list(range(len(sets)))
    random.Random(int(random_state) if plain else stream.seed("split")).shuffle(order)  # type: ignore[arg-type]
    chosen = np.isin(member.ravel(), order[:n_train])
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
