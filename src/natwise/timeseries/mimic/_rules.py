"""What may be changed about the benchmark, by name: which stays, which items, which cleaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from natwise.core.validation import check_integer, check_option, check_real, shorten
from natwise.datasets import mimic3

COMPATIBILITY = ("2019", "clean")


@dataclass(frozen=True)
class CohortRules:
    """Which ICU stays enter the benchmark; the defaults are the published rules, in the order in which they act.

    Parameters
    ----------
    exclude_transfers : bool
        Drop stays that end in another ward or care unit than they began in.
    one_stay_per_admission : bool
        Drop admissions in which more than one of the stays that are left took place.
    minimum_age : float
        In years of 365 days at the time of admission to the ICU.
    split : {"published", "hash"}
        Which subjects are for testing and validation: the published lists (whoever is not listed trains), or, for other
        hospitals, 15 % each by a hash of SUBJECT_ID.
    """

    exclude_transfers: bool = True
    one_stay_per_admission: bool = True
    minimum_age: float = 18.0
    split: str = "published"

    def __post_init__(self):
        check_option("split", self.split, ("published", "hash"))
        for name in ("exclude_transfers", "one_stay_per_admission"):
            check_option(name, getattr(self, name), (True, False))
        check_real("minimum_age", self.minimum_age, minimum=0.0)


@dataclass(frozen=True)
class CleaningRules:
    """How raw texts become values. Every rule is off in the published data ("2019"); "clean" turns on all but the last.

    Parameters
    ----------
    numeric_maximum : bool
        Of several readings of heart rate, respiratory rate, mean blood pressure or GCS total at the same minute, keep
        the largest number. Published: the last in alphabetical order, so that 99 beats 101.
    fractions_stay : bool
        Leave a fraction of inspired oxygen that is at most 1 as it is. Published: everything whose unit is not torr
        is divided by 100.
    fahrenheit_by_unit : bool
        Convert temperatures whose unit or label says Fahrenheit, and any from 79 up. Published: only the latter.
    limit_age : bool
        Take ages over 150 years, which stand for patients over 89, as 90. Published code of today: about 300.
    all_diagnoses : bool
        Mark single diagnoses in the static table for every patient. Published: not for a patient whose codes are all
        digits, since they were read as numbers; the phenotypes are not concerned.
    clip_outliers : bool
        Drop values outside the plausible range of their variable and move implausible ones to its valid range.
    """

    numeric_maximum: bool = False
    fractions_stay: bool = False
    fahrenheit_by_unit: bool = False
    limit_age: bool = False
    all_diagnoses: bool = False
    clip_outliers: bool = False

    def __post_init__(self):
        for rule in fields(self):
            check_option(rule.name, getattr(self, rule.name), (True, False))

    @classmethod
    def of(cls, compat: str | CleaningRules) -> CleaningRules:
        """Return the rules of a name ("2019" or "clean"), or the rules that are given."""
        if isinstance(compat, CleaningRules):
            return compat
        if not isinstance(compat, str):
            raise TypeError(f"compat must be '2019', 'clean' or CleaningRules, got {shorten(compat)}")
        check_option("compat", compat, COMPATIBILITY)
        on = compat == "clean"
        return cls(numeric_maximum=on, fractions_stay=on, fahrenheit_by_unit=on, limit_age=on, all_diagnoses=on)


@dataclass(frozen=True)
class VariableMap:
    """Which items of the event tables are which of the 17 variables.

    Parameters
    ----------
    items : mapping of int to str
        ITEMID -> variable, such as ``{220045: "Heart Rate"}``. Several items may be one variable.
    labels : mapping of int to str, optional
        ITEMID -> label in words. A label with "oz", "lb" or "in" says that weights or heights are in ounces, pounds or
        inches; one with "F" or "Fahrenheit" that temperatures are.

    Examples
    --------
    >>> VariableMap({1: "Heart Rate"}).items
    {1: 'Heart Rate'}
    >>> len(VariableMap.published().items)
    114
    """

    items: Mapping[int, str]
    labels: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("items", "labels"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise TypeError(f"{name} must be a mapping from ITEMID, got {type(value).__name__}")
            for item in value:
                check_integer(f"{name} key", item)
        if not self.items:
            raise ValueError("items must name at least one ITEMID, got none")
        names = [variable.name for variable in mimic3.variables()]
        for item, variable in self.items.items():
            check_option(f"items[{item}]", variable, names)

    @classmethod
    def published(cls) -> VariableMap:
        """Return the benchmark's own map of 114 items, which fits MIMIC-III and, for MetaVision items, MIMIC-IV."""
        items = mimic3.items()
        return cls({item.id: item.variable for item in items}, {item.id: item.label for item in items})

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> VariableMap:
        """Return the map of rows with ITEMID, VARIABLE and, where known, MIMIC_LABEL, as in a table of your own.

        Raises
        ------
        ValueError
            For a row without ITEMID or VARIABLE, or an ITEMID that stands for two variables.
        """
        items: dict[int, str] = {}
        labels: dict[int, str] = {}
        for number, row in enumerate(rows):
            missing = {"ITEMID", "VARIABLE"} - set(row)
            if missing:
                raise ValueError(f"rows must have ITEMID and VARIABLE, row {number} has {sorted(row)}")
            item = int(row["ITEMID"])
            if items.setdefault(item, row["VARIABLE"]) != row["VARIABLE"]:
                raise ValueError(f"rows must map ITEMID {item} once, got {items[item]!r} and {row['VARIABLE']!r}")
            labels[item] = str(row.get("MIMIC_LABEL") or "")
        return cls(items, labels)
