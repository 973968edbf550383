"""The definitions of the published MIMIC-III benchmark: variables, item map, phenotypes, patients of each part.

The values are those of the benchmark's own files (MIT, see LICENSE beside this file); `make_definitions.py` wrote them
into ``definitions.json`` and ``definitions.npz``. No patient data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from natwise.core.io import load_npz

_HERE = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class Variable:
    """One of the 17 clinical variables.

    Attributes
    ----------
    name : str
        As the benchmark spells it.
    categories : tuple of str
        The texts that are values, in the order of their one-hot columns; empty for a continuous variable.
    levels : dict of str to float
        The number that stands for each text in the features of the logistic regression.
    normal : str
        The value that is imputed before the first observation.
    range : tuple of four floats
        Lowest plausible, lowest valid, highest valid and highest plausible value.
    """

    name: str
    categories: tuple[str, ...]
    levels: dict[str, float]
    normal: str
    range: tuple[float, float, float, float]

    @property
    def width(self) -> int:
        """Columns of the discretised variable: one per category, or one."""
        return max(1, len(self.categories))


@dataclass(frozen=True)
class Item:
    """One row of the item map: which variable an ITEMID of the event tables is."""

    id: int
    variable: str
    label: str
    unit: str
    table: str
    source: str


@dataclass(frozen=True)
class Phenotypes:
    """The CCS groups of ICD-9 codes.

    Attributes
    ----------
    codes, groups : ndarray (n_codes,) of str
        Every ICD-9 code, and the name of its group.
    names : tuple of str
        The 25 groups that are labels, in alphabetical order.
    """

    codes: np.ndarray
    groups: np.ndarray
    names: tuple[str, ...]


@cache
def variables() -> tuple[Variable, ...]:
    """Return the 17 variables in the order of the benchmark's columns."""
    content = _definitions()["variables"]
    return tuple(
        Variable(name, tuple(v["categories"]), v["levels"], v["normal"], tuple(v["range"]))
        for name, v in content.items()
    )


@cache
def items() -> tuple[Item, ...]:
    """Return the 114 items of the published map."""
    return tuple(Item(*row) for row in _definitions()["items"])


@cache
def diagnosis_codes() -> tuple[str, ...]:
    """Return the 128 ICD-9 codes of the static table."""
    return tuple(_definitions()["diagnosis_codes"])


@cache
def phenotypes() -> Phenotypes:
    """Return the CCS groups of 2015 and the 25 that are labels."""
    content = _arrays()
    names = content["groups"]
    return Phenotypes(
        content["codes"].astype(str), names[content["code_groups"]], tuple(sorted(names[content["used"]].tolist()))
    )


@cache
def subjects(part: str) -> np.ndarray:
    """Return the SUBJECT_IDs of a part ("train", "val", which is within train, or "test"), int32, in file order."""
    ids: np.ndarray = _arrays()[f"{part}_subjects"]
    return ids


@cache
def normalizer_states() -> dict[str, np.ndarray]:
    """Return the shipped means and standard deviations, (2, 76), by task and timestep, such as "ihm_1"."""
    content = _arrays()
    return dict(zip(content["normalizers"].tolist(), content["normalizer_states"], strict=True))


@cache
def _definitions() -> dict:
    content: dict = json.loads((_HERE / "definitions.json").read_text("utf-8"))
    return content


@cache
def _arrays() -> dict[str, np.ndarray]:
    return load_npz(_HERE / "definitions.npz")
