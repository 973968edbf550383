"""Coded political events of 2014 as documents: will a country see more violence tomorrow than usual."""

from __future__ import annotations

import os
import re

import numpy as np
import pandas as pd

from natwise.core.io import load_npz
from natwise.datasets import local
from natwise.timeseries.event_precursors._dataset import EventDataset

ICEWS = "events/icews14_events.npz"
FEWEST_EVENTS, MEDIAN_DAYS = 300, 200
# fmt: off
COUNTRIES = (
    "Afghanistan", "China", "Colombia", "Egypt", "India", "Iran", "Iraq", "Israel", "Kenya", "Lebanon",
    "Libya", "Mexico", "Nigeria", "Pakistan", "Philippines", "Russia", "Somalia", "South Sudan", "Sudan",
    "Syria", "Thailand", "Turkey", "Ukraine", "Yemen",
)
# fmt: on
_VIOLENCE = re.compile(  # assault, fight and mass violence: the roots 18 to 20 of the CAMEO code
    "violence|military force|fight|bombing|assassinate|abduct|assault|torture|aerial weapons|mass killings|occupy"
    "|biological",
    re.IGNORECASE,
)
_WORDS_ONLY = re.compile("^(threaten|appeal|express|demand|accuse|reject|investigate)", re.IGNORECASE)


def icews_violence(data_dir: str | os.PathLike[str] | None, history: int, lead: int) -> EventDataset:
    """Return the windows of 22 countries: every coded event that involves a country is one of its documents.

    A document is a text of the relation, the role and the kind of the country's actor, and the other side. The label of
    a day is 1 when the number of violent events that involve the country exceeds its median over the first 200
    days. Of 24 countries in the news of the year, those with at least 300 events are taken.
    """
    events = load_npz(local.find(ICEWS, data_dir))
    actors, relations = events["entity_names"], events["relation_names"]
    country = np.array([_country(name) for name in actors])
    violent = np.array([bool(_VIOLENCE.search(r)) and not _WORDS_ONLY.search(r) for r in relations])
    order = np.argsort(events["day"], kind="stable")
    day, source, relation, target = (events[name][order] for name in ("day", "source", "relation", "target"))
    sides = country[source], country[target]
    dates = pd.Timestamp("2014-01-01") + pd.to_timedelta(np.arange(365), unit="D")
    parts = []
    for name in COUNTRIES:
        rows = np.flatnonzero((sides[0] == name) | (sides[1] == name))
        if len(rows) < FEWEST_EVENTS:
            continue
        number = np.bincount(day[rows], violent[relation[rows]], minlength=365)
        labels = pd.Series((number > np.median(number[:MEDIAN_DAYS])).astype(int), index=dates)
        texts = [_text(name, actors[source[i]], relations[relation[i]], actors[target[i]]) for i in rows]
        parts.append(EventDataset.from_documents(dates[day[rows]], texts, labels, history, lead))
    return EventDataset.concatenate(parts)


def _country(name: str) -> str:
    """Return the country in the parentheses of an actor's name, or the name itself."""
    found = re.search(r"\(([^()]*)\)$", name)
    return found.group(1) if found else name


def _text(country: str, source: str, relation: str, target: str) -> str:
    """Return the relation as one word, then the actors: one word each, without the country's own name."""
    words = [relation, *(actor.replace(f"({country})", "home") for actor in (source, target))]
    return " ".join(re.sub(r"\W+", "_", word).strip("_") for word in words)
