"""Group lasso over columns, the proximal step that makes them exactly zero, and the surgery that removes them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from natwise.core.validation import check_integer, check_real
from natwise.graphs.mixhop._conv import MixHopConv
from natwise.graphs.mixhop._model import BatchShift, MixHop, WeightedBlockOutput


def group_lasso(module: nn.Module) -> torch.Tensor:
    """Return the sum of the Euclidean norms of all columns of all W_p in the module's MixHop layers.

    Multiply it by a coefficient and add it to a loss; the gradient of a zero column is zero, not NaN. Plain gradient
    steps make columns small, `shrink_columns_` makes them exactly zero.

    Parameters
    ----------
    module : torch.nn.Module
        A `MixHopConv`, or anything that contains one.

    Returns
    -------
    Tensor
        A scalar with a gradient (paper, Sec. 4.2).

    Raises
    ------
    TypeError, ValueError
        If `module` is no module, or contains no `MixHopConv`.
    """
    return torch.stack([torch.linalg.vector_norm(conv.weight, dim=0).sum() for conv in _layers(module)]).sum()


@torch.no_grad()
def shrink_columns_(module: nn.Module, amount: float) -> None:
    """Take the proximal step of ``amount * group_lasso`` in place: w <- w max(0, 1 - amount / ||w||) per column.

    Parameters
    ----------
    module : torch.nn.Module
        A `MixHopConv`, or anything that contains one.
    amount : float
        Learning rate times coefficient, >= 0.

    Raises
    ------
    TypeError, ValueError
        If `module` contains no `MixHopConv`, or `amount` is no number >= 0.

    Notes
    -----
    The released code adds the penalty to the loss instead, and so never reaches zero.
    """
    amount = check_real("amount", amount, minimum=0.0)
    for conv in _layers(module):
        norms = torch.linalg.vector_norm(conv.weight, dim=0)
        conv.weight.mul_(torch.where(norms > amount, 1 - amount / norms.clamp(min=1e-30), 0.0))


def prune_columns(model: MixHop, budget: int | Sequence[int] | None = None, threshold: float | None = None) -> MixHop:
    """Return a smaller copy of the model without its weakest columns.

    With each column go the row of every W_p in the next layer, its normalisation and its bias. When no more than zero
    columns are removed, the predictions stay as they are. Of a weighted output whole blocks of n_classes columns are
    removed; the weights that the others gain by it are taken out of their W_p.

    Parameters
    ----------
    model : MixHop
        A (trained) model; it is not changed.
    budget : int or sequence of int, optional
        Columns to keep at most: in all mixing layers together, or in each of them, the output's included.
    threshold : float, optional
        Remove columns whose norm is at most this; the norm of a block is the root mean square of its columns'.
        Default without a budget: 0.

    Returns
    -------
    MixHop
        Its `architecture` is what was learned. Every layer keeps at least its strongest column (or block).

    Raises
    ------
    TypeError, ValueError
        For both arguments at once, or a budget that not even the strongest columns meet.
    """
    if not isinstance(model, MixHop):
        raise TypeError(f"model must be a MixHop, got {type(model).__name__}")
    if budget is not None and threshold is not None:
        raise ValueError(f"threshold must be None with a budget, got {threshold}")
    layers = [_Candidates.of(model, index) for index in range(len(model.layers))]
    if budget is None:
        limit = check_real("threshold", 0.0 if threshold is None else threshold, minimum=0.0)
        kept = [layer.norms > limit for layer in layers]
    else:
        kept = _within_budget(layers, budget)
    for layer, keep in zip(layers, kept, strict=True):
        keep[layer.norms.argmax()] = True
    columns = [keep.repeat_interleave(layer.size) for layer, keep in zip(layers, kept, strict=True)]
    return _operated(model, columns)


@dataclass(frozen=True)
class _Candidates:
    """What can be removed from a layer: columns, or blocks of columns, with their norms."""

    norms: torch.Tensor
    size: int

    @classmethod
    def of(cls, model: MixHop, index: int) -> _Candidates:
        """Return the candidates of the mixing layer of this number."""
        conv = model.layers[index]
        last = index == len(model.layers) - 1
        size = model.n_classes if last and isinstance(model.output, WeightedBlockOutput) else 1
        squares = conv.weight.detach().square().sum(dim=0)
        if last and conv.bias is not None:  # with a bias, what has no weights is not zero
            squares = squares + conv.bias.detach().square()
        return cls(squares.unflatten(0, (-1, size)).mean(dim=1).sqrt(), size)


def _within_budget(layers: list[_Candidates], budget: int | Sequence[int]) -> list[torch.Tensor]:
    """Keep the strongest of all layers together, or of each layer, and never more columns than allowed."""
    if isinstance(budget, Sequence) and not isinstance(budget, str):
        if len(budget) != len(layers):
            raise ValueError(f"budget must have an entry per mixing layer, {len(layers)}, got {len(budget)}")
        return [_within_budget([layer], part)[0] for layer, part in zip(layers, budget, strict=True)]
    least = sum(layer.size for layer in layers)
    left = check_integer("budget", budget, minimum=least) - least
    kept = [torch.zeros_like(layer.norms, dtype=torch.bool) for layer in layers]
    for layer, keep in zip(layers, kept, strict=True):
        keep[layer.norms.argmax()] = True
    ranked = sorted(
        ((norm, i, j) for i, layer in enumerate(layers) for j, norm in enumerate(layer.norms.tolist())),
        key=lambda entry: -entry[0],
    )
    for norm, i, j in ranked:
        if norm > 0 and not kept[i][j] and layers[i].size <= left:
            kept[i][j] = True
            left -= layers[i].size
    return kept


@torch.no_grad()
def _operated(model: MixHop, columns: list[torch.Tensor]) -> MixHop:
    """Return a copy of the model with the chosen columns, a mask per layer, of its mixing layers."""
    pruned = copy.deepcopy(model)
    inputs = columns[0].new_ones(pruned.layers[0].in_channels)
    for conv, keep in zip(pruned.layers, columns, strict=True):
        _cut(conv, inputs, keep)
        inputs = keep
    for norm, keep in zip(pruned.norms, columns[:-1], strict=True):
        _cut_norm(norm, keep)
    _cut_output(pruned, columns[-1])
    return pruned


def _cut(conv: MixHopConv, rows: torch.Tensor, columns: torch.Tensor) -> None:
    """Keep the chosen inputs `rows` (in_channels,) and outputs `columns` (out_channels,) of a layer."""
    blocks = columns.split(list(conv.widths.values()))
    widths = {power: int(block.sum()) for power, block in zip(conv.widths, blocks, strict=True)}
    conv.widths = {power: width for power, width in widths.items() if width}
    conv.weight = _parameter(conv.weight[rows][:, columns], conv.weight)
    conv.in_channels, conv.out_channels = conv.weight.shape
    if conv.bias is not None:
        conv.bias = _parameter(conv.bias[columns], conv.bias)


def _cut_norm(norm: nn.Module, columns: torch.Tensor) -> None:
    """Keep the chosen columns (width,) of a normalisation."""
    if isinstance(norm, (BatchShift, nn.BatchNorm1d)):
        for name, parameter in list(norm.named_parameters()):
            setattr(norm, name, _parameter(parameter[columns], parameter))
    if isinstance(norm, nn.BatchNorm1d):
        norm.num_features = int(columns.sum())
        for name, statistics in list(norm.named_buffers()):
            if statistics.ndim:
                setattr(norm, name, statistics[columns])


def _cut_output(model: MixHop, columns: torch.Tensor) -> None:
    """Keep the chosen columns (width,) of the output layer's input."""
    output, last = model.output, model.layers[-1]
    output.in_channels = last.out_channels
    if isinstance(output, WeightedBlockOutput):
        blocks = columns[:: model.n_classes]
        share = output.q.softmax(0)[blocks].sum()
        last.weight.mul_(share)  # the softmax over fewer blocks divides by it
        if last.bias is not None:
            last.bias.mul_(share)
        output.q = _parameter(output.q[blocks], output.q)
    else:
        output.in_features = last.out_channels
        output.weight = _parameter(output.weight[:, columns], output.weight)


def _parameter(values: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone(), requires_grad=like.requires_grad)


def _layers(module: nn.Module) -> list[MixHopConv]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    layers = [part for part in module.modules() if isinstance(part, MixHopConv)]
    if not layers:
        raise ValueError(f"module must contain a MixHopConv, got {type(module).__name__}")
    return layers
