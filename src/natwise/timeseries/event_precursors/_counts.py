"""Sums of what documents hold over days and windows, as sparse matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from natwise.timeseries.event_precursors._dataset import EventDataset


def day_sums(dataset: EventDataset, of_documents: Any) -> Any:
    """Return sums over the documents of each day, (n_days, k), of rows for `dataset.used_documents()`."""
    used = dataset.used_documents()
    sizes = [len(day) for day in dataset.day_documents]
    documents = np.concatenate(dataset.day_documents)
    inside = np.isin(documents, used)
    day, document = np.repeat(np.arange(len(sizes)), sizes)[inside], np.searchsorted(used, documents[inside])
    table = sp.csr_array((np.ones(len(day)), (day, document)), shape=(len(sizes), len(used)))
    return (table @ sp.csr_array(of_documents)).tocsr()


def window_sums(dataset: EventDataset, of_days: Any) -> Any:
    """Return sums over the days of each instance's window, (n, k), of rows for all days."""
    n = len(dataset)
    entries = np.repeat(np.arange(n), dataset.history), dataset.window_days.ravel()
    shape = n, len(dataset.day_documents)
    return (sp.csr_array((np.ones(dataset.window_days.size), entries), shape=shape) @ of_days).tocsr()


def word_associations(dataset: EventDataset, documents: list[np.ndarray], n_words: int) -> np.ndarray:
    """Return how much more often each word stands in the windows of events, (n_words,), in standard errors.

    Windows overlap, so that a word is counted as often as there are windows without overlap.

    Parameters
    ----------
    dataset : EventDataset
        The training period.
    documents : list of ndarray
        Word ids of its used documents.
    n_words : int
        Size of the vocabulary.
    """
    owner = np.repeat(np.arange(len(documents)), [len(words) for words in documents])
    words = np.concatenate(documents)
    table = sp.csr_array((np.ones(len(words)), (owner, words)), shape=(len(documents), n_words))
    present = window_sums(dataset, day_sums(dataset, table)) > 0
    event = dataset.y == 1
    with_event, without = (np.asarray(present[rows].mean(axis=0)).ravel() for rows in (event, ~event))
    share = np.asarray(present.mean(axis=0)).ravel()
    independent = len(dataset) / dataset.history
    variance = np.maximum(share * (1 - share), 1 / len(dataset)) / (independent * event.mean() * (1 - event.mean()))
    return (with_event - without) / np.sqrt(variance)
