"""What `MixHopClassifier.fit` is given: nodes by number or mask, labels of which some are hidden, tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse

from natwise.core.validation import check_array, for_sklearn
from natwise.graphs.mixhop._graph import from_torch

HIDDEN = -1


def split_nodes(y: np.ndarray, train_idx: Any, val_idx: Any, marked: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return numbers of training and validation nodes; without, all that are neither hidden nor for validation train.

    `y` (n_nodes,) may mark hidden labels when `marked`, and does when nodes are given.
    """
    marked = (marked or train_idx is not None or val_idx is not None) and y.dtype.kind in "iuf"
    hidden = y == HIDDEN if marked else np.zeros(len(y), dtype=bool)
    val = None if val_idx is None else _nodes("val_idx", val_idx, hidden)
    if train_idx is None:
        rest = ~hidden
        rest[[] if val is None else val] = False
        train_idx = rest
    return _nodes("train_idx", train_idx, hidden), val


def _nodes(name: str, value: Any, hidden: np.ndarray) -> np.ndarray:
    """Return node numbers (n,); a mask (n_nodes,) is taken too. `hidden` (n_nodes,) marks nodes without label."""
    value = readable(name, value)
    nodes = check_array(name, value, shape=("n",), dtype=np.int64)
    if np.asarray(value).dtype == bool:
        if nodes.shape != hidden.shape:
            raise ValueError(f"{name} must be a mask of shape {hidden.shape} or node numbers, got shape {nodes.shape}")
        nodes = np.flatnonzero(nodes)
    if not len(nodes):
        raise ValueError(f"{name} must hold at least one node, got none")
    wrong = nodes[(nodes < 0) | (nodes >= len(hidden))]
    if len(wrong):
        raise ValueError(f"{name} must hold nodes in [0, {len(hidden)}), got {wrong[0]}")
    if hidden[nodes].any():
        raise ValueError(f"{name} must hold nodes with a label, got node {nodes[hidden[nodes]][0]} with y = {HIDDEN}")
    return nodes


def encoded(y: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """Return the classes of the training nodes and every node's place among them (n_nodes,), -1 for others."""
    classes = np.unique(y[train])
    if len(classes) < 2:
        raise ValueError(f"y must hold at least 2 classes among the training nodes, got one, {classes.tolist()[0]!r}")
    codes = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    return classes, torch.from_numpy(np.where(classes[codes] == y, codes, HIDDEN))


def readable(name: str, value: Any) -> Any:
    """Return a tensor as NumPy array or scipy matrix, anything else as it is, but for masked entries and times."""
    return for_sklearn(name, from_torch(name, value))


def to_dense(X: Any) -> np.ndarray:
    """Return a sparse matrix as an array, anything else as it is."""
    return X.toarray() if sparse.issparse(X) else X
