"""Questions about graphs: which of two nodes can be reached from the root? In the manner of ProsQA and ProntoQA."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_integer, check_option
from natwise.datasets import local

FILE = "text/prosqa_test500.json"
KINDS = ("within", "at", "walks", "path")
SEPARATOR, QUESTION, FIRST_NODE = 2, 4, 5  # PAD 0, BOS 1, separator 2, arrow 3, question 4, then nodes
BOS, ARROW = 1, 3
MAX_TRIES = 1000


@dataclass(frozen=True, eq=False)
class GraphQuestions:
    """Directed graphs with a root and two nodes, of which one can be reached from the root.

    Attributes
    ----------
    edges : tuple of int64 arrays of shape (n_edges, 2)
        From, to; nodes of a graph are numbered from 0.
    roots, answers, wrong : int64 arrays of shape (n,)
        Where to start, the candidate that can be reached, the one that cannot.
    swapped : bool array of shape (n,)
        Whether the question names the wrong candidate first.
    n_nodes : int
        Nodes of the largest graph.
    """

    edges: tuple[np.ndarray, ...]
    roots: np.ndarray
    answers: np.ndarray
    wrong: np.ndarray
    swapped: np.ndarray
    n_nodes: int

    def __len__(self) -> int:
        return len(self.roots)

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary: five special tokens, then nodes."""
        return FIRST_NODE + self.n_nodes

    @property
    def answer_tokens(self) -> np.ndarray:
        """Token of each answer, shape (n,)."""
        return self.answers + FIRST_NODE

    @property
    def hops(self) -> np.ndarray:
        """Fewest edges from root to answer, shape (n,)."""
        return np.array(
            [_distances(e, self.n_nodes, r)[a] for e, r, a in zip(self.edges, self.roots, self.answers, strict=True)]
        )

    def prompts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return prompts and mask, int64 (n, length): ``BOS a b | c d | … ? x y root ->``, padded on the left."""
        lines = []
        for i, edges in enumerate(self.edges):
            pairs = np.insert(edges + FIRST_NODE, 2, SEPARATOR, axis=1).ravel()
            candidates = [self.answers[i], self.wrong[i]][:: -1 if self.swapped[i] else 1]
            asked = [candidate + FIRST_NODE for candidate in (*candidates, self.roots[i])]
            lines.append([BOS, *pairs, QUESTION, *asked, ARROW])
        length = max(map(len, lines))
        mask = np.array([[0] * (length - len(line)) + [1] * len(line) for line in lines])
        ids = np.zeros_like(mask)
        ids[mask == 1] = np.concatenate(lines)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def token_targets(self, steps: int, *, kind: str = "within") -> torch.Tensor:
        """Return superposed targets over the vocabulary, float32 (n, steps, n_tokens); the last is the answer.

        Parameters
        ----------
        steps : int
            Number of outputs, the answer among them.
        kind : {"within", "at", "walks", "path"}
            Thought t is uniform over the nodes reached within t edges of the root, root excluded; over those at the
            end of a walk of t edges; over these by number of walks; or, for a discrete chain of thought, all on the
            t-th node of a shortest path to the answer. A walk stays where no edge leads on, a path at the answer.
        """
        check_integer("steps", steps, minimum=1)
        check_option("kind", kind, KINDS)
        found = np.zeros((len(self), steps, self.n_tokens), dtype=np.float32)
        for i, edges in enumerate(self.edges):
            if kind == "path":
                path = _shortest_path(edges, self.n_nodes, int(self.roots[i]), int(self.answers[i]))
                found[i, np.arange(steps - 1), FIRST_NODE + path[np.arange(steps - 1).clip(max=len(path) - 1)]] = 1
            else:
                found[i, :-1, FIRST_NODE:] = _thoughts(edges, self.n_nodes, int(self.roots[i]), steps - 1, kind)
            found[i, -1, FIRST_NODE + self.answers[i]] = 1
        return torch.from_numpy(found)


def prosqa_graphs(
    n: int, *, n_nodes: int = 23, n_edges: int = 36, hops: tuple[int, int] = (3, 6), random_state: RandomState = None
) -> GraphQuestions:  # fmt: skip
    """Draw acyclic graphs with two sources, in the manner of ProsQA.

    The root is one source; the answer is a leaf that it reaches, the wrong candidate a leaf that only the other
    reaches. Numbers of nodes say nothing about their place, unlike in the published file, whose order is topological.

    Parameters
    ----------
    n : int
        Number of questions.
    n_nodes, n_edges : int
        Of every graph; at least n_nodes - 2 edges are needed.
    hops : (int, int)
        Least and greatest number of edges from root to answer.
    random_state : int, Generator, RandomState, Streams or None

    Returns
    -------
    GraphQuestions

    Raises
    ------
    TypeError, ValueError
        For numbers out of range, and when hardly any graph of this size has such an answer.

    Source: Hao and others, Training Large Language Models to Reason in a Continuous Latent Space, 2024, whose graphs
    have about 23 nodes and 36 edges.
    """
    n = check_integer("n", n, minimum=1)
    check_integer("n_nodes", n_nodes, minimum=4)
    check_integer("n_edges", n_edges, minimum=n_nodes - 2)
    low, high = _check_hops(hops)
    rng = Streams.of(random_state).numpy("prosqa")
    found: list[tuple[np.ndarray, int, int, int]] = []
    tries = 0
    while len(found) < n:
        tries += 1
        if tries > MAX_TRIES + 100 * len(found):
            raise ValueError(f"hops must occur in graphs of {n_nodes} nodes and {n_edges} edges, got {(low, high)}")
        edges = _grow(rng, n_nodes, n_edges)
        question = _ask(edges, n_nodes, (low, high), rng) if len(edges) == n_edges else None
        if question is not None:
            found.append(question)
    return _gather([_renumber(question, n_nodes, rng) for question in found], n_nodes, rng)


def prontoqa_graphs(
    n: int, *, hops: int = 5, n_distractors: int = 8, random_state: RandomState = None
) -> GraphQuestions:  # fmt: skip
    """Draw two chains with side branches, of which one starts at the root, in the manner of ProntoQA.

    Parameters
    ----------
    n : int
        Number of questions.
    hops : int
        Edges of each chain.
    n_distractors : int
        Leaves that hang on random inner nodes of the chains.
    random_state : int, Generator, RandomState, Streams or None

    Returns
    -------
    GraphQuestions
    """
    n = check_integer("n", n, minimum=1)
    hops = check_integer("hops", hops, minimum=1)
    n_distractors = check_integer("n_distractors", n_distractors, minimum=0)
    rng = Streams.of(random_state).numpy("prontoqa")
    chains = np.arange(2 * (hops + 1)).reshape(2, hops + 1)
    links = np.concatenate([np.stack([chain[:-1], chain[1:]], axis=1) for chain in chains])
    n_nodes = chains.size + n_distractors
    found = []
    for _ in range(n):
        hosts = rng.choice(chains[:, :-1].ravel(), size=n_distractors)
        sides = np.stack([hosts, np.arange(chains.size, n_nodes)], axis=1)
        question = (np.concatenate([links, sides]), int(chains[0, 0]), int(chains[0, -1]), int(chains[1, -1]))
        found.append(_renumber(question, n_nodes, rng))
    return _gather(found, n_nodes, rng)


def load_prosqa(data_dir: str | os.PathLike[str] | None = None) -> GraphQuestions:
    """Read the 500 test questions of ProsQA (3 to 6 hops, 14 to 28 nodes).

    Parameters
    ----------
    data_dir : path, optional
        Folder of local data that holds ``text/prosqa_test500.json``. Default: ``$NATWISE_DATA``.

    Raises
    ------
    DataNotFoundError
        When the file is not there.
    ValueError
        When it is not such a file.
    """
    path = local.find(FILE, data_dir)
    try:
        entries = json.loads(path.read_text("utf-8"))
        edges, roots, answers, wrong, swapped, sizes = zip(*map(_parse, entries), strict=True)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not a file of ProsQA questions: {error}") from error
    return GraphQuestions(edges, np.array(roots), np.array(answers), np.array(wrong), np.array(swapped), max(sizes))


def _parse(entry: dict[str, Any]) -> tuple[np.ndarray, int, int, int, bool, int]:
    """Return edges (n_edges, 2), root, answer, wrong, swapped and the number of nodes of an entry of the file."""
    symbols = entry["idx_to_symbol"]
    edges = np.array(entry["edges"], dtype=np.int64).reshape(-1, 2)
    root, answer, wrong = (int(entry[name]) for name in ("root", "target", "neg_target"))
    if not (min(edges.min(), root, answer, wrong) >= 0 and max(edges.max(), root, answer, wrong) < len(symbols)):
        raise ValueError("a node has no symbol")
    asked = entry["question"].rsplit(". ", 1)[-1].rstrip("?").split()  # Is NAME a ONE or OTHER?
    return edges, root, answer, wrong, asked[-1] == symbols[answer], len(symbols)


def _check_hops(hops: Any) -> tuple[int, int]:
    """Return least and greatest number of hops."""
    if not isinstance(hops, Sequence) or len(hops) != 2:
        raise TypeError(f"hops must be a pair of integers, got {hops!r}")
    low = check_integer("hops[0]", hops[0], minimum=1)
    return low, check_integer("hops[1]", hops[1], minimum=low)


def _grow(rng: np.random.Generator, n_nodes: int, n_edges: int) -> np.ndarray:
    """Return edges (at most n_edges, 2) of an acyclic graph; later nodes hang below the sources 0, 1 or both."""
    sides, depths = [1, 2], [0, 0]  # which sources lead to a node, as bits
    edges: set[tuple[int, int]] = set()
    for node in range(2, n_nodes):
        spare = n_edges - len(edges) - (n_nodes - node)  # every later node needs an edge
        wanted = int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2] if spare > 0 else [0.5, 0.5, 0.0]))
        parents = [_pick(rng, sides, depths, side) for side in ((1, 2) if wanted == 3 else (wanted,))]
        edges |= {(parent, node) for parent in parents}
        sides.append(wanted)
        depths.append(1 + max(depths[parent] for parent in parents))
    later = [(a, b) for b in range(2, n_nodes) for a in range(b) if sides[a] & ~sides[b] == 0 and (a, b) not in edges]
    missing = n_edges - len(edges)
    if 0 < missing <= len(later):
        edges |= {later[i] for i in rng.choice(len(later), size=missing, replace=False)}
    return np.array(sorted(edges))


def _pick(rng: np.random.Generator, sides: list[int], depths: list[int], side: int) -> int:
    """Return a node on one side alone; deep ones are likelier, so that chains grow long."""
    nodes = [node for node, mark in enumerate(sides) if mark == side]
    weights = np.array([1.0 + depths[node] for node in nodes])
    return int(rng.choice(nodes, p=weights / weights.sum()))


def _ask(
    edges: np.ndarray, n_nodes: int, hops: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, int, int, int] | None:  # fmt: skip
    """Return edges (n_edges, 2), root, answer and wrong candidate, or None when the graph has no such leaves."""
    leaves = np.setdiff1d(np.arange(2, n_nodes), edges[:, 0])
    from_root, from_other = (_distances(edges, n_nodes, source)[leaves] for source in (0, 1))
    right = leaves[(from_root >= hops[0]) & (from_root <= hops[1])]
    wrong = leaves[(from_root < 0) & (from_other > 0)]
    if not (len(right) and len(wrong)):
        return None
    return edges, 0, int(rng.choice(right)), int(rng.choice(wrong))


def _renumber(question: tuple[np.ndarray, int, int, int], n_nodes: int, rng: np.random.Generator) -> tuple[Any, ...]:
    """Return a question (edges, root, answer, wrong) with nodes and edges in random order."""
    edges, *nodes = question
    names = rng.permutation(n_nodes)
    return (names[rng.permutation(edges)], *names[nodes])


def _gather(questions: list[tuple[Any, ...]], n_nodes: int, rng: np.random.Generator) -> GraphQuestions:
    """Return questions (edges, root, answer, wrong) as one object; a coin says which candidate is named first."""
    edges, roots, answers, wrong = zip(*questions, strict=True)
    swapped = rng.random(len(edges)) < 0.5
    return GraphQuestions(edges, np.array(roots), np.array(answers), np.array(wrong), swapped, n_nodes)


def _distances(edges: np.ndarray, n_nodes: int, source: int) -> np.ndarray:
    """Return the fewest of the edges (n_edges, 2) from `source` to each node, (n_nodes,), -1 where none lead."""
    found = np.full(n_nodes, -1)
    found[source] = 0
    for step in range(1, n_nodes):
        reached = edges[found[edges[:, 0]] == step - 1, 1]
        new = reached[found[reached] < 0]
        if not len(new):
            break
        found[new] = step
    return found


def _shortest_path(edges: np.ndarray, n_nodes: int, root: int, answer: int) -> np.ndarray:
    """Return the nodes (hops,) after the root, to the answer; of several shortest paths the one of least numbers back.

    Edges are (n_edges, 2).
    """
    distances = _distances(edges, n_nodes, root)
    path = [answer]
    while distances[path[-1]] > 1:
        before = edges[edges[:, 1] == path[-1], 0]
        path.append(int(before[distances[before] == distances[path[-1]] - 1].min()))
    return np.array(path[::-1])


def _thoughts(edges: np.ndarray, n_nodes: int, root: int, steps: int, kind: str) -> np.ndarray:
    """Return distributions over nodes, (steps, n_nodes): see `GraphQuestions.token_targets`."""
    if kind == "within":
        distances = _distances(edges, n_nodes, root)
        weights = np.array([(distances > 0) & (distances <= step) for step in range(1, steps + 1)], dtype=float)
    else:
        step_matrix = np.zeros((n_nodes, n_nodes))
        np.add.at(step_matrix, (edges[:, 0], edges[:, 1]), 1.0)
        ends = step_matrix.sum(axis=1) == 0
        step_matrix[ends, ends] = 1.0
        walks = [np.eye(n_nodes)[root]]
        for _ in range(steps):
            walks.append(walks[-1] @ step_matrix)
        weights = np.array(walks[1:])
        weights = (weights > 0).astype(float) if kind == "at" else weights
    weights = weights.reshape(steps, n_nodes)
    return weights / weights.sum(axis=1, keepdims=True)
