"""Graphs to learn from: the Planetoid citation graphs, and synthetic ones of chosen homophily."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from natwise.core.io import load_npz
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_integer, check_real
from natwise.datasets import local

KEYS = ("indptr", "indices", "data", "shape", "edges", "labels", "train_idx", "val_idx", "test_idx")
RADIUS, VARIANCES = 300.0, np.array([70.0, 20.0]) * 350.0


@dataclass(frozen=True)
class GraphData:
    """A graph with features, labels and a split.

    Attributes
    ----------
    X : ndarray or scipy.sparse.csr_array of shape (n_nodes, n_features)
        Features.
    y : ndarray of shape (n_nodes,)
        Classes from 0 on, int64; -1 where unknown.
    edge_index : ndarray of shape (2, n_edges)
        Edges in both directions, int64.
    train_idx, val_idx, test_idx : ndarray
        Nodes of the split, int64.
    """

    X: Any
    y: np.ndarray
    edge_index: np.ndarray
    train_idx: np.ndarray
    val_idx: np.ndarray
    test_idx: np.ndarray


def load_planetoid(name: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> GraphData:
    """Read a citation graph with its published split from an NPZ file; nothing is unpickled.

    Parameters
    ----------
    name : str or path
        A path that ends in ``.npz``, or the name of a file ``graphs/<name>.npz`` in the data folder, such as
        ``"cora"``.
    data_dir : path, optional
        The data folder. Default: ``$NATWISE_DATA``.

    Returns
    -------
    GraphData
        `X` is sparse CSR in float32.

    Raises
    ------
    DataNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, has no features or does not fit together; the message names it.

    Notes
    -----
    The published files ``ind.NAME.*`` are pickles; `convert_planetoid` reads them as data.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be the name of a graph or a path, got {name!r}")
    path = Path(name) if str(name).endswith(".npz") else local.find(f"graphs/{name}.npz", data_dir)
    arrays = load_npz(path)
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise ValueError(f"{path} must hold {', '.join(KEYS)}; it lacks {', '.join(missing)}")
    try:
        return _graph_data(arrays)
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{path} does not hold a graph: {error}") from error


def homophily_graph(
    homophily: float,
    n_nodes: int = 5000,
    n_classes: int = 10,
    *,
    edges_per_node: int = 6,
    random_state: RandomState = None,
) -> GraphData:
    """Draw a graph by preferential attachment in which a share `homophily` of the edges joins nodes of one class.

    Nodes arrive one by one and attach to earlier nodes with probability proportional to degree times compatibility:
    `homophily` for the own class, (1 - homophily) divided among the others, less to a class farther away on a circle.
    The two features are Gaussian: class k has its centre at (300 sin a, 300 cos a), a = 2 pi k / n_classes, and the
    covariance diag(24500, 7000) turned with it, so that neighbouring classes overlap.

    Parameters
    ----------
    homophily : float
        Expected share of edges within a class, in [0, 1].
    n_nodes, n_classes : int
        Size; each class starts with `edges_per_node` nodes without edges.
    edges_per_node : int
        Edges that every later node brings.
    random_state : int, Generator, RandomState, Streams or None
        Seed.

    Returns
    -------
    GraphData
        Features (n_nodes, 2) in float64; training, validation and test nodes are thirds of the numbering, which is
        random.

    Raises
    ------
    TypeError, ValueError
        If `homophily` is not in [0, 1], or a size is no integer or too small.

    Notes
    -----
    The paper's Sec. 5 with our own compatibility between classes; the paper's exact weights are not known to us.
    """
    homophily = check_real("homophily", homophily, minimum=0.0, maximum=1.0)
    n_classes = check_integer("n_classes", n_classes, minimum=2)
    edges_per_node = check_integer("edges_per_node", edges_per_node, minimum=1)
    n_nodes = check_integer("n_nodes", n_nodes, minimum=n_classes * edges_per_node + 1)
    streams = Streams.of(random_state)
    arrival = streams.numpy("classes").integers(n_classes, size=n_nodes)
    arrival[: n_classes * edges_per_node] = np.tile(np.arange(n_classes), edges_per_node)
    edges = _attach(arrival, _compatibility(homophily, n_classes), edges_per_node, streams.numpy("edges"))
    number = streams.numpy("numbering").permutation(n_nodes)
    y = np.empty(n_nodes, dtype=np.int64)
    y[number] = arrival
    train, validation, test = np.array_split(np.arange(n_nodes), 3)
    X = _class_features(y, n_classes, streams.numpy("features"))
    return GraphData(X, y, _both_directions(number[edges]), train, validation, test)


def _compatibility(homophily: float, n_classes: int) -> np.ndarray:
    """Return how a node of each class (row) divides its edges among the classes."""
    gap = np.abs(np.subtract.outer(np.arange(n_classes), np.arange(n_classes)))
    distance = np.minimum(gap, n_classes - gap)
    weights = np.where(distance > 0, 1.0 / np.maximum(distance, 1), 0.0)
    weights *= (1 - homophily) / weights.sum(axis=1, keepdims=True)
    return weights + homophily * np.eye(n_classes)


def _attach(classes: np.ndarray, compatibility: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """Return edges (2, n_edges) of nodes of `classes` (n_nodes,), m for each after the first m of every class.

    A node stands in the list of its class once, and once more for every edge: a uniform draw from the list is a
    draw by degree.
    """
    n_classes = len(compatibility)
    lists: list[list[int]] = [np.flatnonzero(classes[: n_classes * m] == k).tolist() for k in range(n_classes)]
    edges = np.empty((2, (len(classes) - n_classes * m) * m), dtype=np.int64)
    for i, node in enumerate(range(n_classes * m, len(classes))):
        weights = compatibility[classes[node]] * [len(entries) for entries in lists]
        wanted = rng.choice(n_classes, size=m, p=weights / weights.sum())
        targets: set[int] = set()
        for k in wanted.tolist():
            while (target := lists[k][int(rng.random() * len(lists[k]))]) in targets:
                pass
            targets.add(target)
            lists[k].append(target)
        edges[:, i * m : (i + 1) * m] = [[node] * m, list(targets)]
        lists[classes[node]].extend([node] * (m + 1))
    return edges


def _class_features(y: np.ndarray, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return features (n_nodes, 2) of classes y (n_nodes,)."""
    angle = 2 * math.pi * y / n_classes
    sine, cosine = np.sin(angle), np.cos(angle)
    noise = rng.standard_normal((len(y), 2)) * np.sqrt(VARIANCES)
    turned = np.stack([cosine * noise[:, 0] + sine * noise[:, 1], cosine * noise[:, 1] - sine * noise[:, 0]], axis=1)
    return RADIUS * np.stack([sine, cosine], axis=1) + turned


def _graph_data(arrays: dict[str, np.ndarray]) -> GraphData:
    """Return the graph of the arrays under `KEYS`."""
    n, n_features = (int(size) for size in arrays["shape"])
    indices = arrays["indices"]
    values = np.broadcast_to(np.asarray(arrays["data"], dtype=np.float32), indices.shape).copy()
    X = sparse.csr_array((values, indices, arrays["indptr"]), shape=(n, n_features))
    X.check_format()
    edges, y = arrays["edges"].astype(np.int64), arrays["labels"].astype(np.int64)
    split = {name: arrays[name].astype(np.int64) for name in ("train_idx", "val_idx", "test_idx")}
    if y.shape != (n,) or edges.ndim != 2 or edges.shape[1] != 2:
        raise ValueError(f"{n} nodes need labels ({n},) and edges (n_edges, 2), got {y.shape} and {edges.shape}")
    for key, nodes in {"edges": edges, **split}.items():
        if nodes.size and not 0 <= nodes.min() <= nodes.max() < n:
            raise ValueError(f"{key} must be nodes in [0, {n})")
    return GraphData(X, y, _both_directions(edges.T), **split)


def _both_directions(edges: np.ndarray) -> np.ndarray:
    """Return edges (2, n_edges) and their opposites."""
    return np.concatenate([edges, edges[::-1]], axis=1)
