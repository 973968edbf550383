"""`EventDataset`: windows of daily documents before labelled days, with guards against looking ahead."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from natwise.core.validation import check_array, check_integer, check_same_length, shorten
from natwise.timeseries.event_precursors._windows import check_words

KINDS = ("text", "words", "vectors", "excerpts")


@dataclass(frozen=True, eq=False)
class EventDataset:
    """Instances: the documents of `history` days, and whether an event happens `lead` days after the last of them.

    Made by `from_documents`; several series (countries, cities) are put together by `concatenate`.

    Attributes
    ----------
    documents : tuple
        All documents, in the order given; parts of a split share them.
    kind : {"text", "words", "vectors", "excerpts"}
        What a document is: a text, word ids, one vector, or one vector per excerpt (sentence).
    dates : DatetimeIndex
        Day of each document.
    day_documents : tuple of ndarray
        Positions of the documents of each day.
    window_days : ndarray of shape (n, history)
        Days of each instance, earliest first, as positions in `day_documents`; the last is the target day - `lead`.
    target_dates : DatetimeIndex of length n
        The day each instance forecasts.
    y : ndarray of shape (n,), int
        1 for an event on that day.
    past_labels : ndarray of shape (n, history)
        Labels of the days of the window, known when the forecast is made; NaN where there are none.
    series : ndarray of shape (n,), int
        Which of the concatenated datasets an instance comes from.
    history, lead : int
        As given.
    vocab_size : int or None
        Number of word ids when documents are word ids.

    Examples
    --------
    >>> days = pd.date_range("2024-01-01", periods=6)
    >>> labels = pd.Series([0, 0, 1, 0, 1, 0], index=days)
    >>> data = EventDataset.from_documents(days, ["calm", "march called", "march", "talks", "x", "y"], labels, 2, 1)
    >>> len(data), data.windows[0], data.target_dates[0].day, data.y
    (4, [[0], [1]], 3, array([1, 0, 1, 0]))
    """

    documents: tuple[Any, ...]
    kind: str
    dates: pd.DatetimeIndex
    day_documents: tuple[np.ndarray, ...]
    window_days: np.ndarray
    target_dates: pd.DatetimeIndex
    y: np.ndarray
    past_labels: np.ndarray
    series: np.ndarray
    history: int
    lead: int
    vocab_size: int | None = None

    @classmethod
    def from_documents(
        cls, dates: Any, documents: Any, labels: pd.Series, history: int, lead: int, *, vocab_size: int | None = None
    ) -> EventDataset:
        """Cut windows from time-stamped documents.

        There is an instance for every labelled day whose window lies after the first day of documents or labels. Days
        without documents are kept as empty: the model masks them.

        Parameters
        ----------
        dates : sequence of dates, length n_documents
            Anything `pandas.DatetimeIndex` takes, in order; many documents may share a day.
        documents : sequence of length n_documents
            Texts; or sequences of word ids; or vectors, as an array (n_documents, width); or of each document an
            array (n_excerpts, width) of floats.
        labels : Series of 0 and 1
            By day, in order, each day once. Days may be missing.
        history : int
            Days in a window.
        lead : int
            Days from the last day of a window to the day it forecasts, at least 1: documents of the target day itself
            would report the event.
        vocab_size : int, optional
            Number of word ids. Default: the largest that occurs, and one.

        Raises
        ------
        TypeError, ValueError
            For unsorted dates, days labelled twice, a mix of time zones, labels that are not 0 or 1, ``lead < 1``, word
            ids outside the vocabulary, documents of mixed kinds, or when no labelled day has a full window before it.
        """
        history = check_integer("history", history, minimum=1)
        lead = check_integer("lead", lead, minimum=1)
        days, zone = _days("dates", dates)
        kind, documents, vocab_size = _documents(documents, vocab_size)
        check_same_length(dates=days, documents=documents)
        if not len(documents):
            raise ValueError("documents must hold at least one document, got none")
        known = _labels(labels, zone)
        start = min(days[0], known.index[0])
        targets = known.index[known.index >= start + pd.Timedelta(days=history + lead - 1)]
        if not len(targets):
            raise ValueError(
                f"labels must reach {history + lead} days (history {history} + lead {lead}) from {start.date()} on, "
                f"got labels until {known.index[-1].date()}"
            )
        n_days = (targets[-1] - start).days - lead + 1
        position = (days - start).days.to_numpy()
        edges = np.searchsorted(position, np.arange(n_days + 1))
        last = (targets - start).days.to_numpy() - lead
        window_days = last[:, None] + np.arange(1 - history, 1)
        past = known.reindex(start + pd.to_timedelta(np.arange(n_days), unit="D")).to_numpy(dtype=float)
        return cls(
            documents=documents,
            kind=kind,
            dates=days,
            day_documents=tuple(np.arange(a, b) for a, b in pairwise(edges)),
            window_days=window_days,
            target_dates=targets.tz_localize(zone, nonexistent="shift_forward", ambiguous=True),
            y=known[targets].to_numpy(dtype=np.int64),
            past_labels=past[window_days],
            series=np.zeros(len(targets), dtype=np.int64),
            history=history,
            lead=lead,
            vocab_size=vocab_size,
        )

    @classmethod
    def concatenate(cls, datasets: Sequence[EventDataset]) -> EventDataset:
        """Put several series of the same kind, history and lead into one dataset, numbered in `series`."""
        if (
            not isinstance(datasets, Sequence)
            or not datasets
            or not all(isinstance(part, EventDataset) for part in datasets)
        ):
            raise TypeError(f"datasets must be a list of EventDataset, got {shorten(datasets)}")
        for name in ("kind", "history", "lead"):
            values = {getattr(part, name) for part in datasets}
            if len(values) > 1:
                raise ValueError(f"datasets must have the same {name}, got {sorted(values)}")
        if len({str(part.target_dates.tz) for part in datasets}) > 1:
            raise ValueError("datasets must have the same time zone")
        first_document = np.cumsum([0, *(len(part.documents) for part in datasets)])
        first_day = np.cumsum([0, *(len(part.day_documents) for part in datasets)])
        first_series = np.cumsum([0, *(int(part.series.max(initial=-1)) + 1 for part in datasets)])
        sizes = [part.vocab_size for part in datasets if part.vocab_size is not None]
        indices = [part.target_dates for part in datasets]
        return cls(
            documents=tuple(document for part in datasets for document in part.documents),
            kind=datasets[0].kind,
            dates=_joined([part.dates for part in datasets]),
            day_documents=tuple(
                day + shift for part, shift in zip(datasets, first_document, strict=False) for day in part.day_documents
            ),
            window_days=np.concatenate([part.window_days + n for part, n in zip(datasets, first_day, strict=False)]),
            target_dates=_joined(indices),
            y=np.concatenate([part.y for part in datasets]),
            past_labels=np.concatenate([part.past_labels for part in datasets]),
            series=np.concatenate([part.series + n for part, n in zip(datasets, first_series, strict=False)]),
            history=datasets[0].history,
            lead=datasets[0].lead,
            vocab_size=max(sizes) if sizes else None,
        )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Any) -> EventDataset:
        """Return the dataset of some instances: a slice, a mask or positions."""
        rows = np.arange(len(self))[rows].reshape(-1)
        return replace(
            self,
            window_days=self.window_days[rows],
            target_dates=self.target_dates[rows],
            y=self.y[rows],
            past_labels=self.past_labels[rows],
            series=self.series[rows],
        )

    def __repr__(self) -> str:
        return (
            f"EventDataset({len(self)} instances, {int(self.y.sum())} events, {len(self.documents)} documents "
            f"({self.kind}), history={self.history}, lead={self.lead})"
        )

    @property
    def windows(self) -> list[list[list[int]]]:
        """Of each instance the days, earliest first, of each day the positions of its documents."""
        lists = [documents.tolist() for documents in self.day_documents]
        return [[lists[day] for day in days] for days in self.window_days]

    @property
    def has_documents(self) -> np.ndarray:
        """Whether any day of the window has a document, (n,)."""
        filled = np.array([len(documents) > 0 for documents in self.day_documents], dtype=bool)
        return filled[self.window_days].any(axis=1)

    def used_documents(self) -> np.ndarray:
        """Return the sorted positions of the documents that occur in a window."""
        days = np.unique(self.window_days)
        return np.unique(np.concatenate([self.day_documents[day] for day in days] or [np.empty(0, dtype=np.int64)]))

    def split(self, cutoff: Any, shuffle: bool = False) -> tuple[EventDataset, EventDataset]:
        """Split by time: forecasts of days from `cutoff` on, and what was known when the first of them was made.

        A forecast of `cutoff` is made `lead` days before. Labels between the two were not known then; with
        ``lead > 1`` these days are in neither part.

        Parameters
        ----------
        cutoff : date
            First target day of the later part.
        shuffle : bool
            Must be False: a random split of a time series trains on the future, and on the same documents as it tests.

        Returns
        -------
        earlier, later : EventDataset

        Raises
        ------
        ValueError
            If `shuffle` is not False, or a part would be empty.
        """
        if shuffle is not False:
            raise ValueError(
                f"shuffle must be False, got {shuffle!r}: a random split of a time series leaks the future"
            )
        day = _cutoff(cutoff, self.target_dates)
        later = np.asarray(self.target_dates >= day)
        earlier = np.asarray(self.target_dates <= day - pd.DateOffset(days=self.lead))
        for name, rows in {"before": earlier, "from": later}.items():
            if not rows.any():
                span = f"{self.target_dates.min().date()} to {self.target_dates.max().date()}"
                raise ValueError(f"cutoff must leave target days {name} it, got {day.date()} for days {span}")
        return self[earlier], self[later]


def check_dataset(name: str, value: Any) -> EventDataset:
    """Return `value` when it is an `EventDataset` with an instance."""
    if not isinstance(value, EventDataset):
        raise TypeError(f"{name} must be an EventDataset, got {shorten(value)} ({type(value).__name__})")
    if not len(value):
        raise ValueError(f"{name} must hold at least one instance, got none")
    return value


def check_trainable(name: str, value: Any) -> EventDataset:
    """Return the instances of a dataset that have a document, when both labels are among them."""
    train = check_dataset(name, value)
    train = train[train.has_documents]
    if len(np.unique(train.y)) < 2:
        found = f"only {train.y[0]} in {len(train)} instances" if len(train) else "no instance with documents"
        raise ValueError(f"{name} must hold both labels in its training period, got {found}")
    return train


def _joined(indices: Sequence[pd.DatetimeIndex]) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(indices[0].append(list(indices[1:])))


def check_times(name: str, values: Any) -> pd.DatetimeIndex:
    """Return times in one time zone or none, in the order given."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of dates, got {shorten(values)}")
    values = list(values) if not isinstance(values, (pd.Index, pd.Series, np.ndarray)) else values
    zones = {str(value.tzinfo) for value in values if getattr(value, "tzinfo", None) is not None}
    if zones and any(getattr(value, "tzinfo", None) is None for value in values):
        raise ValueError(f"{name} must all have a time zone or all have none, got a mix")
    if len(zones) > 1:
        raise ValueError(f"{name} must be in one time zone, got {sorted(zones)}")
    for value in values:
        if isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be dates, got the number {value!r}")
    try:
        times = pd.DatetimeIndex(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be dates, got {shorten(values)} ({shorten(str(error))})") from None
    if times.hasnans:
        raise ValueError(f"{name} must not be missing, got NaT at position {int(np.argmax(times.isna()))}")
    return times


def _days(name: str, values: Any) -> tuple[pd.DatetimeIndex, Any]:
    """Return times, which must be sorted, as days without a zone, and the zone."""
    times = check_times(name, values)
    days = times.tz_localize(None).normalize()
    if not days.is_monotonic_increasing:
        i = int(np.argmax(np.diff(days.asi8) < 0))
        raise ValueError(f"{name} must be sorted, got {days[i].date()} before {days[i + 1].date()} at position {i}")
    return days, times.tz


def _labels(labels: Any, zone: Any) -> pd.Series:
    if not isinstance(labels, pd.Series):
        raise TypeError(f"labels must be a pandas Series by date, got {type(labels).__name__}")
    if not len(labels):
        raise ValueError("labels must hold at least one day, got none")
    days, label_zone = _days("labels", labels.index)
    if str(label_zone) != str(zone):
        raise ValueError(f"labels must be in the time zone of dates, got {label_zone} and {zone}")
    if not days.is_unique:
        raise ValueError(f"labels must have each day once, got {days[days.duplicated()][0].date()} twice")
    values = check_array("labels", labels.to_numpy(), shape=("n_days",), dtype=np.float64)
    wrong = values[(values != 0) & (values != 1)]
    if len(wrong):
        raise ValueError(f"labels must be 0 or 1, got {wrong[0]}")
    return pd.Series(values.astype(np.int64), index=days)


def _documents(documents: Any, vocab_size: int | None) -> tuple[str, tuple[Any, ...], int | None]:
    """Return the kind of the documents, the documents in canonical form, and the number of word ids."""
    if isinstance(documents, (str, bytes)) or not hasattr(documents, "__len__"):
        raise TypeError(f"documents must be a sequence of documents, got {shorten(documents)}")
    if getattr(documents, "ndim", 1) > 1 or hasattr(documents, "toarray"):
        return "vectors", tuple(check_array("documents", documents, shape=("n_documents", "width"))), None
    documents = tuple(documents)
    n_texts = sum(isinstance(document, str) for document in documents)
    if n_texts:
        if n_texts < len(documents):
            stranger = next(document for document in documents if not isinstance(document, str))
            raise TypeError(f"documents must be texts throughout, got {shorten(stranger)} among {n_texts} texts")
        return "text", documents, None
    if any(document is None for document in documents):
        raise TypeError("documents must be texts, word ids or vectors, got None")
    arrays = tuple(check_array("documents", document) for document in documents)
    dimensions = {array.ndim for array in arrays}
    if dimensions - {1, 2} or len(dimensions) > 1:
        raise ValueError(f"documents must all be word ids, vectors or arrays of vectors, got {sorted(dimensions)} axes")
    if dimensions == {1} and all(_holds_integers(document) for document in documents):
        return _word_documents(documents, vocab_size)
    widths = {array.shape[-1] for array in arrays}
    if len(widths) > 1 or any(len(array) == 0 for array in arrays):
        raise ValueError(f"documents must have vectors of one length, at least one each, got lengths {sorted(widths)}")
    return ("vectors" if dimensions == {1} else "excerpts"), arrays, None


def _holds_integers(document: Any) -> bool:
    dtype = getattr(document, "dtype", None)
    if dtype is not None:
        return not str(dtype).removeprefix("torch.").startswith("float")
    return all(isinstance(item, (int, np.integer)) for item in document)


def _word_documents(documents: tuple[Any, ...], vocab_size: int | None) -> tuple[str, tuple[Any, ...], int]:
    words = tuple(check_words("documents", document) for document in documents)
    largest = max((int(document.max()) for document in words), default=0)
    if vocab_size is None:
        return "words", words, largest + 1
    if largest >= check_integer("vocab_size", vocab_size, minimum=1):
        raise ValueError(f"documents must hold word ids below vocab_size={vocab_size}, got {largest}")
    return "words", words, vocab_size


def _cutoff(cutoff: Any, dates: pd.DatetimeIndex) -> pd.Timestamp:
    if isinstance(cutoff, (bool, int, float)):
        raise TypeError(f"cutoff must be a date, got {cutoff!r}")
    try:
        day = pd.Timestamp(cutoff)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cutoff must be a date, got {shorten(cutoff)} ({shorten(str(error))})") from None
    if day is pd.NaT:
        raise ValueError("cutoff must be a date, got NaT")
    if day.tzinfo is None:
        return day.normalize().tz_localize(dates.tz)
    if str(day.tzinfo) != str(dates.tz):
        raise ValueError(f"cutoff must be in the time zone of the dates, got {day.tzinfo} and {dates.tz}")
    return day.normalize()
