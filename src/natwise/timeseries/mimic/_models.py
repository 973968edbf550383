"""The published networks: LSTM, channel-wise LSTM, and both for all tasks at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from natwise.core.validation import check_flag, check_integer, check_real, shorten
from natwise.datasets import mimic3

from ._recurrent import LSTMLayer, inside_mask

N_BUCKETS = 10
MORTALITY_STEP = 47  # the last of the first 48 hours


def channel_columns() -> list[list[int]]:
    """Return the columns of each variable in a matrix of `Discretizer()`: its values, then its mask."""
    variables = mimic3.variables()
    first, columns = 0, []
    n_values = sum(variable.width for variable in variables)
    for position, variable in enumerate(variables):
        columns.append([*range(first, first + variable.width), n_values + position])
        first += variable.width
    return columns


class Encoder(nn.Module):
    """Recurrent layers that turn (batch, steps, in_features) into one vector per step.

    With `channels`, each of them first has `depth` LSTMs of its own (the channel-wise model).
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        depth: int,
        dropout: float,
        *,
        causal: bool,
        channels: Sequence[Sequence[int]] | None = None,
        size_coef: int = 4,
    ):
        super().__init__()
        check_integer("in_features", in_features, minimum=1)
        check_integer("hidden", hidden, minimum=2)
        check_integer("depth", depth, minimum=1)
        check_real("dropout", dropout, minimum=0.0, maximum=1.0)
        check_flag("every_step", causal)
        if not causal and hidden % 2:
            raise ValueError(f"hidden must be even, half for each direction, got {hidden}")
        per_direction, n_columns = hidden if causal else hidden // 2, in_features
        layers: list[LSTMLayer] = []
        if channels is not None:
            check_integer("size_coef", size_coef, minimum=1)
            own = _check_channels(channels)
            for _ in range(depth):
                layers.append(LSTMLayer(own, per_direction, bidirectional=not causal, dropout=dropout))
                own = _outputs_of(len(own), per_direction, layers[-1].directions)
            in_features, hidden = layers[-1].n_outputs, size_coef * hidden
            per_direction = hidden if causal else hidden // 2
        for _ in range(depth - 1):
            layers.append(LSTMLayer([range(in_features)], per_direction, bidirectional=not causal, dropout=dropout))
            in_features = layers[-1].n_outputs
        layers.append(LSTMLayer([range(in_features)], hidden, dropout=dropout))
        self.layers, self.n_outputs, self.n_columns = nn.ModuleList(layers), hidden, n_columns

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return (batch, steps, n_outputs); after the end of a stay the last output stays."""
        _check_batch(x, lengths, self.n_columns)
        inside = inside_mask(lengths, x.shape[1])
        for layer in self.layers:
            x = layer(x, inside)
        return x


class LSTMClassifier(nn.Module):
    """The standard LSTM of the benchmark: bidirectional layers, one forward layer, a linear output.

    Parameters
    ----------
    in_features : int
        Columns of the input, 76 for `Discretizer()`.
    hidden : int
        Units of each layer; the bidirectional ones have half of them in each direction.
    n_outputs : int
        Logits: 1 for mortality and decompensation, 10 buckets for the length of stay, 25 phenotypes.
    depth : int
        Number of layers.
    dropout : float
        Of the inputs of every layer (the same for all steps) and before the output.
    every_step : bool
        Give the logits at every hour, as deep supervision and target replication need; then all layers are causal.

    Notes
    -----
    `forward(x, lengths)` takes x (batch, steps, in_features), padded at the end, and lengths (batch,), and
    returns logits (batch, n_outputs), or (batch, steps, n_outputs) with `every_step`. Published (Keras 2.1.2)
    semantics: see `LSTMLayer`.
    """

    def __init__(
        self,
        in_features: int = 76,
        hidden: int = 16,
        n_outputs: int = 1,
        *,
        depth: int = 2,
        dropout: float = 0.3,
        every_step: bool = False,
    ):
        super().__init__()
        check_integer("n_outputs", n_outputs, minimum=1)
        self.encoder = Encoder(in_features, hidden, depth, dropout, causal=every_step)
        self.head = _Head(self.encoder.n_outputs, n_outputs, dropout, every_step)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, n_outputs), or per step, of x (batch, steps, columns) and lengths (batch,)."""
        return self.head(self.encoder(x, lengths))


class ChannelWiseLSTM(nn.Module):
    """The channel-wise LSTM: each variable, with its mask, is first read by LSTMs of its own.

    Parameters
    ----------
    channels : sequence of sequence of int, optional
        The columns of each variable. Default: those of `Discretizer()`.
    hidden : int
        Units of the LSTMs of a variable.
    n_outputs : int
        Logits, as for `LSTMClassifier`.
    size_coef : int
        The layers that read all variables have `size_coef * hidden` units.
    depth : int
        Number of layers before, and again after, the variables come together.
    dropout : float
        As for `LSTMClassifier`.
    every_step : bool
        As for `LSTMClassifier`.
    """

    def __init__(
        self,
        channels: Sequence[Sequence[int]] | None = None,
        hidden: int = 8,
        n_outputs: int = 1,
        *,
        size_coef: int = 4,
        depth: int = 1,
        dropout: float = 0.3,
        every_step: bool = False,
    ):
        super().__init__()
        check_integer("n_outputs", n_outputs, minimum=1)
        columns = channel_columns() if channels is None else _check_channels(channels)
        self.encoder = Encoder(
            1 + max(max(c) for c in columns),
            hidden,
            depth,
            dropout,
            causal=every_step,
            channels=columns,
            size_coef=size_coef,
        )
        self.head = _Head(self.encoder.n_outputs, n_outputs, dropout, every_step)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, n_outputs), or per step, of x (batch, steps, columns) and lengths (batch,)."""
        return self.head(self.encoder(x, lengths))


class MultitaskLSTM(nn.Module):
    """One causal network for all tasks.

    Parameters
    ----------
    in_features : int
        Columns of the input.
    hidden : int
        Units of each layer.
    depth : int
        Number of layers.
    dropout : float
        As for `LSTMClassifier`.
    channels : sequence of sequence of int, optional
        Columns of each variable for the channel-wise form, as for `ChannelWiseLSTM`; default: the plain LSTM.
    size_coef : int
        As for `ChannelWiseLSTM`.

    Notes
    -----
    `forward(x, lengths)` returns logits by task: "in_hospital_mortality" and "phenotyping" after every step, (batch,
    steps, 1) and (batch, steps, 25); "decompensation" (batch, steps, 1); "length_of_stay" (batch, steps, 10).
    """

    def __init__(
        self,
        in_features: int = 76,
        hidden: int = 512,
        *,
        depth: int = 1,
        dropout: float = 0.3,
        channels: Sequence[Sequence[int]] | None = None,
        size_coef: int = 8,
    ):
        super().__init__()
        self.encoder = Encoder(in_features, hidden, depth, dropout, causal=True, channels=channels, size_coef=size_coef)
        sizes = {"in_hospital_mortality": 1, "decompensation": 1, "length_of_stay": N_BUCKETS}
        sizes["phenotyping"] = len(mimic3.phenotypes().names)
        self.heads = nn.ModuleDict(
            {task: _Head(self.encoder.n_outputs, size, dropout, every_step=True) for task, size in sizes.items()}
        )

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits (batch, steps, n_outputs) by task of x (batch, steps, columns) and lengths (batch,)."""
        states = self.encoder(x, lengths)
        return {task: head(states) for task, head in self.heads.items()}


class _Head(nn.Module):
    """Dropout and a linear layer, at the last step or at every step."""

    def __init__(self, in_features: int, n_outputs: int, dropout: float, every_step: bool):
        super().__init__()
        self.every_step, self.dropout = every_step, nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, n_outputs)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, n_outputs), or (batch, steps, n_outputs), of states (batch, steps, in_features)."""
        logits: torch.Tensor = self.linear(self.dropout(states if self.every_step else states[:, -1]))
        return logits


def _check_channels(channels: Any) -> list[list[int]]:
    """Return the columns of each variable when there is at least one of each."""
    if isinstance(channels, (str, bytes)) or not isinstance(channels, Iterable):
        raise TypeError(f"channels must be a list of lists of columns, got {shorten(channels)}")
    checked = [[check_integer("channels", column, minimum=0) for column in columns] for columns in channels]
    if not checked or not all(checked):
        raise ValueError(f"channels must hold at least one column of each of at least one variable, got {checked}")
    return checked


def _check_batch(x: Any, lengths: Any, n_columns: int) -> None:
    """Refuse batches that the layers would misread: x is (batch, steps, n_columns) float, lengths (batch,) integer."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a float tensor, got {shorten(getattr(x, 'dtype', x))}")
    if x.ndim != 3 or x.shape[2] != n_columns or not x.numel():
        raise ValueError(f"x must have shape (batch, steps, {n_columns}), none of them 0, got {tuple(x.shape)}")
    if not isinstance(lengths, torch.Tensor) or lengths.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"lengths must be an integer tensor, got {shorten(getattr(lengths, 'dtype', lengths))}")
    if lengths.shape != x.shape[:1]:
        raise ValueError(f"lengths must have shape ({len(x)},), one per stay, got {tuple(lengths.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x must be finite, got NaN or infinity")
    shortest, longest = (int(value) for value in torch.aminmax(lengths))
    if shortest < 1 or longest > x.shape[1]:
        wrong = shortest if shortest < 1 else longest
        raise ValueError(f"lengths must lie within 1 and the {x.shape[1]} steps of x, got {wrong}")


def _outputs_of(n_channels: int, hidden: int, directions: int) -> list[list[int]]:
    """Return which outputs of a layer belong to each channel: forward ones, then backward ones."""
    positions = torch.arange(directions * n_channels * hidden).view(directions, n_channels, hidden)
    return [positions[:, channel].flatten().tolist() for channel in range(n_channels)]
