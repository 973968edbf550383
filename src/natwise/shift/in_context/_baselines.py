"""What the learner is compared with: classifiers that are fitted to each context by itself, all tasks at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from natwise.core.validation import check_array, check_device, check_integer, check_option, check_real, shorten
from natwise.shift.in_context._tasks import check_features, check_labels

METHODS = ("erm", "reweight", "groupdro", "nearest")


def context_baseline(
    X: Any,
    y: Any,
    X_query: Any,
    attribute: Any = None,
    *,
    method: str = "erm",
    max_epochs: int = 100,
    learning_rate: float = 0.01,
    weight_decay: float = 0.0,
    step_size: float = 0.1,
    n_neighbors: int = 1,
    initial: tuple[Any, Any] | None = None,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Return the probability of class 1 of every query, from a classifier fitted to its context alone.

    Parameters
    ----------
    X : array-like of shape (n_tasks, n_context, n_features)
        Examples of the context.
    y : array-like of shape (n_tasks, n_context)
        Their labels, 0 or 1.
    X_query : array-like of shape (n_tasks, n_queries, n_features)
        Queries.
    attribute : array-like of shape (n_tasks, n_context), optional
        Spurious labels, 0 or 1, needed to reweight and for GroupDRO. Group 2 y + attribute.
    method : {"erm", "reweight", "groupdro", "nearest"}
        Linear logistic regression by full-batch AdamW on the mean loss; on the mean with weights 1 / size of the
        group; on the group losses weighted by ``q_g exp(step_size loss_g)``, updated before every step; or the share
        of class 1 among the nearest examples (Euclidean).
    max_epochs, learning_rate, weight_decay : int, float, float
        Steps of AdamW and its options.
    step_size : float
        GroupDRO's.
    n_neighbors : int
        Odd, or ties count as half.
    initial : tuple of array-like (n_features,) and float, optional
        Weights and bias to start from, in all tasks. Default: zeros (the original code draws them).
    device : str or torch.device
        Where to fit.

    Returns
    -------
    ndarray of shape (n_tasks, n_queries), float64

    Raises
    ------
    TypeError, ValueError
        For wrong data or options; when `attribute` is needed and missing; when the fit diverges.

    Notes
    -----
    The original's reweighted ERM multiplies losses (n, 1) with weights (n,), which gives the plain mean again.
    Its groups that are absent from the context but not beyond the last present one keep their share of q at loss 0.
    """
    check_option("method", method, METHODS)
    check_integer("max_epochs", max_epochs, minimum=0)
    for name, value in {"learning_rate": learning_rate, "weight_decay": weight_decay, "step_size": step_size}.items():
        check_real(name, value, minimum=0.0)
    x, target, q, group = (part.to(check_device("device", device)) for part in _data(X, y, X_query, attribute, method))
    if method == "nearest":
        check_integer("n_neighbors", n_neighbors, minimum=1, maximum=x.shape[1])
        return _nearest(x, target, q, n_neighbors)
    objective = _Objective(method, group, step_size)
    start = _start(initial, x)
    optimizer = torch.optim.AdamW(start, lr=learning_rate, weight_decay=weight_decay)
    weight, bias = _fit(x, target, start, objective, optimizer, max_epochs)
    logits = torch.einsum("tnd,td->tn", q, weight) + bias
    return logits.double().sigmoid().cpu().numpy()


class _Objective:
    """The sum over tasks of what each minimises; the tasks' weights do not meet, so each is fitted by itself.

    `group` (n_tasks, n_context) holds 0 to 3; it is called with the losses of the examples, of the same shape.
    """

    def __init__(self, method: str, group: torch.Tensor, step_size: float):
        self.method, self.step_size = method, step_size
        self.members = one_hot(group, 4).float()  # (n_tasks, n_context, 4)
        self.sizes = self.members.sum(dim=1)
        exists = torch.arange(4, device=group.device) <= group.amax(dim=1, keepdim=True)
        self.q = exists / exists.sum(dim=1, keepdim=True)

    def __call__(self, losses: torch.Tensor) -> torch.Tensor:
        if self.method == "erm":
            return losses.mean(dim=1).sum()
        by_group = torch.einsum("tn,tng->tg", losses, self.members) / self.sizes.clamp(min=1)
        if self.method == "reweight":
            return (by_group.sum(dim=1) / (self.sizes > 0).sum(dim=1)).sum()
        raised = self.q * (self.step_size * by_group.detach()).exp()
        self.q = raised / raised.sum(dim=1, keepdim=True)
        return (self.q * by_group).sum()


def _data(X: Any, y: Any, X_query: Any, attribute: Any, method: str) -> tuple[torch.Tensor, ...]:
    """Return context, labels, queries and groups as checked tensors."""
    context = check_features("X", X, ("n_tasks", "n_context", "n_features"))
    n_tasks, n_context, n_features = context.shape
    queries = check_features("X_query", X_query, (n_tasks, "n_queries", n_features))
    labels = check_labels("y", y, (n_tasks, n_context))
    if method in ("reweight", "groupdro") and attribute is None:
        raise ValueError(f"attribute must be given for method {method!r}, got None")
    group = 2 * labels + (0 if attribute is None else check_labels("attribute", attribute, labels.shape))
    return tuple(torch.from_numpy(part) for part in (context, labels, queries, group))


def _fit(
    x: torch.Tensor,
    y: torch.Tensor,
    start: tuple[torch.Tensor, torch.Tensor],
    objective: _Objective,
    optimizer: torch.optim.Optimizer,
    max_epochs: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (n_tasks, n_features) and biases (n_tasks, 1) after full-batch steps from `start`."""
    weight, bias = start
    with torch.enable_grad():
        for _ in range(max_epochs):
            optimizer.zero_grad()
            logits = torch.einsum("tnd,td->tn", x, weight) + bias
            objective(binary_cross_entropy_with_logits(logits, y.to(x.dtype), reduction="none")).backward()
            optimizer.step()
    if not weight.isfinite().all():
        options = {name: optimizer.param_groups[0][name] for name in ("lr", "weight_decay")}
        raise ValueError(f"learning_rate, weight_decay or step_size is too large, the fit diverged with {options}")
    return weight.detach(), bias.detach()


def _nearest(x: torch.Tensor, y: torch.Tensor, queries: torch.Tensor, k: int) -> np.ndarray:
    """Return the share of class 1 (n_tasks, n_queries) among the k examples nearest to each query."""
    nearest = torch.cdist(queries, x).topk(k, dim=-1, largest=False).indices  # (n_tasks, n_queries, k)
    votes = y[torch.arange(len(y), device=y.device)[:, None, None], nearest]
    return votes.double().mean(dim=-1).cpu().numpy()


def _start(initial: tuple[Any, Any] | None, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same weights (n_tasks, n_features) and bias (n_tasks, 1) for all tasks."""
    n_tasks, _, n_features = x.shape
    weight, bias = np.zeros(n_features, dtype=np.float32), np.zeros(1, dtype=np.float32)
    if initial is not None:
        if not isinstance(initial, tuple) or len(initial) != 2:
            raise TypeError(f"initial must be a tuple (weights, bias), got {shorten(initial)}")
        weight = check_array("initial weights", np.ravel(initial[0]), shape=(n_features,), dtype=np.float32)
        bias = check_array("initial bias", np.ravel(initial[1]), shape=(1,), dtype=np.float32)
    start = [torch.from_numpy(part).to(x.device).repeat(n_tasks, 1).requires_grad_() for part in (weight, bias)]
    return start[0], start[1]
