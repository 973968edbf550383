"""Synthetic tables in the shape of MIMIC-III: everything can be tried without access to patients' data.

They hold what makes real tables hard: children, shielded ages, transfers, two stays per admission, missing and wrong
ids, texts among numbers, second readings of the same minute, items that are not mapped. No value comes from a patient.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from natwise.core.io import atomic_path, write_text
from natwise.core.validation import check_integer, check_real
from natwise.datasets import mimic3
from natwise.datasets._clinical_values import HEADERS, SCORES, VITALS, Vital

_ETHNICITIES = (
    *("WHITE", "BLACK/AFRICAN AMERICAN", "HISPANIC OR LATINO", "ASIAN - CHINESE", "UNKNOWN/NOT SPECIFIED", "OTHER"),
    *("WHITE - RUSSIAN", "MIDDLE EASTERN"),
)
_UNITS = ("MICU", "SICU", "CCU", "CSRU", "TSICU")
_REFILL = ("Brisk", "Normal <3 secs", "Delayed", "Abnormal >3 secs", "Comment")
_NO_NUMBERS = ("ERROR", ">500", "UNABLE TO REPORT", "-5")
_NOTES = ("Yes", "No", "Clear", "Within Normal Limits")
_HOUR, _DAY = 3600, 86400
_EPOCH = datetime(1970, 1, 1)


_MANIFEST = (
    *("adult_ok", "child", "transfer", "multi_icu", "elderly_300", "died_hosp", "no_hadm", "no_icustay"),
    *("wrong_icustay", "error_text", "bp_slash", "dup_time", "none_eye", "torr", "before_icu", "after_icu"),
)


@dataclass
class _Stay:
    icustay: int
    begin: float
    end: float

    @property
    def hours(self) -> float:
        return (self.end - self.begin) / 3600


@dataclass
class _Admission:
    hadm: int
    begin: float
    end: float
    death: float | None
    ethnicity: str
    source: str
    stays: list[_Stay]


class _Event(NamedTuple):
    table: str
    hadm: int
    icustay: int
    item: int | str
    time: float
    value: str
    unit: str


def write_mimic3_tables(
    folder: str | os.PathLike[str], n_patients: int = 200, *, seed: int = 0, hours: float = 60.0, unmapped: float = 0.5
) -> dict[str, Any]:
    """Write the eight tables of a synthetic MIMIC-III into `folder`, one patient after the other.

    Every patient has a severity that moves vital signs, scores, diagnoses and the chance of death, so that the tasks
    can be learned: the best possible AUROC for mortality is about 0.85.

    Parameters
    ----------
    folder : path
        Gets ``PATIENTS.csv`` and so on, and ``manifest.json`` with the number of rows and of every irregularity.
    n_patients : int
        85 % of them have ids of the published training patients, 15 % of the test patients.
    seed : int
        The same seed and `n_patients` give the same bytes.
    hours : float
        Median length of a stay.
    unmapped : float
        Share of chart events whose item belongs to no variable, in [0, 1).

    Returns
    -------
    dict
        The content of ``manifest.json``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = write_mimic3_tables(folder, 3, unmapped=0.0)
    >>> manifest["rows"]["PATIENTS"]
    3
    """
    check_integer("n_patients", n_patients, minimum=2, maximum=len(mimic3.subjects("train")))
    check_integer("seed", seed, minimum=0)
    check_real("hours", hours, minimum=0.0, exclusive=True)
    share = check_real("unmapped", unmapped, minimum=0.0)
    if share >= 1:
        raise ValueError(f"unmapped must be < 1, got {unmapped}")
    target = Path(folder)
    with ExitStack() as stack:
        files = {
            table: stack.enter_context(_open_table(target / f"{table}.csv", header))
            for table, header in HEADERS.items()
        }
        manifest = _Hospital(files, np.random.default_rng([seed, n_patients]), n_patients, hours, share).write()
    write_text(target / "manifest.json", json.dumps(manifest, indent=1))
    return manifest


class _Table:
    """A CSV file whose rows are numbered."""

    def __init__(self, file: Any, header: str):
        self.writer, self.n_rows = csv.writer(file, lineterminator="\n"), 0
        self.writer.writerow(header.split())

    def add(self, *values: Any) -> None:
        self.n_rows += 1
        self.writer.writerow([self.n_rows, *values])


@contextmanager
def _open_table(path: Path, header: str) -> Iterator[_Table]:
    """Open a table for writing; the file appears when all of it is there."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield _Table(file, header)


class _Hospital:
    """Draws patients and writes them; the order of the draws makes the tables what they are."""

    def __init__(
        self, tables: dict[str, _Table], rng: np.random.Generator, n_patients: int, hours: float, unmapped: float
    ):
        self.tables, self.rng, self.hours, self.unmapped = tables, rng, hours, unmapped
        self.n_patients = n_patients
        self.n_admissions, self.n_stays = 100_000, 200_000
        self.manifest = dict.fromkeys(_MANIFEST, 0)
        self.codes_used: set[str] = set()
        self.items = _items_by_source()
        phenotypes = mimic3.phenotypes()
        self.groups = [phenotypes.codes[phenotypes.groups == name] for name in phenotypes.names]
        self.other_codes = phenotypes.codes[~np.isin(phenotypes.groups, phenotypes.names)]

    def write(self) -> dict[str, Any]:
        n_test = max(1, round(0.15 * self.n_patients))
        train = self.rng.choice(mimic3.subjects("train"), self.n_patients - n_test, replace=False)
        test = self.rng.choice(mimic3.subjects("test"), n_test, replace=False)
        for subject in sorted([*train.tolist(), *test.tolist()]):
            self._patient(subject)
        for code in sorted(self.codes_used):
            self.tables["D_ICD_DIAGNOSES"].add(code, f"code {code}", f"synthetic title, code {code}")
        return {**self.manifest, "rows": {name: table.n_rows for name, table in self.tables.items()}}

    def _patient(self, subject: int) -> None:
        rng = self.rng
        severity = rng.normal()
        sex = "MF"[int(rng.random() < 0.45)]
        child = rng.random() < 0.04
        old = not child and rng.random() < 0.05
        age = rng.uniform(0, 1) if child else 300.0 if old else float(np.clip(rng.normal(64, 16), 18.5, 89))
        start = rng.integers(4102444800, 6311433600)
        born = (start - age * 365.25 * _DAY) // _DAY * _DAY
        n_admissions = 1 + rng.poisson(0.25)
        self.manifest["child"] += int(child)
        self.manifest["elderly_300"] += int(old)
        time, admissions = float(start), []
        for number in range(n_admissions):
            admission = self._admission(time, severity, last=number == n_admissions - 1)
            admissions.append(admission)
            self._count(admission, child)
            self._write_stays(subject, admission)
            self._diagnoses(subject, admission.hadm, severity)
            self._write_events(subject, self._events(admission, severity))
            time = admission.end + rng.uniform(10, 300) * _DAY
        self._write_patient(subject, sex, born, admissions)

    def _admission(self, start: float, severity: float, *, last: bool) -> _Admission:
        rng = self.rng
        self.n_admissions += 1
        length = float(np.exp(rng.normal(np.log(self.hours), 0.6)))
        dies = last and rng.random() < 1 / (1 + np.exp(-(-2.3 + 1.5 * severity)))
        source = "carevue" if rng.random() < 0.55 else "metavision"
        n_stays = 2 if rng.random() < 0.08 else 1
        self.transferred = rng.random() < 0.07
        begin = start + rng.uniform(0, 30) * _HOUR
        out = begin + length * _HOUR
        end = out + (0 if dies else rng.uniform(6, 120) * _HOUR)
        death = out - (rng.uniform(0, 3) * _HOUR if rng.random() < 0.8 else 0) if dies else None
        ethnicity = _ETHNICITIES[rng.integers(len(_ETHNICITIES))]
        each = (length / n_stays) * _HOUR
        stays = [_Stay(self.n_stays + j + 1, begin + j * each, begin + j * each + each) for j in range(n_stays)]
        self.n_stays += n_stays
        return _Admission(
            self.n_admissions, start, end if death is None else max(death, out), death, ethnicity, source, stays
        )

    def _count(self, admission: _Admission, child: bool) -> None:
        several = len(admission.stays) == 2
        self.manifest["died_hosp"] += admission.death is not None
        self.manifest["transfer"] += int(self.transferred)
        self.manifest["multi_icu"] += several
        self.manifest["adult_ok"] += not (child or self.transferred or several)

    def _write_stays(self, subject: int, admission: _Admission) -> None:
        for number, stay in enumerate(admission.stays):
            ward = int(self.rng.integers(7, 60))
            unit = _UNITS[self.rng.integers(len(_UNITS))]
            last_ward = ward + 1 if self.transferred and number == 0 else ward
            days = f"{(stay.end - stay.begin) / _DAY:.4f}"
            where = (admission.source, unit, unit, ward, last_ward)
            when = (_text(stay.begin), _text(stay.end))
            self.tables["ICUSTAYS"].add(subject, admission.hadm, stay.icustay, *where, *when, days)

    def _diagnoses(self, subject: int, hadm: int, severity: float) -> None:
        rng, n_groups = self.rng, len(self.groups)
        logits = rng.normal(size=n_groups) * 0.8 + np.linspace(-2.6, -0.9, n_groups) + 0.35 * severity
        codes: list[str] = []
        for group, logit in zip(self.groups, logits, strict=True):
            if rng.random() < 1 / (1 + np.exp(-logit)):
                wanted = 1 + int(rng.random() < 0.3)
                codes += rng.choice(group, min(len(group), wanted), replace=False).tolist()
        codes += rng.choice(self.other_codes, 2, replace=False).tolist()
        self.codes_used.update(codes)
        for number, code in enumerate(codes):
            self.tables["DIAGNOSES_ICD"].add(subject, hadm, number + 1, code)

    def _events(self, admission: _Admission, severity: float) -> list[_Event]:
        events: list[_Event] = []
        for stay in admission.stays:
            for name, vital in VITALS.items():
                events += self._vital(name, vital, admission, stay, severity)
            for name, (items, texts) in SCORES.items():
                item = items[admission.source == "metavision"]
                events += self._score(name, item, texts[admission.source], admission, stay, severity)
            for hour in self.rng.uniform(0, stay.hours, int(stay.hours / 3)):
                item = (40055, 226559)[self.rng.integers(2)]
                volume = str(int(self.rng.gamma(2, 50)))
                events.append(self._event("outputevents", admission, stay, item, hour, volume, "ml"))
        return events + self._unmapped_events(admission, len(events))

    def _event(
        self, table: str, admission: _Admission, stay: _Stay, item: int, hour: float, value: str, unit: str
    ) -> _Event:
        return _Event(table, admission.hadm, stay.icustay, item, stay.begin + round(hour * 60) * 60, value, unit)

    def _vital(self, name: str, vital: Vital, admission: _Admission, stay: _Stay, severity: float) -> Iterator[_Event]:
        rng, length = self.rng, stay.hours
        offset = rng.normal() * vital.patient_sd
        n = 1 if vital.gap > 1e8 else max(1, int(rng.poisson(length / vital.gap)))
        times = np.sort(rng.uniform(-0.03 * length, 1.03 * length, n))
        times[0] = abs(times[0])
        trend = vital.slope * severity * (0.6 + 0.4 * times / max(length, 1))
        values = vital.mean + offset + trend + rng.normal(size=n) * vital.noise_sd
        laboratory = name == "pH" or (name == "Glucose" and rng.random() < 0.5)
        items = self._candidates(name, "lab" if laboratory else admission.source)
        if name == "Capillary refill rate" and admission.source == "metavision":
            return
        for hour, value in zip(times, values, strict=True):
            item = items[int(rng.integers(len(items)))]
            measured = _in_unit(name, item, value)
            text, unit = self._reading(name, vital, item, measured)
            self.manifest["before_icu"] += int(hour < 0)
            self.manifest["after_icu"] += int(hour > length)
            yield self._event(item.table, admission, stay, item.id, hour, text, unit)
            if name in ("Heart Rate", "Respiratory rate") and rng.random() < 0.06:
                self.manifest["dup_time"] += 1
                again = f"{measured + rng.integers(-25, 26):.0f}"
                yield self._event(item.table, admission, stay, item.id, hour, again, unit)

    def _candidates(self, name: str, source: str) -> list[mimic3.Item]:
        """Return the items of a variable; of heart rate only the frequent ones."""
        found = next(self.items[name, s] for s in (source, "carevue", "lab") if (name, s) in self.items)
        return [item for item in found if item.id in (220045, 211)] or found

    def _reading(self, name: str, vital: Vital, item: mimic3.Item, value: float) -> tuple[str, str]:
        """Return the text of a value and its unit, with the irregularities of charts."""
        rng, text, unit = self.rng, f"{value:.{vital.decimals}f}", item.unit
        if name == "Capillary refill rate":
            text = str(rng.choice(_REFILL, p=[0.3, 0.4, 0.15, 0.1, 0.05]))
        if name == "Fraction inspired oxygen" and unit != "torr" and rng.random() < 0.03:
            unit, text = "torr", f"{value / 100:.2f}"
            self.manifest["torr"] += 1
        if name in ("pH", "Glucose", "Oxygen saturation") and rng.random() < 0.01:
            text = _NO_NUMBERS[rng.integers(len(_NO_NUMBERS))]
            self.manifest["error_text"] += 1
        if name == "Oxygen saturation" and rng.random() < 0.005 and text.replace(".", "").isdigit():
            text = f"{value / 100:.2f}"
        if name == "Systolic blood pressure" and rng.random() < 0.01:
            text = f"{int(value)}/{int(value * 0.6)}"
            self.manifest["bp_slash"] += 1
        return text, unit

    def _score(
        self, name: str, item: int, texts: tuple[str, ...], admission: _Admission, stay: _Stay, severity: float
    ) -> Iterator[_Event]:
        rng, best = self.rng, len(texts) - 1
        n = max(1, int(rng.poisson(stay.hours / 4)))
        for hour in np.sort(rng.uniform(0, stay.hours, n)):
            level = int(np.clip(round(best - max(0, severity + rng.normal() * 0.7)), 0, best))
            self.manifest["none_eye"] += texts[level] == "None"
            yield self._event("chartevents", admission, stay, item, hour, texts[level], "")
            if name == "eye" and admission.source == "carevue":
                total = int(np.clip(15 - round(max(0, 2 * severity + rng.normal())), 3, 15))
                yield self._event("chartevents", admission, stay, 198, hour, str(total), "points")

    def _unmapped_events(self, admission: _Admission, n_events: int) -> list[_Event]:
        rng, stay = self.rng, admission.stays[0]
        n = int(n_events * self.unmapped / (1 - self.unmapped))
        times, items = rng.uniform(stay.begin, stay.end, n), rng.integers(0, 400, n)
        events = []
        for time, item in zip(times, items, strict=True):
            number = rng.random() < 0.7
            value = str(rng.integers(0, 200)) if number else _NOTES[rng.integers(len(_NOTES))]
            events.append(
                _Event("chartevents", admission.hadm, stay.icustay, 1225000 + item, round(time / 60) * 60, value, "")
            )
        return events

    def _write_events(self, subject: int, events: list[_Event]) -> None:
        """Write the events of an admission in random order, some without or with wrong ids."""
        order, draws = self.rng.permutation(len(events)), self.rng.random(len(events))
        for position in order.tolist():
            event, draw = events[position], draws[position]
            hadm: int | str = event.hadm
            icustay: int | str = event.icustay
            if draw < 0.02:
                hadm = ""
                self.manifest["no_hadm"] += 1
            elif draw < 0.07 or event.table == "labevents":
                icustay = ""
                self.manifest["no_icustay"] += 1
            elif draw < 0.085:
                icustay = event.icustay + 50000
                self.manifest["wrong_icustay"] += 1
            self._write_event(subject, hadm, icustay, event)

    def _write_event(self, subject: int, hadm: int | str, icustay: int | str, event: _Event) -> None:
        charted, stored, number = _text(event.time), _text(event.time + 60), _number(event.value)
        row: tuple[Any, ...]
        if event.table == "chartevents":
            row = (icustay, event.item, charted, stored, 15001, event.value, number, event.unit, "", "", "", "")
        elif event.table == "labevents":
            row = (event.item, charted, event.value, number, event.unit, "")
        else:
            row = (icustay, charted, event.item, event.value, event.unit, stored, 15001, "", "", "")
        self.tables[event.table.upper()].add(subject, hadm, *row)

    def _write_patient(self, subject: int, sex: str, born: float, admissions: Iterable[_Admission]) -> None:
        died = ""
        empty = ("", "", "")
        for admission in admissions:
            death = "" if admission.death is None else _text(admission.death)
            if admission.death is not None:
                died = _text(admission.death // _DAY * _DAY)
            kind = ("EMERGENCY", "EMERGENCY ROOM ADMIT", "HOME", "Medicare", *empty)
            when = (_text(admission.begin), _text(admission.end), death)
            outcome = ("", "", "SEPSIS", int(admission.death is not None), 1)
            self.tables["ADMISSIONS"].add(subject, admission.hadm, *when, *kind, admission.ethnicity, *outcome)
        self.tables["PATIENTS"].add(subject, sex, _text(born), died, died, "", int(died != ""))


def _items_by_source() -> dict[tuple[str, str], list[mimic3.Item]]:
    found: dict[tuple[str, str], list[mimic3.Item]] = {}
    for item in mimic3.items():
        source = item.source if item.table == "chartevents" else "lab"
        found.setdefault((item.variable, source), []).append(item)
    return found


def _in_unit(name: str, item: mimic3.Item, value: float) -> float:
    """Return a value in the unit of its item, within what can be."""
    label = item.label
    if name == "Temperature" and ("F" in label.split() or "[F]" in label or "Fahrenheit" in label):
        return value * 9 / 5 + 32
    if name == "Weight":
        return value / 0.453592 if "lb" in label else value / 0.453592 * 16 if "oz" in label else value
    if name == "Height" and ("Inch" in label or item.unit == "Inch"):
        return value / 2.54
    if name == "Oxygen saturation":
        return min(value, 100)
    if name == "Fraction inspired oxygen":
        return float(np.clip(value, 21, 100))
    return value


def _text(seconds: float) -> str:
    return str(_EPOCH + timedelta(seconds=round(float(seconds))))


def _number(text: str) -> str:
    try:
        return f"{float(text):g}"
    except ValueError:
        return ""
