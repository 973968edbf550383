"""Networks that several studies train."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import relu

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_integer


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, and a shortcut that is a 1 x 1 convolution where shapes change.

    Shapes: (n, n_in, h, w) -> (n, n_out, h / stride, w / stride).
    """

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out))
        self.second = nn.Sequential(nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out))
        changes = stride > 1 or n_in != n_out
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output (n, n_out, h / stride, w / stride) for an input (n, n_in, h, w)."""
        return relu(self.second(relu(self.first(x))) + self.shortcut(x))


def small_resnet(
    n_channels: int, n_classes: int, *, width: int = 16, blocks: int = 3, random_state: RandomState = None
) -> nn.Sequential:
    """Return the residual network for small images, of 6 `blocks` + 2 layers (He et al. 2016, Section 4.2).

    Parameters
    ----------
    n_channels, n_classes : int
    width : int
        Channels of the first of three stages; each later stage has twice as many at half the resolution.
    blocks : int
        Residual blocks per stage.
    random_state : int, Generator, RandomState or None
        Draws the weights.

    Returns
    -------
    Sequential
        (n, n_channels, h, w) -> logits (n, n_classes).
    """
    check_integer("width", width, minimum=1)
    check_integer("blocks", blocks, minimum=1)
    with Streams.of(random_state).torch_global("resnet"):
        layers: list[nn.Module] = [nn.Conv2d(n_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        n_in = width
        for stage in range(3):
            for block in range(blocks):
                n_out = width * 2**stage
                layers.append(ResidualBlock(n_in, n_out, 2 if stage and not block else 1))
                n_in = n_out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))
