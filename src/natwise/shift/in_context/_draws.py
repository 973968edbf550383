"""Random draws of whole batches of tasks, on the device of a generator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn.functional import one_hot

from natwise.core.validation import check_integer


def generator_of(n_tasks: int, rng: Any, device: torch.device) -> torch.Generator:
    """Return a torch generator on the device, seeded by one draw of `rng`, after a look at what a sampler is given."""
    check_integer("n_tasks", n_tasks, minimum=1)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    return torch.Generator(device=device).manual_seed(int(rng.integers(2**63)))


def _uniform(sizes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return an integer in [0, size) for each of `sizes` (any shape); in float64, whose rounding is of no concern."""
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
    first, rank = _places(counts)
    group, group_query = _shuffled(first, generator), _shuffled(_places(counts_query)[0], generator)
    member, ordered = _distinct(sizes, group, generator)
    if query_sizes is None:
        member_query = _outside(ordered - rank, sizes, counts, group_query, generator)
    else:
        member_query = _uniform(query_sizes[group_query], generator)
    return group, member, group_query, member_query


def _places(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return group and number within the group, (n_tasks, n) each, of `counts` (n_tasks, n_groups) in a row."""
    ends = counts.cumsum(dim=1)
    place = torch.arange(int(ends[0, -1]), device=counts.device).expand(len(counts), -1)
    group = (place[:, None] >= ends[:, :-1, None]).sum(dim=1)
    return group, place - (ends - counts).gather(1, group)


def _distinct(
    sizes: torch.Tensor, group: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a member of its group for each place (n_tasks, n), none twice in a task, and the same in order.

    All are drawn at once, and those that an earlier place has are drawn again until there are none. No step prefers a
    member, so that all assignments of distinct members are equally likely. In the second array members are lifted by
    their group times the largest size, and ascend.
    """
    lift, size = int(sizes.max()) * group, sizes.gather(1, group)
    member = lift + _uniform(size, generator)
    ordered = torch.empty_like(member)
    tasks = torch.arange(len(group), device=group.device)
    while len(tasks):
        ordered[tasks], place = member[tasks].sort(dim=1, stable=True)
        repeated = ordered[tasks, 1:] == ordered[tasks, :-1]
        row, column = repeated.nonzero(as_tuple=True)
        again = tasks[row], place[row, column + 1]
        member[again] = lift[again] + _uniform(size[again], generator)
        tasks = tasks[repeated.any(dim=1)]
    return member - lift, ordered


def _outside(
    gaps: torch.Tensor,
    sizes: torch.Tensor,
    counts: torch.Tensor,
    group_query: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return for each query a random member of its group that is not among the examples.

    The r-th number that is missing from a sorted list s is r + #{j : s_j - j <= r}. `gaps` are these differences of
    all groups of a task in a row (n_tasks, n), lifted as in `_distinct`.
    """
    draw = _uniform((sizes - counts).gather(1, group_query), generator)
    found = torch.searchsorted(gaps, draw + int(sizes.max()) * group_query, right=True)
    before = counts.cumsum(dim=1) - counts
    return draw + found - before.gather(1, group_query)


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
    """Return how many of n examples a group of this share has for certain."""
    return math.floor(n * share + 1e-9)  # 100 x 0.29 is 28.999...


def _shuffled(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return an array (n_tasks, n) with each task in a random order."""
    return values.gather(1, torch.rand(values.shape, generator=generator, device=values.device).argsort(dim=1))


def differ(y: torch.Tensor, minority: float, generator: torch.Generator) -> torch.Tensor:
    """Return labels y (any shape), each exchanged with probability `minority`."""
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
    """Return -1 and 1 for labels 0 and 1 (...,), with an axis for the features."""
    return (2.0 * binary - 1.0)[..., None]
