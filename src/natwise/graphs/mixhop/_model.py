"""Networks of MixHop layers, their output layers, and the older N-GCN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from natwise.core.validation import check_flag, check_integer, check_option, check_real, shorten
from natwise.graphs.mixhop._conv import MixHopConv, check_widths, propagated
from natwise.graphs.mixhop._features import Features, binarized, dropped, recall_features, unit_rows
from natwise.graphs.mixhop._graph import Memory, recall_graph

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "elu": F.elu}
OUTPUTS = ("weighted", "linear")
SHIFT_EPS = 1e-3


class WeightedBlockOutput(nn.Module):
    """Average blocks of n_classes columns with learned softmax weights: Y = sum_k softmax(q)_k O[:, kC:(k+1)C].

    Parameters
    ----------
    in_channels : int
        Columns of the input, a multiple of n_classes.
    n_classes : int
        Columns C of every block and of the output.

    Attributes
    ----------
    q : Parameter of shape (in_channels / n_classes,)
        Logits of the block weights; zero at first, which is the plain mean.

    Raises
    ------
    ValueError
        When the columns do not make whole blocks. The released code ignores the surplus columns.
    """

    def __init__(self, in_channels: int, n_classes: int):
        super().__init__()
        self.n_classes = check_integer("n_classes", n_classes, minimum=1)
        self.in_channels = check_integer("in_channels", in_channels, minimum=1)
        if self.in_channels % self.n_classes:
            raise ValueError(f"in_channels must be a multiple of n_classes, {n_classes}, got {in_channels}")
        self.q = nn.Parameter(torch.zeros(self.in_channels // self.n_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, n_classes) from x (n, in_channels)."""
        if x.ndim != 2 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must have shape (n_nodes, {self.in_channels}), got {tuple(x.shape)}")
        return torch.einsum("nkc,k->nc", x.unflatten(1, (-1, self.n_classes)), self.q.softmax(0))

    def penalty(self) -> torch.Tensor:
        """Return 1e-3 mean(q^2), which the loss of the released code contains."""
        return 1e-3 * self.q.square().mean()

    def extra_repr(self) -> str:
        """Show columns and classes."""
        return f"{self.in_channels}, {self.n_classes}"


class BatchShift(nn.Module):
    """Batch normalisation as in the released code: no scale, always with the statistics of the current batch."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the shifted, standardised columns of x (n, width)."""
        return torch.batch_norm(x, None, self.bias, None, None, True, 0.0, SHIFT_EPS, False)  # a lone node is allowed


NORMS: dict[str | None, Callable[[int], nn.Module]] = {
    "running": nn.BatchNorm1d,
    "batch": BatchShift,
    None: lambda width: nn.Identity(),
}


class MixHop(nn.Module):
    """Node classifier of MixHop layers: features -> [mix -> normalise -> activate -> drop] ... -> mix -> output.

    Parameters
    ----------
    in_channels : int
        Width of the features.
    hidden : sequence of int or dict
        Every hidden layer's columns per power: a number for all `powers`, or ``{power: columns}``.
    n_classes : int
        Classes C.
    powers : sequence of int
        Powers of the normalised adjacency where no dict names them.
    output : {"weighted", "linear"}
        `WeightedBlockOutput` on the last mixing layer, or a linear map without bias.
    output_widths : int or dict, optional
        Columns per power of the last mixing layer. Default: C for every power.
    activation : {"relu", "tanh", "elu"}
        After every hidden layer.
    batch_norm : {"batch", "running", None}
        "running" is `torch.nn.BatchNorm1d`; "batch" is the released code's: no scale, and the current graph's
        statistics in prediction too, which needs no average since all nodes are there.
    input_dropout, dropout : float
        Rates on features and on hidden layers.
    normalize_rows : bool
        Scale every node's features to length 1, after their dropout, as the released code does.
    binarize : bool
        Replace features by whether they are nonzero. The released code does, which changes TF-IDF (Pubmed).
    bias : bool
        Learned constants in the mixing layers.

    Attributes
    ----------
    convs : ModuleList of MixHopConv
        The mixing layers, that of the output included.
    architecture : list of dict
        Columns per power of each.

    Raises
    ------
    TypeError, ValueError
        For options that do not exist; when the last mixing layer has fewer columns than classes, or, for the
        weighted output, no multiple.

    Notes
    -----
    A column whose weights are all zero stays zero through normalisation and activation, so that it can be removed
    (`prune_columns`) without changing anything.

    Examples
    --------
    >>> import torch
    >>> model = MixHop(3, [{0: 8, 1: 8, 2: 4}], 2).eval()
    >>> model(torch.eye(4, 3), torch.tensor([[0, 1, 2], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    output: WeightedBlockOutput | nn.Linear

    def __init__(
        self,
        in_channels: int,
        hidden: Sequence[int | Mapping[int, int]],
        n_classes: int,
        powers: Sequence[int] = (0, 1, 2),
        *,
        output: str = "weighted",
        output_widths: int | Mapping[int, int] | None = None,
        activation: str = "relu",
        batch_norm: str | None = "batch",
        input_dropout: float = 0.5,
        dropout: float = 0.9,
        normalize_rows: bool = True,
        binarize: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        self.n_classes = check_integer("n_classes", n_classes, minimum=1)
        self.activation = check_option("activation", activation, tuple(ACTIVATIONS))
        self.batch_norm = check_option("batch_norm", batch_norm, tuple(NORMS))
        self.input_dropout = _check_rate("input_dropout", input_dropout)
        self.dropout = _check_rate("dropout", dropout)
        self.normalize_rows = check_flag("normalize_rows", normalize_rows)
        self.binarize = check_flag("binarize", binarize)
        if not isinstance(hidden, Sequence) or isinstance(hidden, (str, bytes)):
            raise TypeError(f"hidden must be a list with an entry per layer, got {shorten(hidden)}")
        layers = [check_widths(f"hidden[{i}]", widths, powers) for i, widths in enumerate(hidden)]
        last = check_widths("output_widths", n_classes if output_widths is None else output_widths, powers)
        _check_output(output, sum(last.values()), n_classes)
        self.convs = nn.ModuleList()
        for widths in (*layers, last):
            self.convs.append(MixHopConv(in_channels, widths, bias=bias))
            in_channels = sum(widths.values())
        self.norms = nn.ModuleList(NORMS[batch_norm](sum(widths.values())) for widths in layers)
        self.output = _output(output, in_channels, n_classes)
        self._graphs, self._features = Memory(), Memory()

    @property
    def layers(self) -> list[MixHopConv]:
        """The mixing layers, that of the output included."""
        return [conv for conv in self.convs if isinstance(conv, MixHopConv)]

    @property
    def architecture(self) -> list[dict[int, int]]:
        """Columns per power of every mixing layer."""
        return [dict(layer.widths) for layer in self.layers]

    def forward(self, x: Any, adjacency: Any) -> torch.Tensor:
        """Return logits (n, n_classes); x and adjacency as in `MixHopConv`."""
        *hidden, last = self.layers
        first = self.layers[0]
        z = recall_features(self._features, x, first.weight, first.in_channels)
        graph = recall_graph(self._graphs, adjacency, z.shape[0], first.weight)
        z = self._prepared(z)
        for conv, norm in zip(hidden, self.norms, strict=True):
            z = ACTIVATIONS[self.activation](norm(conv(z, graph))) * alive_columns(conv)
            z = F.dropout(z, self.dropout, self.training)
        return self.output(last(z, graph))

    def loss(self, x: Any, adjacency: Any, labels: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy (nats) of `nodes`, plus the output layer's penalty.

        Parameters
        ----------
        x, adjacency
            As in `forward`.
        labels : int64 tensor of shape (n,)
            Classes of all nodes; those outside `nodes` are not looked at.
        nodes : int64 tensor
            Training nodes.
        """
        return F.cross_entropy(self(x, adjacency)[nodes], labels[nodes]) + _penalty(self.output)

    def _prepared(self, x: Features) -> Features:
        x = binarized(x) if self.binarize else x
        x = dropped(x, self.input_dropout, self.training)
        return unit_rows(x) if self.normalize_rows else x


class NGCN(nn.Module):
    """N-GCN: an independent two-layer GCN per power and replica, joined by an output layer.

    Every tower computes Â^p relu(Â^p X W_1) W_2 and has a cross-entropy of its own; the output layer sees the towers'
    predictions with their gradients stopped.

    Parameters
    ----------
    in_channels : int
        Width of the features.
    hidden : int
        Hidden columns of every tower.
    n_classes : int
        Classes C.
    powers : sequence of int
        Powers of the normalised adjacency.
    n_replicas : int
        Towers per power.
    output : {"weighted", "linear"}
        Softmax of every tower and `WeightedBlockOutput`; or relu and a linear map.
    input_dropout, dropout : float
        Rates on features and on hidden columns.
    normalize_rows : bool
        Scale every node's features to length 1.

    Attributes
    ----------
    powers : tuple of int
        The powers, in the order of the towers: replicas of the first, then of the second, ...
    n_towers : int
        Replicas times powers. (A slip in the released code uses the last power of each replica alone.)

    Raises
    ------
    TypeError, ValueError
        For options that do not exist; for negative, repeated or non-integer powers.

    Notes
    -----
    N-GCN, UAI 2019. The weighted output's classes are ``logits.argmax(1)``: the logits are logarithms of averaged
    probabilities, so that their cross-entropy is that of the average. The released code puts a second softmax on the
    averaged probabilities, which cannot be surer than e / (e + C - 1).
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        n_classes: int,
        powers: Sequence[int] = (0, 1, 2, 3),
        *,
        n_replicas: int = 3,
        output: str = "weighted",
        input_dropout: float = 0.5,
        dropout: float = 0.9,
        normalize_rows: bool = True,
    ):
        super().__init__()
        self.hidden = check_integer("hidden", hidden, minimum=1)
        self.n_classes = check_integer("n_classes", n_classes, minimum=1)
        self.n_replicas = check_integer("n_replicas", n_replicas, minimum=1)
        self.input_dropout = _check_rate("input_dropout", input_dropout)
        self.dropout = _check_rate("dropout", dropout)
        self.normalize_rows = check_flag("normalize_rows", normalize_rows)
        self.first = MixHopConv(in_channels, self.n_replicas * self.hidden, powers)
        self.powers = self.first.powers
        self.n_towers = self.n_replicas * len(self.powers)
        self.second = nn.Parameter(torch.empty(self.n_towers, self.hidden, self.n_classes))
        self.output = _output(check_option("output", output, OUTPUTS), self.n_towers * self.n_classes, n_classes)
        self._graphs, self._features = Memory(), Memory()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every tower anew, Glorot uniform."""
        for block in (*self.first.weight.detach().split(self.hidden, dim=1), *self.second):
            nn.init.xavier_uniform_(block)

    def towers(self, x: Any, adjacency: Any) -> torch.Tensor:
        """Return every tower's logits (n, n_towers, n_classes); x and adjacency as in `MixHopConv`."""
        z = recall_features(self._features, x, self.first.weight, self.first.in_channels)
        graph = recall_graph(self._graphs, adjacency, z.shape[0], self.first.weight)
        z = dropped(z, self.input_dropout, self.training)
        z = self.first(unit_rows(z) if self.normalize_rows else z, graph)
        z = F.dropout(F.relu(z), self.dropout, self.training).unflatten(1, (self.n_towers, self.hidden))
        z = torch.einsum("nth,thc->ntc", z, self.second).flatten(1)
        z = propagated(graph, z, dict.fromkeys(self.powers, self.n_replicas * self.n_classes))
        return z.unflatten(1, (self.n_towers, self.n_classes))

    def forward(self, x: Any, adjacency: Any) -> torch.Tensor:
        """Return the joined logits (n, n_classes)."""
        return self._joined(self.towers(x, adjacency))

    def loss(self, x: Any, adjacency: Any, labels: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """Return the towers' cross-entropies (nats) plus that of the joined output; arguments as in `MixHop.loss`."""
        towers = self.towers(x, adjacency)
        alone = F.cross_entropy(
            towers[nodes].flatten(0, 1), labels[nodes].repeat_interleave(self.n_towers), reduction="sum"
        )
        joined = F.cross_entropy(self._joined(towers)[nodes], labels[nodes])
        return alone / len(nodes) + joined + _penalty(self.output)

    def _joined(self, towers: torch.Tensor) -> torch.Tensor:
        towers = towers.detach()
        if isinstance(self.output, WeightedBlockOutput):
            return self.output(towers.softmax(2).flatten(1)).clamp(min=1e-30).log()
        return self.output(F.relu(towers).flatten(1))


@torch.no_grad()
def keep_batch_statistics_(model: MixHop, x: Any, adjacency: Any) -> None:
    """Turn every `BatchShift` into a `BatchNorm1d` with the statistics of this graph, whose predictions stay."""
    model.eval()
    for index, norm in enumerate(model.norms):
        if isinstance(norm, BatchShift):
            seen: list[torch.Tensor] = []
            hook = norm.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
            model(x, adjacency)
            hook.remove()
            kept = nn.BatchNorm1d(seen[0].shape[1], eps=SHIFT_EPS).to(norm.bias).eval()
            kept.bias.copy_(norm.bias)
            kept.running_mean, kept.running_var = seen[0].mean(dim=0), seen[0].var(dim=0, correction=0)
            model.norms[index] = kept


def alive_columns(conv: MixHopConv) -> torch.Tensor:
    """Return 1 for every column of the layer with a nonzero weight, 0 for the others, in the weights' dtype."""
    return (conv.weight.detach() != 0).any(dim=0).to(conv.weight.dtype)


def kernels(module: nn.Module) -> list[torch.Tensor]:
    """Return the weight matrices that are penalised: no biases, shifts or block weights."""
    parts: list[torch.Tensor] = [part.weight for part in module.modules() if isinstance(part, (MixHopConv, nn.Linear))]
    return parts + [part.second for part in module.modules() if isinstance(part, NGCN)]


def _output(kind: str, in_channels: int, n_classes: int) -> WeightedBlockOutput | nn.Linear:
    if kind == "weighted":
        return WeightedBlockOutput(in_channels, n_classes)
    linear = nn.Linear(in_channels, n_classes, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def _check_output(kind: str, n_columns: int, n_classes: int) -> None:
    check_option("output", kind, OUTPUTS)
    if n_columns < n_classes:
        raise ValueError(f"output_widths must have at least n_classes, {n_classes}, columns, got {n_columns}")
    if kind == "weighted" and n_columns % n_classes:
        raise ValueError(f"output_widths must have a multiple of n_classes, {n_classes}, columns, got {n_columns}")


def _penalty(output: nn.Module) -> torch.Tensor | float:
    return output.penalty() if isinstance(output, WeightedBlockOutput) else 0.0


def _check_rate(name: str, value: Any) -> float:
    rate = check_real(name, value, minimum=0.0)
    if rate >= 1:
        raise ValueError(f"{name} must be >= 0 and < 1, got {rate}")
    return rate
