"""The MixHop layer: powers of the propagation matrix side by side, each with a width of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from natwise.core.validation import check_flag, check_integer, shorten
from natwise.graphs.mixhop._features import Features, recall_features
from natwise.graphs.mixhop._graph import Graph, Memory, product, recall_graph


class MixHopConv(nn.Module):
    r"""Mix neighbourhoods of several distances: H' = [Â^p H W_p for p in powers], Â = D^-1/2 (A + I) D^-1/2.

    Â is computed once per graph and kept. Its powers are never formed: all W_p are applied in one product, and every
    further multiplication by Â serves all powers that still need it, forwards and (Â is symmetric) backwards. When
    the input is narrower than what it becomes, it is propagated first instead; the result is the same.

    Parameters
    ----------
    in_channels : int
        Width F of the input.
    out_channels : int or dict of int to int
        Width of every power's block, or ``{power: width}``, where a width of 0 leaves the power out and the keys
        take the place of `powers`.
    powers : sequence of int
        Powers of Â, each >= 0; power 0 is the node itself. ``(1,)`` is a GCN layer.
    bias : bool
        Add a learned constant to every column.

    Attributes
    ----------
    weight : Parameter of shape (in_channels, sum of widths)
        The W_p side by side, in the order of `widths`.
    widths : dict of int to int
        Columns of each power, in the order of the output.
    weights : dict of int to Tensor
        Views of `weight`, one of shape (in_channels, width) per power.

    Raises
    ------
    TypeError, ValueError
        For negative, repeated or non-integer powers, for no columns at all.

    Notes
    -----
    Eq. 1 of the paper without the nonlinearity, which acts entry by entry and may as well follow. Its released code
    has no bias, and multiplies the F-wide input by Â before every W_p.

    Shapes: x (n, F) -> (n, sum of widths); dtype and device are those of the weights.

    Examples
    --------
    >>> import torch
    >>> conv = MixHopConv(3, {0: 4, 2: 1})
    >>> conv(torch.ones(5, 3), torch.tensor([[0, 1], [1, 2]])).shape
    torch.Size([5, 5])
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int | Mapping[int, int],
        powers: Sequence[int] = (0, 1, 2),
        bias: bool = False,
    ):
        super().__init__()
        self.in_channels = check_integer("in_channels", in_channels, minimum=1)
        self.widths = check_widths("out_channels", out_channels, powers)
        self.out_channels = sum(self.widths.values())
        self.weight = nn.Parameter(torch.empty(self.in_channels, self.out_channels))
        has_bias = check_flag("bias", bias)
        self.register_parameter("bias", nn.Parameter(torch.empty(self.out_channels)) if has_bias else None)
        self._graphs, self._features = Memory(), Memory()
        self.reset_parameters()

    @property
    def powers(self) -> tuple[int, ...]:
        """The powers that have columns, in the order of the output."""
        return tuple(self.widths)

    @property
    def weights(self) -> dict[int, torch.Tensor]:
        """W_p of every power: views of `weight`."""
        return dict(zip(self.widths, self.weight.split(list(self.widths.values()), dim=1), strict=True))

    def reset_parameters(self) -> None:
        """Draw every W_p anew, Glorot uniform with its own width; zero the bias."""
        for block in self.weights.values():
            nn.init.xavier_uniform_(block)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Any, adjacency: Any) -> torch.Tensor:
        """Return the mixed features (n, sum of widths).

        Parameters
        ----------
        x : tensor, array, or scipy or torch sparse matrix of shape (n, in_channels)
            Features; sparse ones get no gradient.
        adjacency : array, tensor, scipy or torch sparse matrix, or object with ``edge_index``
            The graph, see `normalized_adjacency`; normalised again only when it changed.

        Raises
        ------
        TypeError, ValueError
            When shapes do not fit, nodes are out of range, or features are not finite.
        """
        x = recall_features(self._features, x, self.weight, self.in_channels)
        graph = recall_graph(self._graphs, adjacency, x.shape[0], self.weight)
        if self._propagates_input(x):
            z = self._input_first(graph, x if isinstance(x, torch.Tensor) else x.to_dense())
        else:
            z = propagated(graph, x @ self.weight, self.widths)
        return z if self.bias is None else z + self.bias

    def _input_first(self, graph: Graph, x: torch.Tensor) -> torch.Tensor:
        """Return [(Â^p x) W_p] of x (n, in_channels): cheaper when x is narrow."""
        reached = {0: x}
        for power in range(1, max(self.powers) + 1):
            reached[power] = _Propagate.apply(reached[power - 1], graph.matrix, (0,))
        return torch.cat([reached[power] @ block for power, block in self.weights.items()], dim=1)

    def _propagates_input(self, x: Features) -> bool:
        """Compare the columns that are multiplied by Â, forwards and backwards, in both orders of products."""
        backward = torch.is_grad_enabled()
        needs = {"x": isinstance(x, torch.Tensor) and x.requires_grad, "weight": self.weight.requires_grad}
        input_first = self.in_channels * max(self.powers) * (1 + (backward and needs["x"]))
        weights_first = sum(power * width for power, width in self.widths.items())
        return input_first < weights_first * (1 + (backward and any(needs.values())))

    def extra_repr(self) -> str:
        """Show input width and widths."""
        return f"{self.in_channels}, {self.widths}, bias={self.bias is not None}"


def check_widths(name: str, value: Any, powers: Any) -> dict[int, int]:
    """Return ``{power: width}`` without the widths of 0."""
    if isinstance(value, Mapping):
        widths = {power: check_integer(f"{name}[{power!r}]", width, minimum=0) for power, width in value.items()}
        name_of_powers, given = name, value
    else:
        width = check_integer(name, value, minimum=1)
        powers = [check_integer("powers", power, minimum=0) for power in _listed(powers)]
        if len(set(powers)) < len(powers):
            raise ValueError(f"powers must be different, got {shorten(powers)}")
        widths, name_of_powers, given = dict.fromkeys(powers, width), "powers", powers
    for power in widths:
        check_integer(name_of_powers, power, minimum=0)
    if not widths:
        raise ValueError(f"{name_of_powers} must hold at least one power, got {shorten(given)}")
    if not any(widths.values()):
        raise ValueError(f"{name} must have a positive sum of widths, got {shorten(value)}")
    return {int(power): width for power, width in widths.items() if width}


def _listed(powers: Any) -> list[Any]:
    if isinstance(powers, (str, bytes)) or not isinstance(powers, Iterable) or getattr(powers, "ndim", 1) != 1:
        raise TypeError(f"powers must be a list of integers, got {shorten(powers)} ({type(powers).__name__})")
    return list(powers)


def propagated(graph: Graph, z: torch.Tensor, widths: Mapping[int, int]) -> torch.Tensor:
    """Return [Â^p z_p] (n, sum of widths) for the column blocks z_p of z (n, sum of widths)."""
    powers = sorted(widths)
    if list(widths) == powers:
        return _Propagate.apply(z, graph.matrix, _steps(powers, widths))
    blocks = dict(zip(widths, z.split(list(widths.values()), dim=1), strict=True))
    mixed = _Propagate.apply(torch.cat([blocks[p] for p in powers], dim=1), graph.matrix, _steps(powers, widths))
    by_power = dict(zip(powers, mixed.split([widths[p] for p in powers], dim=1), strict=True))
    return torch.cat([by_power[power] for power in widths], dim=1)


def _steps(powers: Sequence[int], widths: Mapping[int, int]) -> tuple[int, ...]:
    """Return, for each multiplication by Â, the first column that takes part in it."""
    return tuple(sum(widths[p] for p in powers if p < k) for k in range(1, powers[-1] + 1))


class _Propagate(torch.autograd.Function):
    """Multiply by Â once per step, each time the columns from a start on; its own adjoint, as Â is symmetric."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, matrix: torch.Tensor, steps: tuple[int, ...]) -> torch.Tensor:
        ctx.matrix, ctx.steps = matrix, steps
        if not steps:
            return z.clone()
        finished, rest = [z[:, : steps[0]]], z[:, steps[0] :]
        for start, end in pairwise((*steps, z.shape[1])):
            rest = product(matrix, rest.contiguous())
            finished.append(rest[:, : end - start])
            rest = rest[:, end - start :]
        return torch.cat(finished, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Propagate.apply(gradient, ctx.matrix, ctx.steps), None, None
