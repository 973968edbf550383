"""Frozen simple features of small colour images: whitened random patches, rectified and pooled (Coates et al. 2011)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from natwise.core.random import Streams

_PATCH, _FILTERS, _SAMPLED, _BATCH = 6, 200, 10_000, 50


def patch_features(images: np.ndarray, streams: Streams) -> np.ndarray:
    """Return features (n, 1600) of images (n, height, width, channels) in [0, 255]; no label is used.

    The filters are 200 random patches of the images themselves after whitening. Their responses of both signs are
    thresholded and averaged over the four quadrants of the image.
    """
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    rng = streams.numpy("patches")
    batches = inputs.split(_BATCH)
    mean, whitening, filters = _learn(batches, rng)
    side = images.shape[1] - _PATCH + 1
    blocks = []
    for batch in batches:
        response = ((_patches(batch) - mean) @ whitening) @ filters.T  # (b, positions, filters)
        both = torch.cat([F.relu(response - 0.5), F.relu(-response - 0.5)], dim=2)
        maps = both.transpose(1, 2).reshape(len(batch), -1, side, side)
        blocks.append(F.adaptive_avg_pool2d(maps, 2).flatten(1))
    return torch.cat(blocks).numpy()


def _learn(batches: tuple[Tensor, ...], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and whitening of the patches, and the filters."""
    per_batch = -(-_SAMPLED // len(batches))
    sampled = torch.cat(
        [_patches(batch).flatten(0, 1)[rng.integers(0, len(batch) * 27**2, per_batch)] for batch in batches]
    )
    mean = sampled.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov(sampled.T))
    whitening = axes @ torch.diag((variances + 0.01) ** -0.5) @ axes.T
    chosen = (sampled[rng.choice(len(sampled), _FILTERS, replace=False)] - mean) @ whitening
    return mean, whitening, F.normalize(chosen, dim=1)


def _patches(images: Tensor) -> Tensor:
    """Return all patches, each with mean 0 and about unit variance: (b, positions, values)."""
    patches = F.unfold(images, _PATCH).transpose(1, 2)
    centred = patches - patches.mean(dim=2, keepdim=True)
    return centred / (centred.std(dim=2, keepdim=True) + 0.03)
