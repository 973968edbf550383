"""Layers whose weights depend on the row: what loops share is stored once, what they do not is gathered."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from natwise.lm.mixture_of_recursions._slots import Rows


class RowLinear(nn.Module):
    """``y = W x + b + B_l (A_l x)`` with the loop l of each row.

    Parameters
    ----------
    modules : sequence of Module
        The linear map of each loop: all have one `weight` and `bias`; `lora_a` (rank, in), `lora_b` (out, rank).
    current : dict
        Holds ``"rows"``, the rows (b) of each call.
    lora : {"gather", "grouped"}
        Multiply each row with a copy of its A and B, which is best for small ranks; or all rows of a loop at once.
    """

    def __init__(self, modules: Sequence[Any], current: dict[str, Rows], lora: str):
        super().__init__()
        self.weight, self.bias = modules[0].weight, modules[0].bias
        self.lora_a = torch.stack([one.lora_a.detach() for one in modules])
        self.lora_b = torch.stack([one.lora_b.detach() for one in modules])
        self.current, self.lora = current, lora

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, n, in) to (b, n, out)."""
        rows, y = self.current["rows"], linear(x, self.weight, self.bias)
        if self.lora == "gather":
            loops = rows.loop_index
            return y + x @ self.lora_a[loops].mT @ self.lora_b[loops].mT
        for loop in np.unique(rows.loops).tolist():
            here = rows.tensor((rows.loops == loop).nonzero()[0])
            y[here] += linear(linear(x[here], self.lora_a[loop]), self.lora_b[loop])
        return y


def per_row(layers: Sequence[nn.Module], current: dict[str, Rows], lora: str) -> nn.Module:
    """Return one layer that stands for the layers of all loops; it shares their tensors and leaves them as they are.

    Raises
    ------
    ValueError
        When something else than low-rank deltas and gains of norms differs.
    """
    first = layers[0]
    memo: dict[int, Any] = {id(one): one for one in (*first.parameters(), *first.buffers())}
    memo |= {id(module.config): module.config for module in first.modules() if hasattr(module, "config")}
    merged = copy.deepcopy(first, memo).eval()
    for name, module in list(first.named_modules()):
        others = [layer.get_submodule(name) for layer in layers]
        if hasattr(module, "lora_a"):
            parent, _, leaf = name.rpartition(".")
            setattr(merged.get_submodule(parent), leaf, RowLinear(others, current, lora))
        for leaf, parameter in module.named_parameters(recurse=False):
            every = [one.get_parameter(leaf) for one in others]
            if leaf.startswith("lora_") or all(one is parameter for one in every):
                continue
            if leaf != "weight" or parameter.ndim != 1 or isinstance(module, nn.LayerNorm):
                raise ValueError(f"model must share {name}.{leaf} between loops, or hold it as a low-rank delta")
            _make_gain_of_row(merged.get_submodule(name), torch.stack([one.detach() for one in every]), name)
    return merged


def _make_gain_of_row(module: Any, of_loops: Tensor, name: str) -> None:
    """Turn the gain of a norm into a plain attribute, set before each call from that of each loop (loops, width)."""
    del module.weight
    module.of_loops = of_loops
    module.extra_axes = 2 if name.endswith(("q_norm", "k_norm")) else 1  # norms of heads see (b, n, heads, width)
