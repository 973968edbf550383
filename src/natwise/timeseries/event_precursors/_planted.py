"""A corpus whose precursors are known, to test forecasters on."""

from __future__ import annotations

import numpy as np
import pandas as pd

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_integer, check_real
from natwise.timeseries.event_precursors._dataset import EventDataset

PLANTED_WORD = "uprising"


def planted_precursors(
    n_days: int = 600,
    *,
    history: int = 5,
    lead: int = 1,
    documents_per_day: int = 3,
    words_per_document: int = 8,
    vocab_size: int = 60,
    base_rate: float = 0.35,
    random_state: RandomState = None,
) -> tuple[EventDataset, np.ndarray]:
    """Draw texts of random words, of which some hold the word "uprising": there is an event if any of the window does.

    Parameters
    ----------
    n_days : int
        Length of the period.
    history, lead : int
        See `EventDataset.from_documents`.
    documents_per_day, words_per_document : int
        At most; a day has at least none, a document at least half.
    vocab_size : int
        Number of other words.
    base_rate : float
        Share of instances with an event, on average.
    random_state : int, Generator, RandomState, Streams or None
        Draws everything.

    Returns
    -------
    dataset : EventDataset
    planted : ndarray of bool
        Whether each document holds the word.
    """
    sizes = {"history": history, "lead": lead, "documents_per_day": documents_per_day, "vocab_size": vocab_size}
    for name, value in sizes.items():
        check_integer(name, value, minimum=1)
    check_integer("n_days", n_days, minimum=history + lead)
    check_integer("words_per_document", words_per_document, minimum=2)
    check_real("base_rate", base_rate, minimum=0.0, maximum=1.0, exclusive=True)
    rng = Streams.of(random_state).numpy("planted")
    days = pd.date_range("2020-01-01", periods=n_days)
    day = np.repeat(np.arange(n_days), rng.integers(documents_per_day + 1, size=n_days))
    lengths = rng.integers(words_per_document // 2, words_per_document + 1, size=len(day))
    texts = [[f"word{number}" for number in rng.integers(vocab_size, size=length)] for length in lengths]
    filled = np.unique(day)
    chosen = filled[rng.random(len(filled)) < 1 - (1 - base_rate) ** (1 / history)]
    planted = np.zeros(len(day), dtype=bool)
    for number in chosen:
        document = rng.choice(np.flatnonzero(day == number))
        texts[document][rng.integers(len(texts[document]))] = PLANTED_WORD
        planted[document] = True
    rises = np.isin(np.arange(n_days), chosen)
    events = [rises[max(0, d - lead - history + 1) : max(0, d - lead + 1)].any() for d in range(n_days)]
    documents = [" ".join(words) for words in texts]
    labels = pd.Series(np.array(events, dtype=int), index=days)
    return EventDataset.from_documents(days[day], documents, labels, history, lead), planted
