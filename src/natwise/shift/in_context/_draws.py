"""Random draws of whole batches of tasks, on the device of a generator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn.functional import one_hot


def generator_of(rng: Any, device: torch.device) -> torch.Generator:
    """Return a torch generator on the device that is seeded by one draw from the NumPy generator."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    return torch.Generator(device=device).manual_seed(int(rng.integers(2**63)))


def _uniform(sizes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return an integer in [0, size) for each entry of `sizes`; in float64, whose rounding is of no concern."""
    draws = torch.rand(sizes.shape, generator=generator, device=sizes.device, dtype=torch.float64)
    return (draws * sizes).long()


def draw_examples(
    sizes: torch.Tensor,
    counts: torch.Tensor,
    counts_query: torch.Tensor,
    query_sizes: torch.Tensor | None,
    generator: torch.Generator,
) -> tuple[torch.Tensor, ...]:
    """Draw examples and queries of tasks from groups.

    Parameters
    ----------
    sizes, counts, counts_query : int tensor of shape (n_tasks, n_groups)
        Members of each group, and how many of them to draw: examples without replacement, queries with.
    query_sizes : int tensor of shape (n_groups,), optional
        Members of each group where queries come from other data. Default: what the examples leave.

    Returns
    -------
    group, member, group_query, member_query : int tensors of shape (n_tasks, n)
        In random order.
    """
    group, rank = _places(counts)
    task = torch.arange(len(group), device=group.device)[:, None]
    member = _distinct(sizes, counts, generator)[rank, task, group]
    group_query, _ = _places(counts_query)
    if query_sizes is None:
        member_query = _outside(member, group, rank, sizes, counts, group_query, generator)
    else:
        member_query = _uniform(query_sizes[group_query], generator)
    return *_shuffle(group, member, generator=generator), *_shuffle(group_query, member_query, generator=generator)


def _places(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return group and number within the group, (n_tasks, n) each, of `counts` (n_tasks, n_groups) in a row."""
    ends = counts.cumsum(dim=1)
    place = torch.arange(int(ends[0, -1]), device=counts.device).repeat(len(counts), 1)
    group = torch.searchsorted(ends, place, right=True)
    return group, place - (ends - counts).gather(1, group)


def _distinct(sizes: torch.Tensor, counts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random set of `counts` distinct integers in [0, size) for each entry, in the first places of axis 0.

    Floyd's algorithm on all entries at once: as many steps as the largest count, however large the sizes.
    """
    k = int(counts.max())
    last = (sizes - counts + torch.arange(k, device=sizes.device)[:, None, None]).clamp(min=0)
    chosen = _uniform(last + 1, generator)
    for i in range(1, k):
        taken = (chosen[:i] == chosen[i]).any(dim=0)
        chosen[i] = torch.where(taken, last[i], chosen[i])
    return chosen


def _outside(
    member: torch.Tensor,
    group: torch.Tensor,
    rank: torch.Tensor,
    sizes: torch.Tensor,
    counts: torch.Tensor,
    group_query: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return for each query a random member of its group that is not among the examples.

    The r-th number that is missing from a sorted list s is r + #{j : s_j - j <= r}. All lists are searched as one, each
    lifted above the one before.
    """
    lift = int(sizes.max()) * torch.arange(sizes.numel(), device=sizes.device).view(sizes.shape)
    gaps = (member + lift.gather(1, group)).sort(dim=1).values - rank
    draw = _uniform((sizes - counts).gather(1, group_query), generator)
    found = torch.searchsorted(gaps.flatten(), draw + lift.gather(1, group_query), right=True)
    first = counts.flatten().cumsum(0).view(counts.shape) - counts
    return draw + found - first.gather(1, group_query)


def two_of(n: int, n_tasks: int, generator: torch.Generator) -> torch.Tensor:
    """Return two different integers in [0, n) for each task, in random order, (n_tasks, 2)."""
    first, step = (torch.randint(low, n, (n_tasks,), generator=generator, device=generator.device) for low in (0, 1))
    return torch.stack([first, (first + step) % n], dim=1)


def allot(n_tasks: int, n: int, shares: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return counts (n_tasks, 4): ``floor(n share)`` of each group, the rest of n drawn from the shares."""
    counts = torch.tensor([guaranteed(n, share) for share in shares.tolist()], device=shares.device).repeat(n_tasks, 1)
    rest = n - int(counts[0].sum())
    if rest:
        drawn = torch.multinomial(shares, n_tasks * rest, replacement=True, generator=generator)
        counts += one_hot(drawn.view(n_tasks, rest), 4).sum(dim=1)
    return counts


def guaranteed(n: int, share: float) -> int:
    return math.floor(n * share + 1e-9)  # 100 x 0.29 is 28.999...


def _shuffle(*values: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Return arrays (n_tasks, n) with the places of each task in one random order."""
    keys = torch.rand(values[0].shape, generator=generator, device=values[0].device)
    order = keys.argsort(dim=1)
    return tuple(value.gather(1, order) for value in values)


def differ(y: torch.Tensor, minority: float, generator: torch.Generator) -> torch.Tensor:
    """Return y, each entry exchanged with probability `minority`."""
    exchanged = torch.rand(y.shape, generator=generator, device=y.device) < minority
    return torch.where(exchanged, 1 - y, y)


def orthonormal_pair(n_tasks: int, width: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two random orthonormal directions per task, each (n_tasks, 1, width).

    Normalised Gaussians, made orthogonal: uniform, signs included. The signs of a QR decomposition are not random.
    """
    u, v = torch.randn(2, n_tasks, 1, width, generator=generator, device=generator.device)
    u = u / u.norm(dim=-1, keepdim=True)
    v = v - (v * u).sum(dim=-1, keepdim=True) * u
    return u, v / v.norm(dim=-1, keepdim=True)


def signed(binary: torch.Tensor) -> torch.Tensor:
    return (2.0 * binary - 1.0)[..., None]
