"""From labelled examples and queries to the sequence of tokens that the transformer reads."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch.nn.functional import embedding

from natwise.core.validation import check_option

Marker: TypeAlias = "torch.Tensor | tuple[float, ...]"
CONSTRUCTIONS = ("annotated", "compact")
N_MARKERS = 3  # leading coordinates of a token that say what it is
_EXAMPLE, _ANNOTATION, _QUERY = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def in_context_tokens(
    X: torch.Tensor,
    y: torch.Tensor,
    X_query: torch.Tensor,
    attribute: torch.Tensor | None = None,
    *,
    class_tokens: torch.Tensor | None = None,
    group_tokens: torch.Tensor | None = None,
    construction: str = "annotated",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sequences of tokens of a batch of tasks, and which tokens are queries.

    With as many queries as examples, query i comes after example i. Fewer come after the last examples; more than
    that come after the last one. The first three coordinates of every token are overwritten, as in the original
    code: append three of no meaning in front to lose nothing.

    Parameters
    ----------
    X : float tensor of shape (n_tasks, n_context, n_features)
        Examples of the context.
    y : int tensor of shape (n_tasks, n_context)
        Their labels, 0 or 1.
    X_query : float tensor of shape (n_tasks, n_queries, n_features)
        Queries.
    attribute : int tensor of shape (n_tasks, n_context), optional
        Spurious labels of the examples, 0 or 1. Not told to the model when absent.
    class_tokens, group_tokens : float tensor of shape (2, n_features)
        For the annotated construction: what is written behind an example for its label, and for its attribute.
    construction : {"annotated", "compact"}
        Two tokens per example, x with marker (1, 0, 0) and ``class_tokens[y] + group_tokens[attribute]`` with marker
        (0, 1, 0), queries with (0, 0, 1); or one token per example, with marker (2 y - 1, 2 attribute - 1, -1),
        queries with (0, 0, 1).

    Returns
    -------
    tokens : tensor of shape (n_tasks, n_tokens, n_features)
    query_positions : int tensor of shape (n_queries,)

    Raises
    ------
    TypeError, ValueError
        For what is no such tensor, shapes that do not fit, labels other than 0 and 1.
    """
    check_option("construction", construction, CONSTRUCTIONS)
    _check_inputs(X, y, X_query, attribute)
    examples: list[tuple[torch.Tensor, Marker]]
    if construction == "annotated":
        examples = [(X, _EXAMPLE), (_annotations(X, y, attribute, class_tokens, group_tokens), _ANNOTATION)]
    else:
        examples = [(X, _label_markers(y, attribute))]
    n, m = X.shape[1], X_query.shape[1]
    positions = torch.arange(m, device=X.device) + len(examples) * examples_seen(n, m, X.device)
    is_context = torch.ones(len(examples) * n + m, dtype=torch.bool, device=X.device)
    is_context[positions] = False
    places = is_context.nonzero()[:, 0]
    tokens = X.new_empty(len(X), len(is_context), X.shape[2])
    for i, (values, marker) in enumerate(examples):
        _write(tokens, places[i :: len(examples)], values, marker)
    _write(tokens, positions, X_query, _QUERY)
    return tokens, positions


def examples_seen(n_context: int, n_queries: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return how many examples come before each query, int (n_queries,)."""
    first = 1 + max(n_context - n_queries, 0)
    return torch.arange(first, first + n_queries, device=device).clamp(max=n_context)


def mark_queries(X_query: torch.Tensor) -> torch.Tensor:
    """Return queries (..., n_features) with their marker; the same in both constructions."""
    marked = X_query.clone()
    marked[..., :N_MARKERS] = X_query.new_tensor(_QUERY)
    return marked


def _check_inputs(X: Any, y: Any, X_query: Any, attribute: Any) -> None:
    _check_features("X", X, ("n_tasks", "n_context", "n_features"))
    _check_features("X_query", X_query, (len(X), "n_queries", X.shape[2]), X.dtype)
    for name, labels in (("y", y), ("attribute", attribute)):
        if labels is None and name == "attribute":
            continue
        if not isinstance(labels, torch.Tensor) or labels.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} must be an integer tensor, got {_kind(labels)}")
        if labels.shape != X.shape[:2]:
            raise ValueError(f"{name} must have shape {tuple(X.shape[:2])}, got {tuple(labels.shape)}")
        if ((labels != 0) & (labels != 1)).any():
            raise ValueError(f"{name} must hold 0 and 1 alone, got {int(labels[(labels != 0) & (labels != 1)][0])}")


def _check_features(name: str, value: Any, shape: tuple[int | str, ...], dtype: torch.dtype | None = None) -> None:
    """Raise when `value` is no float tensor of the shape, where text stands for any size, and of the dtype of X."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a float tensor, got {_kind(value)}")
    if dtype is not None and value.dtype != dtype:
        raise TypeError(f"{name} must have the dtype of X, {dtype}, got {value.dtype}")
    if value.ndim != len(shape) or any(n != m for n, m in zip(shape, value.shape, strict=True) if isinstance(n, int)):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(value.shape)}")


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def _write(tokens: torch.Tensor, places: torch.Tensor, values: torch.Tensor, marker: Marker) -> None:
    """Write values (n_tasks, n, n_features) and their markers, one for all or (n_tasks, n, 3), to n places."""
    tokens[:, places] = values
    tokens[:, places, :N_MARKERS] = torch.as_tensor(marker, dtype=tokens.dtype, device=tokens.device)


def _annotations(
    X: torch.Tensor,
    y: torch.Tensor,
    attribute: torch.Tensor | None,
    class_tokens: torch.Tensor | None,
    group_tokens: torch.Tensor | None,
) -> torch.Tensor:
    """Return what stands behind each example, (n_tasks, n_context, n_features)."""
    if class_tokens is None:
        raise ValueError("class_tokens must be given for the annotated construction, got None")
    _check_features("class_tokens", class_tokens, (2, X.shape[2]), X.dtype)
    if attribute is None:
        return embedding(y, class_tokens)
    if group_tokens is None:
        raise ValueError("group_tokens must be given when attribute is, got None")
    _check_features("group_tokens", group_tokens, (2, X.shape[2]), X.dtype)
    return embedding(2 * y + attribute, (class_tokens[:, None] + group_tokens).flatten(0, 1))


def _label_markers(y: torch.Tensor, attribute: torch.Tensor | None) -> torch.Tensor:
    """Return the markers (n_tasks, n_context, 3) of the compact construction."""
    told = torch.zeros_like(y) if attribute is None else 2 * attribute - 1
    return torch.stack([2 * y - 1, told, torch.full_like(y, -1)], dim=-1)
