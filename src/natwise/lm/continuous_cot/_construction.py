"""Weights, written down, of a one-layer transformer that solves the minimum non-negative sum with CoT2 exactly."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from natwise.core.validation import check_array, check_integer
from natwise.lm.continuous_cot._model import ContinuousCoT

MAX_LENGTH = 40  # one of 2^length traces must stand out from the rounding of float64; at 48 it did not
MAX_SUM = 4000  # for 0.8 GB of weights
SHARPNESS = 60.0  # of attention; what leaks is exp(-60)
ANSWER_GAP = 50.0  # logit per unit of sum
EMPTY = -100.0  # logit of what has no probability


def subset_sum_transformer(length: int, max_digit: int) -> SubsetSumTransformer:
    """Return a one-layer transformer, with no training, that follows all 2^length choices of signs at once.

    Parameters
    ----------
    length : int
        Number of digits m, at most 40: beyond, single traces are lost in rounding.
    max_digit : int
        Largest digit; ``length * max_digit`` may be up to 4000.

    Returns
    -------
    SubsetSumTransformer
        Called on int digits (n, length), in 0 … max_digit, it returns the self-fed distributions over the sums
        -length max_digit … length max_digit as float64 array (n, length, 2 length max_digit + 1): equal to
        `mnns_dataset`'s targets with all traces up to rounding, the answer at the last step.

    Raises
    ------
    TypeError, ValueError
        For numbers that are not whole or out of these ranges.

    Examples
    --------
    >>> alpha = subset_sum_transformer(length=3, max_digit=4)([[2, 1, 4]])
    >>> alpha.shape, int(alpha[0, -1].argmax()) - 12
    ((1, 3, 25), 1)
    """
    length = check_integer("length", length, minimum=1, maximum=MAX_LENGTH)
    return SubsetSumTransformer(length, check_integer("max_digit", max_digit, minimum=1, maximum=MAX_SUM // length))


class SubsetSumTransformer(torch.nn.Module):
    """A causal language model over digits, an arrow and sums; `ContinuousCoT` decodes it like any other.

    Parameters
    ----------
    length : int
        Number of digits m.
    max_digit : int
        Largest digit.

    Notes
    -----
    With S = length max_digit, M = 2S + 1 and frequencies w_j = 2 pi j / M, j = 0 … S, the sum v has the embedding
    phi(v) = [cos w_j v, sin w_j v] and the digit d has psi(d) = [cos w_j d]. The mean of phi(v + d) and phi(v - d) is
    phi(v) times psi(d), entry by entry, so one product per step moves a whole distribution. Attention brings psi of
    the next digit, a gated layer multiplies, and the inverse Fourier transform reads the distribution; at the last
    position the least sum that is not negative and has at least one of 2^m traces wins. Width 3(S + 1) + 2m.

    The paper proves that such weights exist (Proposition 1); these weights are our own.
    """

    readout: torch.Tensor
    rank: torch.Tensor

    def __init__(self, length: int, max_digit: int):
        super().__init__()
        self.length, self.max_digit, self.n_sums = length, max_digit, 2 * length * max_digit + 1
        half = length * max_digit
        sums, digits = torch.arange(-half, half + 1), torch.arange(max_digit + 1)
        waves = torch.arange(half + 1, dtype=torch.float64) * (2 * math.pi / self.n_sums)
        self.state = slice(0, 2 * (half + 1))
        self.digit = slice(2 * (half + 1), 3 * (half + 1))
        self.key, self.query = (slice(3 * (half + 1) + i * length, 3 * (half + 1) + (i + 1) * length) for i in (0, 1))
        phi = torch.cat([torch.cos(sums[:, None] * waves), torch.sin(sums[:, None] * waves)], dim=1)
        table = torch.zeros(max_digit + 2 + self.n_sums, self.query.stop, dtype=torch.float64)
        table[: max_digit + 1, self.digit] = torch.cos(digits[:, None] * waves)
        table[max_digit + 1, self.state] = phi[half]  # the arrow is the sum 0
        table[max_digit + 2 :, self.state] = phi
        self.embedding = torch.nn.Embedding.from_pretrained(table)
        doubled = torch.full((half + 1,), 2.0, dtype=torch.float64)
        doubled[0] = 1.0
        self.register_buffer("readout", phi * doubled.repeat(2) / self.n_sums)
        self.register_buffer("rank", torch.where(sums >= 0, half + 1 - sums, 0).double())

    def __call__(self, digits: Any = None, **inputs: Any) -> Any:
        """Return the distributions for digits; with ``inputs_embeds=`` the logits, as any language model."""
        return super().__call__(**inputs) if inputs else self.distributions(digits)

    def distributions(self, digits: Any) -> np.ndarray:
        """Return what the model thinks about digits (n, length), on its own thoughts: float64 (n, length, n_sums)."""
        array = check_array("digits", digits, shape=("n", self.length), dtype=np.int64)
        if not len(array):
            raise ValueError(f"digits must hold at least one sequence, got shape {array.shape}")
        if not (array.min() >= 0 and array.max() <= self.max_digit):
            wrong = array[(array < 0) | (array > self.max_digit)][0]
            raise ValueError(f"digits must be in 0 … {self.max_digit}, got {wrong}")
        arrow = np.full((len(array), 1), self.max_digit + 1)
        thought = ContinuousCoT(self).generate(np.concatenate([array, arrow], axis=1), self.length)
        return thought.distributions[..., self.max_digit + 2 :].numpy()

    def get_input_embeddings(self) -> torch.nn.Embedding:
        """Return the table of all tokens' vectors."""
        return self.embedding

    def forward(self, inputs_embeds: torch.Tensor) -> SimpleNamespace:
        """Return logits (n, positions, n_tokens) for [digits, arrow, thoughts], (n, positions, width)."""
        hidden = inputs_embeds + self._positions(inputs_embeds.shape[1])
        scores = SHARPNESS * hidden[..., self.query] @ hidden[..., self.key].transpose(1, 2)
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        digit = scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ hidden[..., self.digit]
        moved = hidden[..., self.state] * digit.repeat(1, 1, 2)
        alpha = moved @ self.readout.T
        logits = alpha.clamp(min=math.exp(EMPTY)).log()
        traces = 2**self.length * alpha
        reached = traces.relu() - (traces - 1).relu()
        last = torch.arange(logits.shape[1])[:, None] == 2 * self.length - 1
        logits = torch.where(last, ANSWER_GAP * reached * self.rank, logits)
        return SimpleNamespace(logits=torch.nn.functional.pad(logits, (self.max_digit + 2, 0), value=EMPTY))

    def _positions(self, count: int) -> torch.Tensor:
        """Return (count, width): position t carries key t, position length + t asks for key t."""
        found = torch.zeros(count, self.query.stop, dtype=torch.float64)
        steps = torch.arange(count)
        found[steps[: self.length], self.key.start + steps[: self.length]] = 1.0
        found[steps[self.length :], self.query.start + steps[: max(count - self.length, 0)]] = 1.0
        return found
