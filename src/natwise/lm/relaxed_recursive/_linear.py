"""A linear map of which each depth has its own low-rank delta."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear


class RelaxedLinear(nn.Linear):
    """``y = W x + b + B (A x)``: W may be shared with other depths, A (rank, in) and B (out, rank) are not.

    The scale is exactly 1; with alpha / rank = 2, as in a published template, the best low-rank delta is as bad as
    none. A starts Gaussian with variance 1 / in, B as zero.
    """

    def __init__(self, n_in: int, n_out: int, rank: int, *, bias: bool):
        super().__init__(n_in, n_out, bias=bias)
        self.lora_a = nn.Parameter(torch.empty(rank, n_in))
        self.lora_b = nn.Parameter(torch.empty(n_out, rank))
        self.reset_delta()

    def reset_delta(self) -> None:
        """Make the delta zero, ready for training."""
        if self.lora_a.is_meta:
            return
        nn.init.normal_(self.lora_a, std=1 / math.sqrt(self.in_features))
        nn.init.zeros_(self.lora_b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (..., in) to (..., out)."""
        return super().forward(x) + linear(linear(x, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> torch.Tensor:
        """Return W + B A (out, in), computed in float32 at least, in the dtype of W."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        weight = self.weight.to(wide) + self.lora_b.to(wide) @ self.lora_a.to(wide)
        return weight.to(self.weight.dtype)


def relax(layer: nn.Module, rank_of: Callable[[str, tuple[int, int]], int]) -> None:
    """Put a `RelaxedLinear` in the place of every linear map of a layer; ``rank_of(name, shape)`` gives its rank."""
    for name, module in list(layer.named_modules()):
        if isinstance(module, nn.Linear):
            rank = rank_of(name, (module.out_features, module.in_features))
            relaxed = RelaxedLinear(module.in_features, module.out_features, rank, bias=module.bias is not None)
            parent, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(parent), leaf, relaxed)
