"""Raw texts into values, variable by variable, as the published code does it or as it should have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import polars as pl

from natwise.datasets import mimic3

from ._rules import CleaningRules

Clean: TypeAlias = Callable[[pl.DataFrame, CleaningRules], np.ndarray]
_NUMBER = r"^(\d+(\.\d*)?|\.\d+)$"
_REFILL = {"Normal <3 secs": 0.0, "Brisk": 0.0, "Abnormal >3 secs": 1.0, "Delayed": 1.0}
_FAHRENHEIT = r"(?i)fahrenheit|\[f\]|\bf\b|[°?]f\b"
# Published as the texts that were typed in; the first three are no numbers under any rule.
TEXTS = ("Glascow coma scale eye opening", "Glascow coma scale motor response", "Glascow coma scale verbal response")
RAW = (*TEXTS, "Glascow coma scale total", "Heart Rate", "Mean blood pressure", "Respiratory rate")


def clean_values(events: pl.DataFrame, rules: CleaningRules) -> pl.DataFrame:
    """Return the events with NUMBER, float64, and TEXT: one of them per event, none where the value is unusable.

    Parameters
    ----------
    events : DataFrame
        VARIABLE, VALUE, and UNIT and LABEL in lower case without nulls.
    rules : CleaningRules
        Raw variables are texts unless `numeric_maximum`.
    """
    texts = TEXTS if rules.numeric_maximum else RAW
    cleaned = [_clean_one(str(name), group, rules, texts) for (name,), group in events.group_by("VARIABLE")]
    return pl.concat(cleaned) if cleaned else _clean_one("Heart Rate", events, rules, texts)


def _clean_one(name: str, events: pl.DataFrame, rules: CleaningRules, texts: tuple[str, ...]) -> pl.DataFrame:
    if name in texts:
        return events.with_columns(NUMBER=pl.lit(None, dtype=pl.Float64), TEXT="VALUE")
    numbers = CLEAN.get(name, _number)(events, rules)
    if rules.clip_outliers:
        numbers = _clipped(name, numbers)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    return events.with_columns(pl.Series("NUMBER", numbers, nan_to_null=True), TEXT=pl.lit(None, dtype=pl.String))


def _floats(text: pl.Series) -> np.ndarray:
    """Return the numbers, NaN where a text is none."""
    numbers: np.ndarray = text.str.strip_chars().cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    return numbers


def _number(events: pl.DataFrame, rules: CleaningRules) -> np.ndarray:
    return _floats(events["VALUE"])


def _strict_number(events: pl.DataFrame, rules: CleaningRules) -> np.ndarray:
    value = events["VALUE"]
    return np.where(value.str.contains(_NUMBER).to_numpy(), _floats(value), np.nan)


def _oxygen_saturation(events: pl.DataFrame, rules: CleaningRules) -> np.ndarray:
    numbers = _strict_number(events, rules)
    return np.where(numbers <= 1, numbers * 100.0, numbers)


def _capillary_refill(events: pl.DataFrame, rules: CleaningRules) -> np.ndarray:
    value = events["VALUE"].replace_strict(_REFILL, default=None, return_dtype=pl.Float64)
    return value.fill_null(np.nan).to_numpy()


def _blood_pressure(position: int) -> Clean:
    def clean(events: pl.DataFrame, rules: CleaningRules) -> np.ndarray:
        """Return one of the numbers of "120/80", or the number that stands alone."""
        value = events["VALUE"]
        pair = value.str.extract(r"^(\d+)/(\d+)$", position)
        return _floats(pl.select(pl.coalesce(pair, value)).to_series())

    return clean


def _inspired_oxygen(events: pl.DataFrame, rules: CleaningRules) -> np.ndarray:
    numbers = _floats(events["VALUE"])
    percent = ~_contains(events, "UNIT", "torr")
    if rules.fractions_stay:
        percent &= numbers > 1.0
    return np.where(percent, numbers / 100.0, numbers)  # numpy: polars multiplies by the rounded reciprocal


def _temperature(events: pl.DataFrame, rules: CleaningRules) -> np.ndarray:
    numbers = _floats(events["VALUE"])
    fahrenheit = numbers >= 79
    if rules.fahrenheit_by_unit:
        fahrenheit |= (events["UNIT"] + " " + events["LABEL"]).str.contains(_FAHRENHEIT).to_numpy()
    return np.where(fahrenheit, (numbers - 32) * 5.0 / 9, numbers)


def _weight(events: pl.DataFrame, rules: CleaningRules) -> np.ndarray:
    numbers = _floats(events["VALUE"])
    ounces = _contains(events, "UNIT", "oz") | _contains(events, "LABEL", "oz")
    pounds = ounces | _contains(events, "UNIT", "lb") | _contains(events, "LABEL", "lb")
    numbers = np.where(ounces, numbers / 16.0, numbers)
    return np.where(pounds, numbers * 0.453592, numbers)


def _height(events: pl.DataFrame, rules: CleaningRules) -> np.ndarray:
    numbers = _floats(events["VALUE"])
    inches = _contains(events, "UNIT", "in") | _contains(events, "LABEL", "in")
    return np.where(inches, np.round(numbers * 2.54), numbers)


def _contains(events: pl.DataFrame, column: str, text: str) -> np.ndarray:
    found: np.ndarray = events[column].str.contains(text, literal=True).to_numpy()
    return found


def _clipped(name: str, numbers: np.ndarray) -> np.ndarray:
    """Return the numbers without outliers, and within the valid range of the published table (where it has one)."""
    low, valid_low, valid_high, high = next(v.range for v in mimic3.variables() if v.name == name)
    numbers = np.where((numbers < low) | (numbers > high), np.nan, numbers)
    return np.clip(
        numbers, -np.inf if np.isnan(valid_low) else valid_low, np.inf if np.isnan(valid_high) else valid_high
    )


CLEAN: dict[str, Clean] = {
    "Capillary refill rate": _capillary_refill,
    "Systolic blood pressure": _blood_pressure(1),
    "Diastolic blood pressure": _blood_pressure(2),
    "Fraction inspired oxygen": _inspired_oxygen,
    "Glucose": _strict_number,
    "pH": _strict_number,
    "Oxygen saturation": _oxygen_saturation,
    "Temperature": _temperature,
    "Weight": _weight,
    "Height": _height,
}
