"""Networks that are sensible when the user gives none, and copies that start anew."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear, relu

SMALLEST_IMAGE = 28  # pixels that the strides of the convolutions need


class Standardize(nn.Module):
    """Subtract a mean and divide by a scale, both fixed, learned from data; constant features become 0.

    Parameters
    ----------
    X : ndarray of shape (n, ...)
        Data to learn from.
    channels : bool
        One mean and scale per channel of images (n, channels, height, width), not one per entry.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, X: np.ndarray, channels: bool = False):
        super().__init__()
        axes = (0, 2, 3) if channels else (0,)
        mean = X.mean(axis=axes, dtype=np.float64, keepdims=True)[0]
        scale = X.std(axis=axes, dtype=np.float64, keepdims=True)[0]
        scale[scale < 1e-6 * np.maximum(abs(mean), 1e-6)] = 1.0
        self.register_buffer("mean", torch.from_numpy(mean).to(torch.float32))
        self.register_buffer("scale", torch.from_numpy(scale).to(torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the standardised batch, in the shape of x (b, ...)."""
        return (x - self.mean) / self.scale


def default_network(X: np.ndarray, n_classes: int) -> nn.Module:
    """Return the paper's small convolutional network for images, a perceptron for everything else.

    Images have the shape (n, height, width) or (n, channels, height, width) with at least 28 pixels a side; the
    perceptron has two hidden layers of 256 units. Both standardise their input.
    """
    if X.ndim in (3, 4) and min(X.shape[-2:]) >= SMALLEST_IMAGE:
        images = X if X.ndim == 4 else X[:, None]
        add_channel = [] if X.ndim == 4 else [nn.Unflatten(1, (1, X.shape[1]))]
        return nn.Sequential(
            *add_channel, Standardize(images, channels=True), *_convolutions(images.shape[1], n_classes)
        )
    return Perceptron(X, n_classes)


class Perceptron(nn.Module):
    """Two hidden layers of 256 units on standardised features.

    In evaluation it computes in float64, so that what it says of a row does not depend on the rows beside it: in
    float32 the order of summation, which changes with the number of rows, shows in the seventh digit.
    """

    def __init__(self, X: np.ndarray, n_classes: int, n_hidden: int = 256):
        super().__init__()
        self.standardize = Standardize(X.reshape(len(X), -1))
        self.first = nn.Linear(self.standardize.mean.numel(), n_hidden)
        self.second = nn.Linear(n_hidden, n_hidden)
        self.output = nn.Linear(n_hidden, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_classes)."""
        x = self.standardize(x.flatten(1))
        if not self.training and x.device.type != "mps":  # which has no float64
            x = x.double()
        for layer in (self.first, self.second):
            x = relu(linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype)))
        return linear(x, self.output.weight.to(x.dtype), self.output.bias.to(x.dtype))


def _convolutions(n_channels: int, n_classes: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width, kernel, stride, padding in ((32, 4, 2, 1), (32, 4, 2, 1), (64, 3, 2, 0), (256, 3, 1, 0)):
        convolution = nn.Conv2d(n_channels, width, kernel, stride, padding)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        n_channels = width
    pool = nn.AdaptiveAvgPool2d(1)  # of a single pixel for images of 28 to 35 pixels
    return [*layers, pool, nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, n_classes)]


def fresh_copy(network: nn.Module) -> nn.Module:
    """Return a copy of `network` in which every layer that can has drawn its parameters anew (torch's generator)."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return network
