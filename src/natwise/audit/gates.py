"""Gates for continuous integration: conditions on an audit's numbers that make the command fail."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from natwise.core.validation import shorten, suggest
from natwise.result import Result

GATES = {  # name: question, scalar, what it is
    "label_noise": ("label_issues", "estimated_noise", "share of wrong labels, an estimate"),
    "label_noise_low": ("label_issues", "estimated_noise_low", "lower end of its 90 % interval"),
    "label_noise_high": ("label_issues", "estimated_noise_high", "upper end of its 90 % interval"),
    "suspicious_rows": ("label_issues", "review", "rows to review"),
    "accuracy": ("label_issues", "accuracy", "of the model on rows it never saw"),
    "r2": ("label_issues", "r2", "of the model on rows it never saw (regression)"),
    "duplicate_rows": ("data_card", "duplicate_rows", "rows that repeat others"),
    "conflicting_rows": ("data_card", "conflicting_rows", "equal rows with different labels"),
    "missing_share": ("data_card", "missing_share", "of the cells"),
    "smallest_class_rows": ("data_card", "smallest_class_rows", "rows of the smallest class"),
    "test_overlap": ("data_card", "test_overlap", "test rows that are also in the data (--test)"),
    "error_now": ("data_requirements", "error_now", "forecast error with the rows there are"),
    "rows_needed": ("data_requirements", "needed", "rows that the target needs"),
    "worst_group_accuracy": ("shortcuts", "model_worst", "of label and group together (--group)"),
    "new_group_accuracy": ("held_out_groups", "worst_held_out_accuracy", "on the worst group when left out (--group)"),
    "changes": ("change_points", "changes", "changes of dependence over time (--time)"),
    "gap": ("certificate", "gap", "error on new rows less that on training rows"),
    "memorised": ("label_memory", "memorised", "nats per row of label noise, at least"),
}
_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_CONDITION = re.compile(r"\s*([A-Za-z_0-9/]+)\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*(%?)\s*")


@dataclass(frozen=True)
class Gate:
    """A condition under which the data fails, the number it was held against, and whether it failed.

    `value` is NaN when the question was not answered, which fails too: nobody can say that the data is fine.
    """

    condition: str
    value: float
    failed: bool

    def __str__(self) -> str:
        found = "was not answered" if np.isnan(self.value) else f"it is {self.value:.4g}"
        return f"gate {self.condition}: {'FAILED' if self.failed else 'passed'}, {found}"


def check_conditions(conditions: Sequence[str]) -> list[tuple[str, str, str, float]]:
    """Return text, name, sign and number of each condition; ValueError for what is none, before long work.

    A condition is a name of `GATES`, one of ``> >= < <=``, and a number, also in per cent: ``label_noise > 5%``.
    """
    parsed = []
    for text in conditions:
        match = _CONDITION.fullmatch(text) if isinstance(text, str) else None
        try:
            number = float(match[3]) / (100 if match[4] else 1) if match else None
        except ValueError:
            number = None
        if match is None or number is None:
            raise ValueError(
                f"a gate must look like label_noise>0.05 (a name, a sign of > >= < <=, a number), got {shorten(text)}"
            )
        if match[1] not in GATES:
            raise ValueError(
                f"there is no gate {shorten(match[1])}.{suggest(match[1], GATES)} There are: {', '.join(GATES)}"
            )
        parsed.append((text.strip(), match[1], match[2], number))
    return parsed


def judge(conditions: Sequence[str], combined: Result) -> list[Gate]:
    """Return the verdict on every condition, given an audit's combined result."""
    found = []
    for text, name, sign, number in check_conditions(conditions):
        question, scalar, _ = GATES[name]
        value = float(combined.scalars.get(f"{question}/{scalar}", np.nan))
        if name == "memorised" and "label_memory/memorised" in combined.arrays:
            value = float(combined.arrays["label_memory/memorised"][0, 0])
        found.append(Gate(text, value, bool(np.isnan(value) or _SIGNS[sign](value, number))))
    return found
