"""How well a model does on a group that it never saw, and where its error there comes from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from natwise.audit.context import Context, Deadline, Unanswered, one_thread
from natwise.audit.models import timed
from natwise.core.random import Streams
from natwise.result import Result

MIN_GROUP = 30
MAX_GROUPS = 12
MAX_ROWS = 4000
PILOT_ROWS = 600
MIN_CLASS = 5  # rows of a class in the group and elsewhere: one per fold of the probes
MIN_SECONDS = 1.0
HELD = 5  # one row in so many is kept from the model, to see how it does on groups that it knows
SURE = 2.0  # standard errors
REST = "all others"
CAUSES = (
    "the model misses as much in the groups it knows",
    "its classes are harder to tell apart by these columns",
    "it follows another rule: no linear one serves it and the other groups",
    "a rule that serves all exists, but the other groups do not single it out",
)


@dataclass(frozen=True, eq=False)
class _Rows:
    """A part of the table: features without gaps (n, p), labels, groups as numbers, and the groups' names."""

    X: np.ndarray
    labels: np.ndarray
    members: np.ndarray
    names: list[str]


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """One group held out: its diagnosis, and correctness on its rows and on unseen rows of the other groups."""

    modes: Any
    labels: np.ndarray
    right: np.ndarray
    home_members: np.ndarray
    home_right: np.ndarray


def answer(context: Context, deadline: Deadline) -> Result:
    """Return errors on each group with and without it in training, and the four parts of the latter."""
    if context.table.group is None:
        raise Unanswered("It needs a column with the group of each row (--group).")
    if not context.n_classes:
        raise Unanswered(
            "It is for classes: its four causes are differences of error rates. The label of this table is a number."
        )
    deadline.require(MIN_SECONDS)
    streams = context.streams.child("held_out_groups")
    found, late, rows = _each(context, streams, deadline)
    if not found:
        raise Unanswered(
            f"It needs two groups of at least {MIN_GROUP} rows, with at least {MIN_CLASS} rows of two classes in each, "
            "and time to train without one of them."
        )
    names = [rows.names[number] for number in found]
    arrays, scalars = _numbers(rows, found)
    verdicts = [_verdict(modes.modes) for modes in found.values()]
    worst = int(arrays["held_out_error"].argmax())
    scalars["worst_group"] = worst
    cell = _worst_cell(context, rows, found)
    return Result(
        "audit/held_out_groups",
        arrays=arrays,
        scalars=scalars,
        params={
            "names": names,
            "rows_used": len(rows.labels),
            "verdicts": verdicts,
            "worst_cell": cell,
            "summary": [_sentence(names[worst], worst, arrays, verdicts[worst])],
        },
        warnings=[f"No time was left for {len(late)} groups: {', '.join(late)}."] if late else [],
    )


def _rows(context: Context, streams: Streams, n_rows: int) -> _Rows:
    """Return at most `n_rows` rows; groups that are too small, and all beyond twelve, are one."""
    table = context.table
    chosen = np.sort(streams.numpy("rows").permutation(len(table))[:n_rows])
    assert table.group is not None
    given, index = np.unique(table.group[chosen].astype(str), return_inverse=True)
    counts = np.bincount(index)
    kept = np.argsort(-counts, kind="stable")[:MAX_GROUPS]
    kept = kept[counts[kept] >= MIN_GROUP]  # the largest first: they come first when time is short
    position = np.full(len(given), len(kept))
    position[kept] = np.arange(len(kept))
    X = context.encoded.X[chosen].astype(np.float64)
    missing = np.isnan(X)
    gaps = missing[:, missing.any(axis=0)].astype(np.float64)
    members = position[index]
    names = [*given[kept].tolist(), *([REST] if (members == len(kept)).any() else [])]
    return _Rows(np.column_stack([np.nan_to_num(X), gaps]), table.labels[chosen], members, names)


def _each(context: Context, streams: Streams, deadline: Deadline) -> tuple[dict[int, _HeldOut], list[str], _Rows]:
    """Hold out one group after another, on as many rows as there is time for; return also the names of those left."""
    import natwise.shift.failure_modes  # noqa: F401  # loaded before the clock starts

    rows = _rows(context, streams, PILOT_ROWS)
    todo = [number for number, name in enumerate(rows.names) if name != REST]
    needed = 0.0
    if todo and len(context.table) > PILOT_ROWS:
        _, needed = timed(lambda: _hold_out(rows, todo[0], streams))
        n_rows = int(PILOT_ROWS * 0.7 * deadline.left() / (needed * len(todo)))
        rows = _rows(context, streams, int(np.clip(n_rows, PILOT_ROWS, MAX_ROWS)))
        todo = [number for number, name in enumerate(rows.names) if name != REST]
    found: dict[int, _HeldOut] = {}
    for place, number in enumerate(todo):
        if needed > deadline.left():
            return found, [rows.names[left] for left in todo[place:]], rows
        one, needed = timed(lambda: _hold_out(rows, number, streams.child(rows.names[number])))  # noqa: B023  # at once
        if one is not None:
            found[number] = one
    return found, [], rows


def _hold_out(rows: _Rows, number: int, streams: Streams) -> _HeldOut | None:
    """Train without a group and diagnose; None when fewer than two classes are both in it and elsewhere."""
    from sklearn.linear_model import LogisticRegression

    from natwise.shift import FailureModes

    new = rows.members == number
    size = rows.labels.max() + 1
    inside, outside = (np.bincount(rows.labels[part], minlength=size) for part in (new, ~new))
    usable = (inside >= MIN_CLASS) & (outside >= 2 * MIN_CLASS)
    if usable.sum() < 2:
        return None
    new, old = (np.flatnonzero(part & usable[rows.labels]) for part in (new, ~new))
    order = streams.numpy("held").permutation(old)
    order = order[np.argsort(rows.labels[order], kind="stable")]
    train, held = order[np.arange(len(order)) % HELD > 0], order[::HELD]
    X, y, domain = rows.X, rows.labels, rows.members
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")  # convergence to the last digit does not matter here
        model = LogisticRegression(max_iter=200).fit(X[train], y[train])
        guess = model.predict(X[np.concatenate([held, new])])
        modes = FailureModes(distinguishability=False, random_state=streams).fit(
            X[train], y[train], domain[train], X[new], y[new], guess[: len(held)], y[held], guess[len(held) :]
        )
    right = guess == y[np.concatenate([held, new])]
    return _HeldOut(modes, y[new], right[len(held) :], domain[held], right[: len(held)])


def _numbers(rows: _Rows, found: dict[int, _HeldOut]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the errors and parts of each held-out group, and the worst of them."""
    every = list(found.values())
    members = np.concatenate([one.home_members for one in every])
    right = np.concatenate([one.home_right for one in every])
    known = [1 - right[members == number].mean() if (members == number).any() else np.nan for number in found]
    arrays = {
        "rows": np.array([len(one.right) for one in every]),
        "held_out_error": np.array([one.modes.cumulative_[3] for one in every]),
        "known_error": np.array(known),
        "held_out_se": np.array([_standard_error(one.right) for one in every]),
        "home_error": np.array([one.modes.cumulative_[0] for one in every]),
        "majority_error": np.array([one.modes.majority_error_ for one in every]),
        "parts": np.stack([one.modes.parts_ for one in every]),
        "parts_se": np.stack([one.modes.se_ for one in every]),
    }
    worst = {"worst_held_out_accuracy": 1 - arrays["held_out_error"].max()}
    seen = arrays["known_error"][np.isfinite(arrays["known_error"])]
    return arrays, worst | ({"worst_known_accuracy": 1 - seen.max()} if len(seen) else {})


def _standard_error(right: np.ndarray) -> float:
    return float(np.sqrt(max(right.mean() * (1 - right.mean()), 0.25 / len(right)) / len(right)))


def _worst_cell(context: Context, rows: _Rows, found: dict[int, _HeldOut]) -> dict[str, Any]:
    """Return the class of a held-out group that fares worst, among those of enough rows to say so."""
    cells = []
    for number, one in found.items():
        for label in np.unique(one.labels):
            own = one.right[one.labels == label]
            if len(own) >= 2 * MIN_CLASS:
                name = context.table.classes[label]
                cells.append({"group": rows.names[number], "label": name, "rows": len(own), "error": 1 - own.mean()})
    return max(cells, key=lambda cell: cell["error"], default={})


def _verdict(modes: Any) -> str:
    """Say which part carries what the group's error exceeds that at home; nothing when it does not."""
    extra = modes.cumulative_[3] - modes.cumulative_[0]
    spread = modes.bootstrap_parts_[:, 1:].sum(axis=1).std()
    if extra <= SURE * spread:
        return (
            CAUSES[0] if modes.cumulative_[3] > 0.5 * modes.majority_error_ else "no worse than in the groups it knows"
        )
    largest = 1 + int(modes.parts_[1:].argmax())
    return CAUSES[largest]


def _sentence(name: str, worst: int, arrays: dict[str, np.ndarray], verdict: str) -> str:
    there, home = arrays["held_out_error"][worst], arrays["home_error"][worst]
    text = " ".join(str(name).split())[:40]
    start = f"A linear model that never saw group {text} errs on {100 * there:.1f} % of its rows, against "
    start += f"{100 * home:.1f} % at home"
    return f"{start}: {verdict}." if verdict in CAUSES[1:] else f"{start}; no other group fares worse."
