"""What a task is: a context with labels, and queries; and what is asked of the arrays that hold a batch of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from natwise.core.validation import check_array, check_real, shorten

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


def check_tasks(sampler: Any, n_tasks: int, rng: np.random.Generator, needed: tuple[str, ...]) -> Mapping[str, Any]:
    """Return a batch of a sampler, after checking keys, shapes and values of the first batch it gives."""
    if not callable(sampler):
        raise TypeError(f"sampler must be callable, got {type(sampler).__name__}")
    tasks = sampler(n_tasks, rng)
    if not isinstance(tasks, Mapping):
        raise TypeError(f"sampler must return a dict of arrays, got {type(tasks).__name__}")
    if missing := [name for name in needed if name not in tasks]:
        raise ValueError(f"sampler must return {', '.join(needed)}; it lacks {', '.join(missing)}")
    X = check_features("X of sampler", tasks["X"], (n_tasks, "n_context", "n_features"))
    X_query = check_features("X_query of sampler", tasks["X_query"], (n_tasks, "n_queries", X.shape[2]))
    for names, features in ((CONTEXT, X), (QUERY, X_query)):
        for name in names[1:]:
            if name in tasks:
                check_labels(f"{name} of sampler", tasks[name], features.shape[:2])
    return tasks


def as_tensors(tasks: Mapping[str, Any], device: torch.device | str | None = None) -> Tasks:
    """Return features as float32 and labels as int64 tensors on the device."""
    return {
        name: torch.as_tensor(value, device=device).to(torch.float32 if name.startswith("X") else torch.int64)
        for name, value in tasks.items()
        if name in CONTEXT + QUERY
    }


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
    """
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
    if missing := [name for name in (*CONTEXT[1:], *QUERY[1:]) if name not in tasks]:
        raise ValueError(f"tasks must hold y, attribute, y_query, attribute_query; got none for {shorten(missing)}")
    y_query = check_labels("y_query of tasks", tasks["y_query"], ("n_tasks", "n_queries"))
    if values.shape != y_query.shape:
        raise ValueError(f"scores must have the shape of y_query, {y_query.shape}, got {values.shape}")
    query_group = 2 * y_query + check_labels("attribute_query of tasks", tasks["attribute_query"], y_query.shape)
    y = check_labels("y of tasks", tasks["y"], (len(y_query), "n_context"))
    group = 2 * y + check_labels("attribute of tasks", tasks["attribute"], y.shape)
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
