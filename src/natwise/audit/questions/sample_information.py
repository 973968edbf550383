"""What does each row tell? The information that it alone puts into a network's predictions and weights."""

from __future__ import annotations

import numpy as np

from natwise.audit.context import OUT_OF_TIME, Context, Deadline, Unanswered
from natwise.audit.models import timed
from natwise.audit.network import Network
from natwise.datasets.tables import Table
from natwise.result import Result

SHOWN = 12
REDUNDANCY_STEP = 0.2
RANKING_COST = 2.1  # of one scoring: the kernels shrink by the step, sum of 0.8^(3 i)
RARE_RATIO = 1.5
N_BOOTSTRAP = 100


def answer(context: Context, deadline: Deadline) -> Result:
    """Return functional and weight information (nats) and the order in which rows can be spared."""
    network = context.network
    if network is None:
        raise Unanswered(OUT_OF_TIME)
    table, rows = context.table, network.rows
    functional, weight = network.information.functional_information_, network.information.weight_information_
    rank, warning = _redundancy(network, context.labels, deadline)
    order = np.argsort(-functional, kind="stable")
    spared = np.argsort(rank, kind="stable") if rank is not None else order[::-1]
    arrays = {
        "functional_information": _for_all(functional, rows, len(table)),
        "weight_information": _for_all(weight, rows, len(table)),
        "most_informative": rows[order[:SHOWN]],
        "most_redundant": rows[spared[:SHOWN]],
    }
    if rank is not None:
        arrays["redundancy_rank"] = _for_all(rank, rows, len(table))
    shown = ("most_informative", "most_redundant")
    names, compared = _by_group(table, rows, functional)
    share = _share_of_half(functional)
    rng = context.streams.child("sample_information").numpy("bootstrap")
    spread = float(np.std([_share_of_half(rng.choice(functional, len(functional))) for _ in range(N_BOOTSTRAP)]))
    if table.image_shape is not None:
        arrays["informative_thumbnails"] = context.thumbnails(arrays["most_informative"])
        arrays["redundant_thumbnails"] = context.thumbnails(arrays["most_redundant"])
    return Result(
        "audit/sample_information",
        arrays=arrays | compared,
        scalars={
            "mean_functional_information": float(functional.mean()),
            "share_holding_half": share,
            "share_holding_half_se": spread,
            "rows": len(rows),
        },
        rows=table.ids,
        params={
            "classes": table.classes,
            "shown_labels": {str(i): int(table.labels[i]) for name in shown for i in arrays[name]},
            "group_kind": _kind(table),
            "group_names": names,
            "summary": _summary(share, spread, names, compared),
        },
        warnings=_warnings(context, warning),
    )


def _redundancy(network: Network, labels: np.ndarray, deadline: Deadline) -> tuple[np.ndarray | None, str]:
    """Return the rank (rows,) of each row of the network by when it can be removed, or why there is none."""
    _, seconds = timed(lambda: network.functional_information(labels[network.rows]))
    if RANKING_COST * seconds > deadline.left():
        return None, "The order in which rows can be spared was left out to stay within time."
    return network.information.redundancy_rank(step=REDUNDANCY_STEP), ""


def _kind(table: Table) -> str:
    return "group" if table.group is not None else "class" if table.target is None else "range of the label"


def _for_all(values: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Return `values` (rows,) of some rows as an array over all rows (n,), NaN elsewhere."""
    everywhere = np.full(n, np.nan)
    everywhere[rows] = values
    return everywhere


def _share_of_half(functional: np.ndarray) -> float:
    """Return the smallest share of the rows (n,) that holds half of the summed information."""
    cumulative = np.cumsum(np.sort(functional)[::-1])
    return float((np.searchsorted(cumulative, cumulative[-1] / 2) + 1) / len(functional))


def _by_group(table: Table, rows: np.ndarray, functional: np.ndarray) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the names of groups (or classes), and how their rows' mean information compares with the overall mean."""
    from natwise.samples import information_by_group

    members = table.labels[rows] if table.group is None else np.asarray(table.group, dtype=str)[rows]
    found = information_by_group(functional, members)
    names = [table.classes[int(row)] if table.group is None else str(row) for row in found.rows]
    return names, {f"group_{name}": found.arrays[name] for name in ("mean", "standard_error", "count", "ratio")}


def _summary(share: float, spread: float, names: list[str], compared: dict[str, np.ndarray]) -> list[str]:
    text = f"Half of the information in single rows comes from {100 * share:.1f} ± {100 * spread:.1f} % of them"
    sure = compared["group_mean"] - 2 * compared["group_standard_error"] > compared["group_mean"].mean()
    ratio = np.where(sure, compared["group_ratio"], 0.0)
    if ratio.max() > RARE_RATIO:
        text += f"; rows of {names[ratio.argmax()][:40]} tell {ratio.max():.1f} times the average"
    return [f"{text}."]


def _warnings(context: Context, warning: str) -> list[str]:
    found = [warning] if warning else []
    n = len(context.network.rows) if context.network is not None else 0
    if n < len(context.table):
        found.append(
            f"Scores are for {n:,} of {len(context.table):,} rows, chosen at random; the others' cells are empty."
        )
    return found
