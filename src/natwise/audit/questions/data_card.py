"""What is in the table? Rows, classes, groups, missing values, duplicates, useless columns, overlap with tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from natwise.audit.context import Context, Deadline, hash_rows
from natwise.result import Result

SHOWN = 20
MAX_CLASSES = 30


def answer(context: Context, deadline: Deadline) -> Result:
    """Return counts as scalars, and lists of the worst offenders in `params`."""
    table = context.table
    counts = np.bincount(table.labels, minlength=len(table.classes))
    missing = table.features.isna().to_numpy().mean(axis=0)
    duplicates = _duplicates(context)
    kinds = {kind: context.encoded.kinds.count(kind) for kind in dict.fromkeys(context.encoded.kinds)}
    scalars = {
        "rows": len(table),
        "columns": table.features.shape[1],
        "classes": context.n_classes,
        "largest_class_share": counts.max() / len(table),
        "smallest_class_rows": counts.min(),
        "missing_share": float(missing.mean()),
        "duplicate_rows": duplicates["duplicate"].sum(),
        "conflicting_rows": duplicates["conflicting"].sum(),
    }
    if table.test is not None:
        scalars["test_rows"] = len(table.test)
        scalars["test_overlap"] = np.isin(hash_rows(_same_types(table.test, table.features)), context.row_hashes).sum()
    return Result(
        "audit/data_card",
        arrays={"class_counts": counts, "missing_by_column": missing, **duplicates},
        scalars=scalars,
        rows=table.ids,
        params={
            "name": table.name,
            "classes": table.classes,
            "largest_classes": np.sort(np.argsort(-counts, kind="stable")[:MAX_CLASSES]),
            "kinds": kinds,
            "left_out": _left_out(context),
            "most_missing": _most_missing(context, missing),
            "groups": _groups(context),
            "duplicate_groups": _duplicate_groups(context),
            "image_shape": table.image_shape,
            "target": _target(context),
            "notes": table.notes,
            "summary": [
                _sentence(
                    table.name, scalars, facts := _facts(scalars, () if table.image_shape else context.encoded.kinds)
                )
            ],
            "trouble": bool(facts),
        },
        warnings=_warnings(context, counts) if context.n_classes else [],
    )


def _duplicates(context: Context) -> dict[str, np.ndarray]:
    """Return whether each row (n,) is equal to an earlier one, and whether an equal row has another label (n,)."""
    _, first, member = np.unique(context.row_hashes, return_index=True, return_inverse=True)
    labels = context.labels
    conflicting = np.zeros(len(first), dtype=bool)
    np.logical_or.at(conflicting, member, labels != labels[first[member]])
    return {"duplicate": first[member] != np.arange(len(member)), "conflicting": conflicting[member]}


def _duplicate_groups(context: Context) -> list[dict]:
    """Return the ids and labels of groups of equal rows, those with conflicting labels first."""
    _, member, size = np.unique(context.row_hashes, return_inverse=True, return_counts=True)
    groups = [np.flatnonzero(member == group) for group in np.flatnonzero(size > 1)[: 10 * SHOWN]]
    labels = context.table.labels
    groups.sort(key=lambda rows: (-len(np.unique(labels[rows])), -len(rows)))
    return [
        {
            "ids": [context.table.ids[i] for i in rows[:SHOWN]],
            "labels": [context.table.classes[labels[i]] for i in rows[:SHOWN]],
            "rows": len(rows),
        }
        for rows in groups[:SHOWN]
    ]


def _left_out(context: Context) -> list[dict]:
    names = context.table.features.columns
    used = ("numeric", "date", "category")
    return [
        {"name": name, "kind": kind}
        for name, kind in zip(names, context.encoded.kinds, strict=True)
        if kind not in used
    ]


def _most_missing(context: Context, missing: np.ndarray) -> list[dict]:
    order = np.argsort(-missing, kind="stable")[:SHOWN]
    return [{"name": context.table.features.columns[i], "share": missing[i]} for i in order if missing[i] > 0]


def _groups(context: Context) -> list[dict]:
    """Return size and class shares of the largest groups."""
    if context.table.group is None:
        return []
    names, member, size = np.unique(context.table.group.astype(str), return_inverse=True, return_counts=True)
    largest = np.argsort(-size, kind="stable")[:SHOWN]
    k = len(context.table.classes)
    counts = {g: np.bincount(context.table.labels[member == g], minlength=k) for g in largest}
    return [
        {
            "name": str(names[g]) or "(missing)",
            "rows": size[g],
            "commonest": context.table.classes[counts[g].argmax()],
            "share": counts[g].max() / size[g],
        }
        for g in largest
    ]


def _target(context: Context) -> dict[str, float]:
    """Return what describes the label of regression; nothing for classes."""
    target = context.table.target
    if target is None:
        return {}
    return {
        "low": float(target.min()),
        "high": float(target.max()),
        "mean": float(target.mean()),
        "std": float(target.std()),
    }


def _facts(scalars: dict[str, float], kinds: Sequence[str]) -> list[str]:
    """Return what should be looked at, worst first."""
    useless = sum(kind in ("constant", "empty", "id-like", "free text", "unsupported") for kind in kinds)
    facts = []
    if scalars.get("test_overlap"):
        facts.append(_count(scalars["test_overlap"], "test row is", "test rows are") + " also in the training data")
    if scalars["conflicting_rows"]:
        facts.append(f"{scalars['conflicting_rows']:,} equal rows carry different labels")
    if scalars["duplicate_rows"]:
        facts.append(_count(scalars["duplicate_rows"], "row repeats another", "rows repeat others"))
    if useless:
        facts.append(_count(useless, "column tells", "columns tell") + " nothing about a row")
    return facts


def _sentence(name: str, scalars: dict[str, float], facts: list[str]) -> str:
    classes = f"{scalars['classes']:,} classes" if scalars["classes"] else "a number for a label"
    columns = _count(scalars["columns"], "column", "columns")
    start = f"{name} has {scalars['rows']:,} rows, {columns} and {classes}"
    return f"{start}; {', '.join(facts) or 'no repeated rows, no useless columns'}."


def _count(count: float, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _same_types(test: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """Return the test columns with the types of the training columns, where they can be converted."""
    columns = {}
    for name in features.columns:
        try:
            columns[name] = test[name].astype(features[name].dtype)
        except (TypeError, ValueError):
            columns[name] = test[name]
    return pd.DataFrame(columns)


def _warnings(context: Context, counts: np.ndarray) -> list[str]:
    folded: dict[str, list[str]] = {}
    for name in context.table.classes:
        folded.setdefault(name.strip().casefold(), []).append(name)
    found = [
        f"The classes {' and '.join(map(repr, names))} differ only in case or spaces: are they the same?"
        for names in folded.values()
        if len(names) > 1
    ]
    if counts.max() > 20 * counts.min():
        found.append(
            f"The classes are uneven: the largest has {counts.max():,} rows, the smallest {counts.min():,}. "
            "Accuracy alone will mislead."
        )
    return found
