"""Which layer stands at which depth: the sharing patterns and the choice of source layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natwise.core.random import Streams
from natwise.core.validation import check_integer, check_option
from natwise.lm._recursion import SHARINGS, layer_map, n_outer

INITS = ("stepwise", "average", "lower", "upper", "random")
POLICIES = ("raise", "drop", "extend")


@dataclass(frozen=True)
class LayerPlan:
    """The source layers of a recursive model.

    Attributes
    ----------
    layer_map : list of int, length depth
        Which unique layer is applied at each depth.
    kept : list of int, length depth
        The layer of the source that stood at each depth (what low-rank deltas restore).
    sources : list of list of int
        For every unique layer the source layers whose mean it is; one, unless layers are averaged.
    """

    layer_map: list[int]
    kept: list[int]
    sources: list[list[int]]


def checked_layer_map(depth: int, num_loops: int, sharing: str) -> list[int]:
    """Return `natwise.lm._recursion.layer_map`.

    Raises
    ------
    TypeError, ValueError
        For numbers that are no positive integers, an unknown sharing, or a depth that the loops do not divide.
    """
    depth = check_integer("num_hidden_layers", depth, minimum=1)
    num_loops = check_integer("num_loops", num_loops, minimum=1)
    check_option("sharing", sharing, SHARINGS)
    looped = depth - 2 * n_outer(sharing)
    if looped < num_loops or looped % num_loops:
        rest = "num_hidden_layers - 2" if n_outer(sharing) else "num_hidden_layers"
        raise ValueError(f"num_loops must divide {rest}={looped} for sharing={sharing!r}, got {num_loops}")
    return layer_map(depth, num_loops, sharing)


def plan_layers(
    n_source: int,
    num_loops: int,
    *,
    init: str = "stepwise",
    sharing: str = "cycle",
    on_indivisible: str = "raise",
    random_state: int | Streams | None = None,
) -> LayerPlan:
    """Choose the source layers of a recursive model.

    Parameters
    ----------
    n_source : int
        Layers of the source model.
    num_loops : int
        How often the shared layers are applied.
    init : {"stepwise", "average", "lower", "upper", "random"}
        Shared layers are equally spaced ones with the first and the last, means of those they replace, the first, the
        last, or sorted random ones.
    sharing : {"cycle", "sequence", "middle_cycle", "middle_sequence"}
        See `natwise.lm._recursion.layer_map`.
    on_indivisible : {"raise", "drop", "extend"}
        When the loops do not divide the layers: refuse, leave out source layers at equal distances (as the original
        code does), or apply some twice to reach the next multiple.
    random_state : int or None
        For ``random``.
    """
    n_source = check_integer("num_hidden_layers", n_source, minimum=1)
    num_loops = check_integer("num_loops", num_loops, minimum=1)
    check_option("init", init, INITS)
    check_option("sharing", sharing, SHARINGS)
    check_option("on_indivisible", on_indivisible, POLICIES)
    first = n_outer(sharing)
    looped = n_source - 2 * first
    if looped < num_loops:
        raise ValueError(f"num_loops must be at most {looped}, the layers that can be shared, got {num_loops}")
    if looped % num_loops and on_indivisible == "raise":
        checked_layer_map(n_source, num_loops, sharing)  # says what is wrong
    n_unique = looped // num_loops + (on_indivisible == "extend" and looped % num_loops > 0)
    inner = _spread(first, looped, n_unique * num_loops)
    chosen = _chosen(inner, n_unique, init, sharing, random_state)
    outer = [[0], *chosen, [n_source - 1]] if first else chosen
    kept = [0, *inner, n_source - 1] if first else inner
    return LayerPlan(layer_map(len(kept), num_loops, sharing), kept, outer)


def _chosen(
    inner: list[int], n_unique: int, init: str, sharing: str, random_state: int | Streams | None
) -> list[list[int]]:
    """Return the sources of each of the n_unique layers that stand for the layers `inner`."""
    first, n = n_outer(sharing), len(inner)
    if init == "average":
        by_loop = sharing.endswith("cycle")
        groups = np.array(inner).reshape((-1, n_unique) if by_loop else (n_unique, -1))
        return (groups.T if by_loop else groups).tolist()
    if init == "stepwise":
        places = [place - first for place in _spread(first, n, n_unique)]
    elif init == "random":
        rng = Streams.of(random_state).numpy("layers")
        places = sorted(rng.choice(n, n_unique, replace=False).tolist())
    else:
        places = list(range(n_unique) if init == "lower" else range(n - n_unique, n))
    return [[inner[place]] for place in places]


def _spread(first: int, n: int, count: int) -> list[int]:
    """Return `count` of the n numbers from `first` on, at equal distances, with both ends; halves go to even ones."""
    return np.round(np.linspace(first, first + n - 1, count)).astype(int).tolist()
