"""Which tokens pass the block again: routers, choices and their losses."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


@dataclass(frozen=True)
class Tokens:
    """Tokens taken out of the columns of a batch.

    Attributes
    ----------
    index : Tensor
        int64 (batch, n): their columns, in order.
    valid : Tensor
        bool (batch, n): False where a row has fewer than n; these stand at the end.
    full : bool
        Whether all are known to be valid, so that no mask is needed.
    """

    index: Tensor
    valid: Tensor
    full: bool

    @property
    def counts(self) -> Tensor:
        """Tokens of each row (batch,)."""
        return self.valid.sum(1)

    def take(self, values: Tensor) -> Tensor:
        """Return the entries (batch, n, ...) of values (batch, columns, ...)."""
        index = self.index if values.ndim == 2 else self.index[..., None].expand(-1, -1, values.shape[-1])
        return values.gather(1, index)

    def add(self, stream: Tensor, update: Tensor) -> Tensor:
        """Return the stream (batch, columns, d) with an update (batch, n, d) added at these tokens."""
        update = update if self.full else update * self.valid[..., None].to(update.dtype)
        return stream.scatter_add(1, self.index[..., None].expand(-1, -1, stream.shape[-1]), update.to(stream.dtype))

    def put(self, stream: Tensor, values: Tensor) -> Tensor:
        """Return the stream with these tokens replaced by values (batch, n, d)."""
        kept = values if self.full else torch.where(self.valid[..., None], values, self.take(stream))
        return stream.scatter(1, self.index[..., None].expand(-1, -1, stream.shape[-1]), kept.to(stream.dtype))

    def among(self, chosen: Tokens) -> Tokens:
        """Return the tokens that `chosen` names by their place among these."""
        return Tokens(self.index.gather(1, chosen.index), chosen.valid, chosen.full)


def every(shape: tuple[int, int], device: torch.device) -> Tokens:
    """Return all columns of a batch without padding."""
    return Tokens(torch.arange(shape[1], device=device).expand(shape), torch.ones(shape, device=device).bool(), True)


def where(wanted: Tensor) -> Tokens:
    """Return the columns at which bool (batch, columns) is True."""
    counts = wanted.sum(1)
    n = int(counts.max()) if wanted.numel() else 0
    index = torch.argsort(~wanted, dim=1, stable=True)[:, :n]
    valid = torch.arange(n, device=wanted.device) < counts[:, None]
    return Tokens(index, valid, bool(n > 0 and int(counts.min()) == n))


def top_k(scores: Tensor, active: Tokens, k: Tensor | int) -> Tokens:
    """Return the k highest scores (batch, n) of each row, in the order of their places; of equal ones the first.

    Parameters
    ----------
    scores : Tensor
        One per active token.
    active : Tokens
        Says which of them are valid.
    k : Tensor or int
        How many for each row (batch,); an int when all rows have the same.
    """
    if isinstance(k, int):
        index = scores.argsort(dim=1, descending=True, stable=True)[:, :k].sort(dim=1).values
        return Tokens(index, torch.ones_like(index, dtype=torch.bool), True)
    ranked = scores.masked_fill(~active.valid, -math.inf)
    rank = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return where((rank < k[:, None]) & active.valid)


def capacity_counts(share: float, lengths: Tensor, full: bool, columns: int) -> Tensor | int:
    """Return k = max(1, floor(share * tokens)): an int for rows of equal length, else one per row (0 when empty)."""
    shortest = columns if full else int(lengths[lengths > 0].min())
    if share * shortest < 1:
        warnings.warn(
            f"{shortest} tokens with a capacity of {share:.3g}: one token is taken; give longer sequences",
            stacklevel=5,
        )
    if full:
        return max(math.floor(share * columns), 1)
    counts = (lengths.double() * share).floor().long()
    return torch.minimum(counts.clamp(min=1), lengths)


def warmed_up(share: float, step: int, n_steps: int) -> float:
    """Return a capacity that sinks from 1 to `share` over `n_steps` (c + (1 - c) (1 + cos(pi t / n)) / 2)."""
    if step >= n_steps:
        return share
    return share + (1 - share) * 0.5 * (1 + math.cos(math.pi * step / n_steps))


class Router(nn.Module):
    """One number, or several, per token: a linear map, or a network with one hidden layer; without biases.

    Parameters
    ----------
    kind : {"linear", "mlp", "wide_mlp"}
    width : int
    n_outputs : int
    temperature : float
        Its input is divided by it.
    """

    def __init__(self, kind: str, width: int, n_outputs: int = 1, temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature
        self.map: nn.Module = nn.Linear(width, n_outputs, bias=False)
        if kind != "linear":
            hidden = nn.Linear(width, 2 * width, bias=False)
            self.map = nn.Sequential(hidden, nn.GELU(), nn.Linear(2 * width, n_outputs, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, n), or (batch, n, n_outputs) when there are several."""
        logits: Tensor = self.map(x / self.temperature)
        return logits.squeeze(-1)


@dataclass
class Losses:
    """What the routers report of one forward pass, summed over recursions; a mean over tokens within each."""

    sampling: Tensor
    accuracy: Tensor
    z: Tensor
    balancing: Tensor
    ratio: Tensor

    @classmethod
    def zeros(cls, like: Tensor, n_recursions: int = 1) -> Losses:
        """Return zeros in float32 (float64 stays), on the device of a tensor."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        zero = torch.zeros((), dtype=dtype, device=like.device)
        return cls(zero, zero, zero, zero, zero.expand(n_recursions) if n_recursions > 1 else zero)

    def add_choice(self, logits: Tensor, guess: Tensor, chosen: Tokens, active: Tokens, counted: float) -> None:
        """Add what one recursion of expert choice reports.

        Parameters
        ----------
        logits : Tensor
            The router's (batch, n), for the z-loss.
        guess : Tensor
            Logits of being chosen, of the router itself or of the auxiliary router.
        chosen, active : Tokens
        counted : float
            Weight of this recursion in the sampling loss.
        """
        target = torch.zeros_like(guess, dtype=self.sampling.dtype)
        target = target.scatter_add(1, chosen.index, chosen.valid.to(target.dtype))
        guess = guess.to(target.dtype)
        bce = binary_cross_entropy_with_logits(guess, target, reduction="none")
        self.sampling = self.sampling + counted * mean_over(bce, active)
        self.accuracy = self.accuracy + counted * mean_over(((guess >= 0) == (target > 0)).to(target.dtype), active)
        self.z = self.z + mean_over(logits.to(target.dtype) ** 2, active)


def mean_over(values: Tensor, tokens: Tokens) -> Tensor:
    """Return the mean of (batch, n) over the valid tokens."""
    if tokens.full:
        return values.mean()
    return (values * tokens.valid).sum() / tokens.valid.sum().clamp(min=1)


def gates(logits: Tensor, activation: str, alpha: float) -> Tensor:
    """Return alpha times the activation of logits (..., n), of the same shape; softmax goes over the last axis."""
    if activation == "softmax":
        return alpha * logits.softmax(dim=-1)
    return alpha * (logits.sigmoid() if activation == "sigmoid" else logits.tanh())
