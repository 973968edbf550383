"""What a task is: a context with labels, and queries; and what is asked of the arrays that hold a batch of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from natwise.core.validation import check_array, check_flag, check_real

Sampler: TypeAlias = Callable[[int, np.random.Generator], Mapping[str, Any]]
Tasks: TypeAlias = "dict[str, torch.Tensor]"
CONTEXT, QUERY = ("X", "y", "attribute"), ("X_query", "y_query", "attribute_query")


def check_labels(name: str, value: Any, shape: tuple[int | str, ...]) -> np.ndarray:
    """Return `value` as int64 array of the shape when it holds nothing but 0 and 1."""
    labels = check_array(name, value, shape=shape, dtype=np.int64)
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{name} must hold 0 and 1 alone, got {labels[(labels != 0) & (labels != 1)][0]}")
    return labels


def check_features(name: str, value: Any, shape: tuple[int | str, ...]) -> np.ndarray:
    """Return `value` as finite float32 array of the shape without an empty axis."""
    features = check_array(name, value, shape=shape)
    if 0 in features.shape:
        raise ValueError(f"{name} must not be empty, got shape {features.shape}")
    with np.errstate(over="ignore"):
        cast = features.astype(np.float32)
    if not np.isfinite(cast).all():
        raise ValueError(f"{name} must fit float32, got {features[~np.isfinite(cast)][0]}")
    return cast


def check_tasks(
    source: str,
    tasks: Any,
    needed: tuple[str, ...],
    n_tasks: int | str = "n_tasks",
    n_features: int | str = "n_features",
) -> dict[str, np.ndarray]:
    """Return the entries of a batch as arrays, after checking keys, shapes and values; `source` is for the message."""
    if not isinstance(tasks, Mapping):
        raise TypeError(f"{source} must be a dict of arrays, got {type(tasks).__name__}")
    if missing := [name for name in needed if name not in tasks]:
        raise ValueError(f"{source} must hold {', '.join(needed)}; it lacks {', '.join(missing)}")
    found = {}
    for names, n in ((CONTEXT, "n_context"), (QUERY, "n_queries")):
        shape: tuple[int | str, ...] = (n_tasks, n)
        for name in names:
            if name in tasks and name.startswith("X"):
                found[name] = check_features(f"{name} of {source}", tasks[name], (*shape, n_features))
                n_features = found[name].shape[2]
            elif name in tasks:
                found[name] = check_labels(f"{name} of {source}", tasks[name], shape)
            shape = found[name].shape[:2] if name in found else shape
            n_tasks = shape[0]
    return found


def draw_tasks(sampler: Sampler, n_tasks: int, rng: np.random.Generator) -> Tasks:
    """Return a batch of a sampler as tensors."""
    return as_tensors(sampler(n_tasks, rng))


def as_tensors(tasks: Mapping[str, Any], device: torch.device | str | None = None) -> Tasks:
    """Return features as float32 and labels as int64 tensors on the device."""
    found = {}
    for name in (*CONTEXT, *QUERY):
        if name in tasks:
            value, is_features = tasks[name], name.startswith("X")
            if not isinstance(value, torch.Tensor):
                value = torch.from_numpy(np.array(value, dtype=np.float32 if is_features else np.int64))
            found[name] = value.to(device, torch.float32 if is_features else torch.int64)
    return found


def take_rows(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return rows `index` (n_tasks, k) of each task in x (n_tasks, n, n_features)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def flip_labels(tasks: Mapping[str, Any], *, attribute: bool = True) -> Tasks:
    """Return the tasks with both labels of context and queries exchanged, 0 for 1, and on request both attributes.

    Whoever reads the context keeps the accuracy; whoever recalls the task from training gets one minus it.

    Parameters
    ----------
    tasks : mapping
        As a sampler gives them.
    attribute : bool
        Exchange the attributes too, so that they agree with the labels as often as before.

    Returns
    -------
    dict of str to tensor
        The same entries: features in float32, labels and attributes in int64.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not fit, features that are not finite, labels other than 0 and 1.
    """
    check_flag("attribute", attribute)
    check_tasks("tasks", tasks, ())
    flipped = as_tensors(tasks)
    for name in ("y", "y_query") + (("attribute", "attribute_query") if attribute else ()):
        if name in flipped:
            flipped[name] = 1 - flipped[name]
    return flipped


def in_context_metrics(scores: Any, tasks: Mapping[str, Any]) -> dict[str, float]:
    """Return how well queries are classified, over all and in groups.

    Parameters
    ----------
    scores : array-like of shape (n_tasks, n_queries)
        Probability of class 1; above 0.5 counts as class 1.
    tasks : mapping
        As a sampler gives them, with the attributes. Group 2 y + attribute.

    Returns
    -------
    dict of str to float
        ``accuracy``; ``worst_group_accuracy`` over the groups that have a query; ``group_accuracy_0`` ... ``_3``
        of these groups; ``minority_accuracy`` and ``majority_accuracy``, of the queries in a group that is the
        rarest (an absent group is rare, ties all count) or the commonest in its own context, with the numbers of
        such queries ``minority_total`` and ``majority_total``. Shares without a query are left out.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not fit, labels other than 0 and 1, scores outside [0, 1].
    """
    values = check_array("scores", scores, shape=("n_tasks", "n_queries"))
    for value in (values.min(initial=0), values.max(initial=1)):
        check_real("scores", value, minimum=0, maximum=1)
    labels = check_tasks("tasks", tasks, (*CONTEXT[1:], *QUERY[1:]))
    y_query = labels["y_query"]
    if values.shape != y_query.shape:
        raise ValueError(f"scores must have the shape of y_query, {y_query.shape}, got {values.shape}")
    query_group = 2 * y_query + labels["attribute_query"]
    group = 2 * labels["y"] + labels["attribute"]
    counts = np.stack([(group == g).sum(axis=1) for g in range(4)], axis=1)
    correct = (values > 0.5) == y_query
    found = {"accuracy": float(correct.mean())}
    by_group = {f"group_accuracy_{g}": correct[query_group == g].mean() for g in range(4) if (query_group == g).any()}
    found |= {"worst_group_accuracy": float(min(by_group.values())), **{k: float(v) for k, v in by_group.items()}}
    for name, extreme in {"minority": counts.min(axis=1), "majority": counts.max(axis=1)}.items():
        chosen = np.take_along_axis(counts == extreme[:, None], query_group, axis=1)
        found[f"{name}_total"] = float(chosen.sum())
        if chosen.any():
            found[f"{name}_accuracy"] = float(correct[chosen].mean())
    return found
