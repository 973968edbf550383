"""Samplers of tasks: whole batches drawn at once, from data that stay on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding

from natwise.core.validation import check_array, check_device, check_integer, check_real, check_same_length
from natwise.shift.in_context._draws import (
    allot,
    differ,
    draw_examples,
    generator_of,
    guaranteed,
    orthonormal_pair,
    signed,
    two_of,
)
from natwise.shift.in_context._tasks import Sampler, Tasks, check_features, check_labels, draw_tasks, take_rows

Device = str | torch.device


class SyntheticSampler:
    """Gaussian tasks with one true and one spurious direction, drawn anew for every task.

    ``x = label_strength (2 y - 1) u + attribute_strength (2 attribute - 1) v + noise e`` with u, v a uniformly random
    orthonormal pair, signs included: without the context nobody knows which side is class 1.

    Parameters
    ----------
    n_features : int
        At least 2.
    n_context, n_queries : int
        Examples and queries of a task; as many queries as examples by default.
    label_strength, attribute_strength, noise : float
        Scales of the three parts.
    minority, minority_query : float
        Probability that the attribute differs from the label, in contexts and in queries.
    device : str or torch.device
        Where tasks are drawn and stay.

    Examples
    --------
    >>> tasks = SyntheticSampler(n_context=4)(3, np.random.default_rng(0))
    >>> {name: tuple(value.shape) for name, value in tasks.items()}["X"]
    (3, 4, 8)
    """

    def __init__(
        self,
        n_features: int = 8,
        *,
        n_context: int = 16,
        n_queries: int | None = None,
        label_strength: float = 1.5,
        attribute_strength: float = 2.0,
        noise: float = 0.5,
        minority: float = 0.1,
        minority_query: float = 0.5,
        device: Device = "cpu",
    ):
        self.n_features = check_integer("n_features", n_features, minimum=2)
        self.sizes = _check_sizes(n_context, n_queries)
        scales = {"label_strength": label_strength, "attribute_strength": attribute_strength, "noise": noise}
        self.scales = [check_real(name, value, minimum=0.0) for name, value in scales.items()]
        self.minorities = _check_minorities(minority, minority_query)
        self.device = check_device("device", device)

    def __call__(self, n_tasks: int, rng: np.random.Generator) -> Tasks:
        """Return `n_tasks` tasks."""
        generator = generator_of(n_tasks, rng, self.device)
        u, v = orthonormal_pair(n_tasks, self.n_features, generator)
        label_strength, attribute_strength, noise = self.scales
        tasks = {}
        for end, n, minority in zip(("", "_query"), self.sizes, self.minorities, strict=True):
            y = torch.randint(2, (n_tasks, n), generator=generator, device=self.device)
            attribute = differ(y, minority, generator)
            e = torch.randn(n_tasks, n, self.n_features, generator=generator, device=self.device)
            tasks[f"X{end}"] = label_strength * signed(y) * u + attribute_strength * signed(attribute) * v + noise * e
            tasks[f"y{end}"], tasks[f"attribute{end}"] = y, attribute
        return tasks


class SingleTaskSampler:
    """Contexts and queries of one data set with labels and attributes, in given shares of its four groups.

    Group 2 y + attribute. Of n examples ``floor(n share)`` come from each group, the rest of the groups is drawn from
    the shares. The context is drawn without replacement; queries with replacement, from `query_data`, or from the same
    data without the task's context.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Embeddings.
    y, attribute : array-like of shape (n_samples,)
        Labels and spurious labels, 0 or 1.
    n_context, n_queries : int
        Examples and queries of a task; as many queries as examples by default.
    context_shares, query_shares : sequence of 4 float
        Shares of the groups; they sum to 1.
    query_data : tuple (X, y, attribute), optional
        Where queries come from.
    device : str or torch.device
        Where the data are kept and tasks are drawn.

    Raises
    ------
    TypeError, ValueError
        For wrong data; when a group may be asked for more examples than it has.
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        attribute: Any,
        *,
        n_context: int = 100,
        n_queries: int | None = None,
        context_shares: Sequence[float] = (0.45, 0.05, 0.05, 0.45),
        query_shares: Sequence[float] = (0.25, 0.25, 0.25, 0.25),
        query_data: tuple[Any, Any, Any] | None = None,
        device: Device = "cpu",
    ):
        self.device = check_device("device", device)
        self.sizes = _check_sizes(n_context, n_queries)
        self.shares = [
            _check_shares(name, shares, self.device)
            for name, shares in {"context_shares": context_shares, "query_shares": query_shares}.items()
        ]
        self.X, members, self.counts = _groups(("X", "y", "attribute"), (X, y, attribute), self.device)
        self.members = [members, members]
        self.X_query, self.query_counts, self.own_queries = self.X, self.counts, query_data is not None
        if query_data is not None:
            if not isinstance(query_data, tuple) or len(query_data) != 3:
                raise TypeError("query_data must be a tuple (X, y, attribute)")
            names = ("query_data X", "query_data y", "query_data attribute")
            self.X_query, self.members[1], self.query_counts = _groups(names, query_data, self.device)
            if self.X_query.shape[1] != self.X.shape[1]:
                raise ValueError(f"query_data must have {self.X.shape[1]} features, got {self.X_query.shape[1]}")
        self._check_groups()

    def __call__(self, n_tasks: int, rng: np.random.Generator) -> Tasks:
        """Return `n_tasks` tasks."""
        generator = generator_of(n_tasks, rng, self.device)
        counts, counts_query = (
            allot(n_tasks, n, shares, generator) for n, shares in zip(self.sizes, self.shares, strict=True)
        )
        group, member, group_query, member_query = draw_examples(
            self.counts.expand(n_tasks, 4),
            counts,
            counts_query,
            self.query_counts if self.own_queries else None,
            generator,
        )
        rows, rows_query = self.members[0][group, member], self.members[1][group_query, member_query]
        return {
            "X": embedding(rows, self.X),
            "y": group >> 1,  # group 2 y + attribute
            "attribute": group & 1,
            "X_query": embedding(rows_query, self.X_query),
            "y_query": group_query >> 1,
            "attribute_query": group_query & 1,
        }

    def _check_groups(self) -> None:
        n = self.sizes[0]
        for g, share in enumerate(self.shares[0].tolist()):
            most = guaranteed(n, share) + (n - sum(guaranteed(n, s) for s in self.shares[0].tolist())) * (share > 0)
            needed = most + (not self.own_queries and self.shares[1][g] > 0)
            if self.counts[g] < needed:
                raise ValueError(f"X must have at least {needed} samples of group {g}, got {int(self.counts[g])}")
            if self.own_queries and self.shares[1][g] > 0 and self.query_counts[g] == 0:
                raise ValueError(f"query_data must have a sample of group {g}, got none")


class CategoryPairSampler:
    """Tasks of telling two categories apart: a random pair of many, with labels 0 and 1 in random order.

    Half of the examples are of either category, without replacement; queries likewise, with replacement, from the
    images that are not in the context. The attribute is drawn; it does not act on X: see `SpuriousVectorSampler`
    and `SwapSampler`.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Embeddings.
    category : array-like of shape (n_samples,)
        Category of each sample; any integers.
    n_context, n_queries : int
        Even numbers; as many queries as examples by default.
    minority, minority_query : float
        Probability that the attribute differs from the label, in contexts and in queries.
    device : str or torch.device
        Where the data are kept and tasks are drawn.

    Raises
    ------
    TypeError, ValueError
        For wrong data; for fewer than two categories, or one with fewer than ``n_context / 2 + 1`` samples.
    """

    def __init__(
        self,
        X: Any,
        category: Any,
        *,
        n_context: int = 100,
        n_queries: int | None = None,
        minority: float = 0.1,
        minority_query: float = 0.5,
        device: Device = "cpu",
    ):
        self.device = check_device("device", device)
        self.sizes = _check_sizes(n_context, n_queries)
        for name, size in zip(("n_context", "n_queries"), self.sizes, strict=True):
            if size % 2:
                raise ValueError(f"{name} must be even, got {size}")
        self.minorities = _check_minorities(minority, minority_query)
        features = check_features("X", X, ("n_samples", "n_features"))
        categories = check_array("category", category, shape=("n_samples",), dtype=np.int64)
        check_same_length(X=features, category=categories)
        names, numbers = np.unique(categories, return_inverse=True)
        if len(names) < 2:
            raise ValueError(f"category must hold at least two categories, got {len(names)}")
        self.X = torch.from_numpy(features).to(self.device)
        self.members, self.counts = _members(numbers, len(names), self.device)
        if self.counts.min() <= self.sizes[0] // 2:
            rare = names[int(self.counts.argmin())]
            needed = self.sizes[0] // 2 + 1
            raise ValueError(
                f"category must have at least {needed} samples of each, got {int(self.counts.min())} of {rare}"
            )

    def __call__(self, n_tasks: int, rng: np.random.Generator) -> Tasks:
        """Return `n_tasks` tasks."""
        generator = generator_of(n_tasks, rng, self.device)
        pair = two_of(len(self.counts), n_tasks, generator)
        half, half_query = (torch.full_like(pair, n // 2) for n in self.sizes)
        y, member, y_query, member_query = draw_examples(self.counts[pair], half, half_query, None, generator)
        rows, rows_query = self.members[pair.gather(1, y), member], self.members[pair.gather(1, y_query), member_query]
        minority, minority_query = self.minorities
        return {
            "X": embedding(rows, self.X),
            "y": y,
            "attribute": differ(y, minority, generator),
            "X_query": embedding(rows_query, self.X),
            "y_query": y_query,
            "attribute_query": differ(y_query, minority_query, generator),
        }


class SpuriousVectorSampler:
    """Another sampler's tasks with ``(2 attribute - 1) v`` added to context and queries.

    Parameters
    ----------
    sampler : callable
        Gives the tasks.
    norm : float, optional
        Length of v, a random Gaussian direction drawn anew for every task. Default: the mean norm of the context's
        examples in the batch.
    vector : array-like of shape (n_features,), optional
        The same v in all tasks.
    """

    def __init__(self, sampler: Sampler, *, norm: float | None = None, vector: Any = None):
        if norm is not None and vector is not None:
            raise ValueError("norm must be None when vector is given")
        self.sampler = _check_sampler(sampler)
        self.norm = None if norm is None else check_real("norm", norm, minimum=0.0)
        self.vector = None if vector is None else check_features("vector", vector, ("n_features",))

    def __call__(self, n_tasks: int, rng: np.random.Generator) -> Tasks:
        """Return `n_tasks` tasks."""
        tasks = draw_tasks(self.sampler, n_tasks, rng)
        X = tasks["X"]
        if self.vector is not None:
            check_same_length(vector=self.vector, features=X[0, 0])
            v = torch.from_numpy(self.vector).to(X.device)
        else:
            v = torch.randn(n_tasks, 1, X.shape[2], generator=generator_of(n_tasks, rng, X.device), device=X.device)
            norm = X.norm(dim=-1).mean() if self.norm is None else self.norm
            v = v * (norm / v.norm(dim=-1, keepdim=True))
        for end in ("", "_query"):
            tasks[f"X{end}"] = tasks[f"X{end}"] + signed(tasks[f"attribute{end}"]) * v
        return tasks


class SwapSampler:
    """Another sampler's tasks in which some coordinates become the spurious feature.

    The attribute equals the label at first. Then, in each task, some examples of class 0 exchange a random set of
    coordinates, and with them the attribute, with as many of class 1: what these coordinates say of the class is
    wrong for the minority.

    Parameters
    ----------
    sampler : callable
        Gives the tasks; with at least as many examples of either class as are exchanged.
    n_coordinates : tuple of 2 int
        Least and largest number of coordinates that are exchanged; drawn anew for every task.
    minority, minority_query : float
        Share of either class that is exchanged: ``floor(minority n / 2)`` examples of either.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        n_coordinates: tuple[int, int] = (50, 99),
        minority: float = 0.1,
        minority_query: float = 0.5,
    ):
        self.sampler = _check_sampler(sampler)
        if not isinstance(n_coordinates, tuple) or len(n_coordinates) != 2:
            raise TypeError("n_coordinates must be a tuple of the least and the largest number")
        low = check_integer("n_coordinates", n_coordinates[0], minimum=1)
        self.n_coordinates = (low, check_integer("n_coordinates", n_coordinates[1], minimum=low))
        self.minorities = _check_minorities(minority, minority_query)

    def __call__(self, n_tasks: int, rng: np.random.Generator) -> Tasks:
        """Return `n_tasks` tasks."""
        tasks = draw_tasks(self.sampler, n_tasks, rng)
        device, width = tasks["X"].device, tasks["X"].shape[2]
        low, high = self.n_coordinates
        if high > width:
            raise ValueError(f"n_coordinates must be at most the number of features, {width}, got {high}")
        generator = generator_of(n_tasks, rng, device)
        k = torch.randint(low, high + 1, (n_tasks, 1, 1), generator=generator, device=device)
        ranks = torch.rand(n_tasks, 1, width, generator=generator, device=device).argsort(-1).argsort(-1)
        for end, minority in zip(("", "_query"), self.minorities, strict=True):
            m = int(minority * tasks[f"y{end}"].shape[1] / 2 + 1e-9)
            X, y = tasks[f"X{end}"], tasks[f"y{end}"]
            tasks[f"X{end}"], tasks[f"attribute{end}"] = _exchange(X, y, m, ranks < k, generator)
        return tasks


def _exchange(
    X: torch.Tensor, y: torch.Tensor, m: int, coordinates: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exchange coordinates of m random examples of class 0 with m of class 1; return X and the attributes.

    X (n_tasks, n, n_features), y (n_tasks, n); `coordinates` (n_tasks, 1, n_features) says which are exchanged.
    """
    if min(int((y == label).sum(dim=1).min()) for label in (0, 1)) < m:
        raise ValueError(f"sampler must give at least {m} examples of either class in every task")
    keys = torch.rand(y.shape, generator=generator, device=y.device)
    first, second = (keys.masked_fill(y != label, -1).topk(m, dim=1).indices for label in (0, 1))
    ours, theirs = torch.cat([first, second], dim=1), torch.cat([second, first], dim=1)
    X, attribute = X.clone(), y.clone()
    tasks = torch.arange(len(X), device=X.device)[:, None]
    X[tasks, ours] = torch.where(coordinates, take_rows(X, theirs), take_rows(X, ours))
    attribute[tasks, ours] = 1 - attribute[tasks, ours]
    return X, attribute


def _check_sampler(sampler: Any) -> Sampler:
    if not callable(sampler):
        raise TypeError(f"sampler must be callable, got {type(sampler).__name__}")
    return sampler


def _check_sizes(n_context: Any, n_queries: Any) -> tuple[int, int]:
    n = check_integer("n_context", n_context, minimum=2)
    return n, n if n_queries is None else check_integer("n_queries", n_queries, minimum=1)


def _check_minorities(minority: Any, minority_query: Any) -> tuple[float, float]:
    return (
        check_real("minority", minority, minimum=0.0, maximum=1.0),
        check_real("minority_query", minority_query, minimum=0.0, maximum=1.0),
    )


def _check_shares(name: str, shares: Any, device: torch.device) -> torch.Tensor:
    values = check_array(name, shares, shape=(4,), dtype=np.float64)
    if (values < 0).any() or abs(values.sum() - 1) > 1e-3:
        raise ValueError(f"{name} must be non-negative and sum to 1, got {values.tolist()}")
    return torch.from_numpy(values / values.sum()).to(device)


def _groups(
    names: Sequence[str], data: tuple[Any, Any, Any], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return X on the device, the rows of each group, padded (4, n), and their numbers (4,)."""
    X = check_features(names[0], data[0], ("n_samples", "n_features"))
    y, attribute = (check_labels(name, value, (len(X),)) for name, value in zip(names[1:], data[1:], strict=True))
    return torch.from_numpy(X).to(device), *_members(2 * y + attribute, 4, device)


def _members(group: np.ndarray, n_groups: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of each group, padded with 0 to the largest, (n_groups, n), and their numbers (n_groups,)."""
    counts = np.bincount(group, minlength=n_groups)
    table = np.zeros((n_groups, counts.max()), dtype=np.int64)
    table[np.arange(counts.max()) < counts[:, None]] = np.argsort(group, kind="stable")
    return torch.from_numpy(table).to(device), torch.from_numpy(counts).to(device)
