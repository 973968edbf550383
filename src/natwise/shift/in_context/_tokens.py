"""From labelled examples and queries to the sequence of tokens that the transformer reads."""

from __future__ import annotations

import torch

from natwise.core.validation import check_option

CONSTRUCTIONS = ("annotated", "compact")
N_MARKERS = 3  # leading coordinates of a token that say what it is


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
    """
    check_option("construction", construction, CONSTRUCTIONS)
    if construction == "annotated":
        context = _annotated(X, y, attribute, class_tokens, group_tokens)
    else:
        context = _compact(X, y, attribute)
    queries = mark_queries(X_query)
    n, m = X.shape[1], X_query.shape[1]
    per_example = context.shape[1] // n
    positions = torch.arange(m, device=X.device) + per_example * examples_seen(n, m, X.device)
    is_context = torch.ones(context.shape[1] + m, dtype=torch.bool, device=X.device)
    is_context[positions] = False
    tokens = X.new_empty(len(X), len(is_context), X.shape[2])
    tokens[:, positions], tokens[:, is_context] = queries, context
    return tokens, positions


def examples_seen(n_context: int, n_queries: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return how many examples come before each query, int (n_queries,)."""
    first = 1 + max(n_context - n_queries, 0)
    return torch.arange(first, first + n_queries, device=device).clamp(max=n_context)


def mark_queries(X_query: torch.Tensor) -> torch.Tensor:
    """Return queries with their marker; the same in both constructions."""
    return _mark(X_query, (0.0, 0.0, 1.0))


def _annotated(
    X: torch.Tensor,
    y: torch.Tensor,
    attribute: torch.Tensor | None,
    class_tokens: torch.Tensor | None,
    group_tokens: torch.Tensor | None,
) -> torch.Tensor:
    if class_tokens is None:
        raise ValueError("class_tokens must be given for the annotated construction, got None")
    annotation = class_tokens[y]
    if attribute is not None:
        if group_tokens is None:
            raise ValueError("group_tokens must be given when attribute is, got None")
        annotation = annotation + group_tokens[attribute]
    pairs = torch.stack([_mark(X, (1.0, 0.0, 0.0)), _mark(annotation, (0.0, 1.0, 0.0))], dim=2)
    return pairs.flatten(1, 2)


def _compact(X: torch.Tensor, y: torch.Tensor, attribute: torch.Tensor | None) -> torch.Tensor:
    tokens = _mark(X, (0.0, 0.0, -1.0))
    tokens[..., 0] = 2 * y - 1
    if attribute is not None:
        tokens[..., 1] = 2 * attribute - 1
    return tokens


def _mark(x: torch.Tensor, marker: tuple[float, ...]) -> torch.Tensor:
    marked = x.clone()
    marked[..., :N_MARKERS] = x.new_tensor(marker)
    return marked
