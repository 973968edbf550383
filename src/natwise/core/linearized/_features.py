"""Per-sample gradients of one parameter tensor, kept in the form in which their inner products are cheapest.

b is the number of samples in the block, k the number of outputs. All inner products are returned as (b, k, b2, k2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PRODUCTS = 2**23  # inner products of positions held at a time


class GradientFeature(Protocol):
    """What the kernel needs to know about the gradients of one parameter tensor."""

    def gram(self, other: GradientFeature) -> Tensor:
        """Return all inner products with the gradients of another block of samples: (b, k, b2, k2)."""

    def dense(self) -> Tensor:
        """Return the gradients, flattened as the parameter is: (b, k, n_parameters)."""

    def merge_outputs(self) -> GradientFeature:
        """Return features with one output whose inner products are the mean over the outputs."""

    def cheaper(self) -> GradientFeature:
        """Return the form in which inner products take the least work."""

    def select(self, index: Tensor) -> Dense:
        """Return only the chosen coordinates of the flattened gradients."""

    def n_parameters(self) -> int:
        """Return the size of the parameter tensor."""

    def stored(self) -> tuple[Tensor, ...]:
        """Return the tensors that are kept."""


class Dense:
    """Gradients as they are: (b, k, p)."""

    def __init__(self, gradients: Tensor):
        self.gradients = gradients

    def gram(self, other: GradientFeature) -> Tensor:
        """Return all inner products."""
        (b, k, _), theirs = self.gradients.shape, other.dense()
        product = self.gradients.flatten(0, 1) @ theirs.flatten(0, 1).T
        return product.reshape(b, k, *theirs.shape[:2])

    def dense(self) -> Tensor:
        """Return the gradients."""
        return self.gradients

    def merge_outputs(self) -> Dense:
        """Return the outputs side by side as one long gradient."""
        return Dense(self.gradients.flatten(1)[:, None] / self.gradients.shape[1] ** 0.5)

    def cheaper(self) -> Dense:
        """Return itself."""
        return self

    def select(self, index: Tensor) -> Dense:
        """Return only the chosen coordinates."""
        return Dense(self.gradients[..., index])

    def n_parameters(self) -> int:
        """Return the size of the parameter tensor."""
        return self.gradients.shape[-1]

    def stored(self) -> tuple[Tensor, ...]:
        """Return the tensors that are kept."""
        return (self.gradients,)


class Outer:
    """Gradients ``sum_t cotangent_t activation_t^T`` of a linear map applied at t positions, in g groups of channels.

    Parameters
    ----------
    activations : Tensor (b, g, t, d)
        Inputs of the map.
    cotangents : Tensor (b, k, g, t, e)
        Gradients of the k outputs with respect to what the map returned.
    """

    def __init__(self, activations: Tensor, cotangents: Tensor):
        self.activations = activations
        self.cotangents = cotangents

    def gram(self, other: GradientFeature) -> Tensor:
        """Return all inner products as <a, a'> <b, b'> summed over positions, without forming a gradient."""
        assert isinstance(other, Outer)
        b, k, g, t, _ = self.cotangents.shape
        b2, k2, _, t2, _ = other.cotangents.shape
        total = self.cotangents.new_zeros(b, k, b2, k2)
        step = max(1, _PRODUCTS // (t * b2 * t2))
        for start in range(0, b, step):
            part = slice(start, start + step)
            for group in range(g):
                inputs = self._activation_products(other, part, group)  # (b t, b2 t2)
                for i in range(k):
                    left = self.cotangents[part, i, group].flatten(0, 1)
                    for j in range(k2):
                        product = (left @ other.cotangents[:, j, group].flatten(0, 1).T).mul_(inputs)
                        total[part, i, :, j] += product.reshape(-1, t, b2, t2).sum(dim=(1, 3))
        return total

    def _activation_products(self, other: Outer, part: slice, group: int) -> Tensor:
        return self.activations[part, group].flatten(0, 1) @ other.activations[:, group].flatten(0, 1).T

    def dense(self) -> Tensor:
        """Return the gradients, summed over positions."""
        return torch.einsum("bkgte,bgtd->bkged", self.cotangents, self.activations).flatten(2)

    def merge_outputs(self) -> Outer:
        """Return the outputs side by side as one long cotangent."""
        k = self.cotangents.shape[1]
        merged = self.cotangents.permute(0, 2, 3, 1, 4).flatten(3)[:, None] / k**0.5
        return Outer(self.activations, merged)

    def n_parameters(self) -> int:
        """Return the size of the parameter tensor."""
        _, _, g, _, e = self.cotangents.shape
        return g * e * self._n_inputs()

    def stored(self) -> tuple[Tensor, ...]:
        """Return the tensors that are kept."""
        return self.activations, self.cotangents

    def cheaper(self) -> GradientFeature:
        """Return itself, or the dense gradients when their products take less work per pair of samples."""
        _, k, _, t, e = self.cotangents.shape
        implicit = t**2 * (self._activation_work() + k**2 * e)
        explicit = k**2 * self._n_inputs() * e
        return Dense(self.dense()) if t > 1 and explicit < implicit else self

    def select(self, index: Tensor) -> Dense:
        """Return only the chosen coordinates of the flattened gradients."""
        _, _, g, t, _ = self.cotangents.shape
        d = self._n_inputs()
        if t > 1 or g > 1:
            return Dense(self.dense()[..., index])
        return Dense(self.cotangents[:, :, 0, 0, index // d] * self.activations[:, :, 0, index % d])

    def _n_inputs(self) -> int:
        return self.activations.shape[-1]

    def _activation_work(self) -> int:
        return self.activations.shape[-1]


class Lookup(Outer):
    """Gradients of an embedding: the activations are the looked-up rows, (b, 1, t) integers, instead of vectors."""

    def __init__(self, tokens: Tensor, cotangents: Tensor, n_rows: int):
        super().__init__(tokens, cotangents)
        self.n_rows = n_rows

    def _activation_products(self, other: Outer, part: slice, group: int) -> Tensor:
        same = self.activations[part].flatten()[:, None] == other.activations.flatten()[None, :]
        return same.to(self.cotangents.dtype)

    def dense(self) -> Tensor:
        """Return the gradients: cotangents added to the rows that were looked up."""
        cotangents = self.cotangents[:, :, 0]  # (b, k, t, e)
        b, k, t, e = cotangents.shape
        gradients = cotangents.new_zeros(b, k, self.n_rows, e)
        index = self.activations.reshape(b, 1, t, 1).expand(b, k, t, e)
        return gradients.scatter_add_(2, index, cotangents).flatten(2)

    def merge_outputs(self) -> Lookup:
        """Return the outputs side by side as one long cotangent."""
        return Lookup(self.activations, super().merge_outputs().cotangents, self.n_rows)

    def select(self, index: Tensor) -> Dense:
        """Return only the chosen coordinates of the flattened gradients."""
        return Dense(self.dense()[..., index])

    def _n_inputs(self) -> int:
        return self.n_rows

    def _activation_work(self) -> int:
        return 1


def linear_features(layer: nn.Linear, inputs: Tensor, cotangents: Tensor) -> dict[str, GradientFeature]:
    """Features of a linear layer on (b, ..., d_in); `cotangents` are (b, k, ..., d_out)."""
    positions = cotangents.flatten(2, -2) if cotangents.ndim > 3 else cotangents[:, :, None]
    activations = inputs.reshape(len(inputs), 1, -1, inputs.shape[-1])
    features: dict[str, GradientFeature] = {"weight": Outer(activations, positions[:, :, None])}
    features["bias"] = Dense(positions.sum(dim=2))
    return features


def conv_features(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor, cotangents: Tensor) -> dict[str, GradientFeature]:
    """Features of a convolution: a linear map of the unfolded patches, in groups of channels."""
    b, k, g = len(inputs), cotangents.shape[1], layer.groups
    patches = _patches(layer, inputs)  # (b, c_in * kernel, t)
    activations = patches.reshape(b, g, -1, patches.shape[-1]).transpose(2, 3)
    positions = cotangents.reshape(b, k, g, layer.out_channels // g, -1).transpose(3, 4)
    bias = cotangents.flatten(3).sum(dim=-1)
    return {"weight": Outer(activations, positions), "bias": Dense(bias)}


def norm_features(
    layer: nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor, cotangents: Tensor
) -> dict[str, GradientFeature]:
    """Features of layer, group and batch normalisation: gradients of the scale and the shift."""
    if isinstance(layer, nn.LayerNorm):
        normalised = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        first = inputs.ndim - len(layer.normalized_shape)
        summed = tuple(range(1, first))
    else:
        normalised = _channel_norm(layer, inputs)
        summed = tuple(range(2, inputs.ndim))

    def reduce(values: Tensor) -> Tensor:
        axes = tuple(axis + 1 for axis in summed)
        return (values.sum(dim=axes) if axes else values).flatten(2)

    return {"weight": Dense(reduce(cotangents * normalised[:, None])), "bias": Dense(reduce(cotangents))}


def embedding_features(layer: nn.Embedding, tokens: Tensor, cotangents: Tensor) -> dict[str, GradientFeature]:
    """Features of an embedding; the padding row receives no gradient."""
    b, k, e = len(tokens), cotangents.shape[1], layer.embedding_dim
    positions = cotangents.reshape(b, k, 1, -1, e)
    tokens = tokens.reshape(b, 1, -1)
    if layer.padding_idx is not None:
        positions = positions * (tokens != layer.padding_idx)[:, None, :, :, None]
    return {"weight": Lookup(tokens, positions, layer.num_embeddings)}


def _patches(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Unfold the inputs of a convolution, padded as it pads them, to (b, c_in * kernel, positions)."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, _padding(layer), mode=mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if padded.ndim == 3:
        padded, kernel, dilation, stride = padded[:, :, None], (1, *kernel), (1, *dilation), (1, *stride)
    return F.unfold(padded, kernel, dilation=dilation, stride=stride)


def _padding(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Return the padding before and after each axis, last axis first, as `torch.nn.functional.pad` wants it."""
    sides: list[int] = []
    for axis in reversed(range(len(layer.kernel_size))):
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            amount = 0 if layer.padding == "valid" else int(layer.padding[axis])
            sides += [amount, amount]
    return sides


def _channel_norm(layer: nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return F.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)


BUILDERS: dict[type[nn.Module], Callable[..., dict[str, GradientFeature]]] = {
    nn.Linear: linear_features,
    nn.Conv1d: conv_features,
    nn.Conv2d: conv_features,
    nn.LayerNorm: norm_features,
    nn.GroupNorm: norm_features,
    nn.BatchNorm1d: norm_features,
    nn.BatchNorm2d: norm_features,
    nn.Embedding: embedding_features,
}
