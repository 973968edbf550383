"""Which documents, and which excerpts of them, announced an event: by attention and by occlusion."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from natwise.core.validation import check_integer
from natwise.timeseries.event_precursors._corpus import Corpus
from natwise.timeseries.event_precursors._dataset import EventDataset
from natwise.timeseries.event_precursors._model import HierarchicalAttentionLSTM
from natwise.timeseries.event_precursors._windows import Windows

CHUNK = 4096  # windows with something left out that are read at a time


class Scores(NamedTuple):
    """Scores of documents, or of excerpts, one entry each.

    Attributes
    ----------
    row, document, excerpt : ndarray of int
        Instance, position of the document in the dataset, and position in the document (0 for whole documents).
    score : ndarray of float
    """

    row: np.ndarray
    document: np.ndarray
    excerpt: np.ndarray
    score: np.ndarray


NO_SCORES = Scores(*(np.empty(0, dtype) for dtype in (np.int64, np.int64, np.int64, np.float64)))


@torch.no_grad()
def attention_scores(model: HierarchicalAttentionLSTM, corpus: Corpus, rows: np.ndarray, excerpts: bool) -> Scores:
    """Return beta * alpha of every document of some instances, or beta * alpha * gamma of every excerpt."""
    windows = corpus.windows(rows)
    output = model.read(windows)
    places = _places(windows)
    score = (output.beta[:, :, None] * output.alpha[windows.days])[places.cell]
    ids = corpus.document_ids(rows)
    if not excerpts:
        row, document, excerpt = places.row, places.document, torch.zeros_like(places.row)
    else:
        inside = torch.arange(output.gamma.shape[1], device=score.device) < windows.lengths[places.document][:, None]
        score = (score[:, None] * output.gamma[places.document])[inside]
        place, excerpt = torch.nonzero(inside, as_tuple=True)
        row, document = places.row[place], places.document[place]
    return Scores(rows[row.cpu().numpy()], ids[document.cpu().numpy()], excerpt.cpu().numpy(), score.cpu().numpy())


@torch.no_grad()
def occlusion_scores(
    model: HierarchicalAttentionLSTM, corpus: Corpus, rows: np.ndarray, shift: float, base_rate: float
) -> Scores:
    """Return p(all) - p(without the document) of every document of some instances.

    Everything from the document's day on is computed anew; a window left without documents has the base rate.
    """
    windows = corpus.windows(rows)
    documents, _ = model.encode_documents(windows.units, windows.lengths)
    reader = _Reader(model, windows, documents, shift, base_rate)
    places = _places(windows)
    without = windows.day_documents[places.day].clone()
    without[torch.arange(len(without), device=without.device), places.slot] = -1
    score = reader.change(places, without, documents)
    ids = corpus.document_ids(rows)
    row, document = places.row.cpu().numpy(), places.document.cpu().numpy()
    return Scores(rows[row], ids[document], np.zeros(len(row), dtype=np.int64), score)


@torch.no_grad()
def excerpt_occlusion_scores(
    model: HierarchicalAttentionLSTM,
    corpus: Corpus,
    chosen: Scores,
    shift: float,
    base_rate: float,
) -> Scores:
    """Return p(all) - p(without the excerpt) of every word or sentence of the chosen documents.

    The document is read anew without the excerpt; one that has no other is left out as a whole.
    """
    rows, local_row = np.unique(chosen.row, return_inverse=True)
    windows = corpus.windows(rows)
    documents, _ = model.encode_documents(windows.units, windows.lengths)
    ids = corpus.document_ids(rows)
    wanted, which = np.unique(chosen.document, return_inverse=True)
    local = torch.as_tensor(np.searchsorted(ids, wanted), device=documents.device)
    variants, owner, excerpt = _without_each(windows, local)
    lengths = windows.lengths[local][owner] - 1
    shortened = documents.new_zeros(len(variants), documents.shape[1])
    left = lengths > 0
    if left.any():
        shortened[left] = model.encode_documents(variants[left], lengths[left])[0]
    first = np.searchsorted(owner.cpu().numpy(), np.arange(len(wanted) + 1))
    entries = [np.arange(first[w], first[w + 1]) for w in which]
    variant = torch.as_tensor(np.concatenate(entries), device=documents.device)
    row = torch.as_tensor(np.repeat(local_row, [len(e) for e in entries]), device=documents.device)
    places = _find(windows, row, local[owner[variant]])
    table = windows.day_documents[places.day].clone()
    table[torch.arange(len(table), device=table.device), places.slot] = torch.where(
        left[variant], len(documents) + variant, -1
    )
    reader = _Reader(model, windows, documents, shift, base_rate)
    score = reader.change(places, table, torch.cat([documents, shortened]))
    document = wanted[owner[variant].cpu().numpy()]
    return Scores(rows[row.cpu().numpy()], document, excerpt[variant].cpu().numpy(), score)


def precursor_frame(
    dataset: EventDataset,
    row: np.ndarray,
    document: np.ndarray,
    score: np.ndarray,
    top_k: int | None,
    **columns: np.ndarray,
) -> pd.DataFrame:
    """Return the `top_k` entries of every instance with the highest score, best first; all when None."""
    if top_k is not None:
        check_integer("top_k", top_k, minimum=1)
    frame = pd.DataFrame({"instance": row, "document": document, "score": score, **columns})
    frame = frame.sort_values(["instance", "score"], ascending=[True, False], kind="stable")
    if top_k is not None:
        frame = frame.groupby("instance").head(top_k)
    frame["date"] = dataset.dates[frame["document"]]
    frame["target_date"] = dataset.target_dates[frame["instance"]]
    return frame.reset_index(drop=True)


def mean_scores(members: list[Scores]) -> Scores:
    """Return the mean of what several models say about the same entries."""
    return members[0]._replace(score=np.mean([scores.score for scores in members], axis=0))


def best_scores(scores: Scores, top_k: int | None) -> Scores:
    """Return the `top_k` entries of every instance with the highest score; all when None."""
    order = np.lexsort((-scores.score, scores.row))
    first = np.searchsorted(scores.row[order], scores.row[order])
    kept = order if top_k is None else order[np.arange(len(order)) - first < top_k]
    return Scores(*(values[kept] for values in scores))


class _Places(NamedTuple):
    """Where documents stand: instance, place of the day in its window, day, slot in the day, and the document."""

    row: Tensor
    time: Tensor
    day: Tensor
    slot: Tensor
    document: Tensor

    @property
    def cell(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.row, self.time, self.slot


def _places(windows: Windows) -> _Places:
    table = windows.day_documents[windows.days]
    row, time, slot = torch.nonzero(table >= 0, as_tuple=True)
    return _Places(row, time, windows.days[row, time], slot, table[row, time, slot])


def _find(windows: Windows, row: Tensor, document: Tensor) -> _Places:
    """Return where documents stand in the windows of given instances."""
    day, slot = torch.nonzero(windows.day_documents >= 0, as_tuple=True)
    home = torch.empty(len(windows.lengths), 2, dtype=torch.int64, device=day.device)
    home[windows.day_documents[day, slot]] = torch.stack([day, slot], dim=1)
    day, slot = home[document].T
    time = (windows.days[row] == day[:, None]).to(torch.int8).argmax(dim=1)
    return _Places(row, time, day, slot, document)


def _without_each(windows: Windows, documents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the units of documents with each unit left out in turn, the document (as a position) and the unit."""
    lengths = windows.lengths[documents]
    owner, excerpt = torch.nonzero(
        torch.arange(windows.units.shape[1], device=lengths.device) < lengths[:, None], as_tuple=True
    )
    keep = torch.arange(windows.units.shape[1] - 1, device=lengths.device).expand(len(owner), -1)
    keep = keep + (keep >= excerpt[:, None])
    units = windows.units[documents][owner]
    if units.ndim == 3:
        return torch.take_along_dim(units, keep[..., None], dim=1), owner, excerpt
    return torch.take_along_dim(units, keep, dim=1), owner, excerpt


class _Reader:
    """Reads windows in which one day was changed."""

    def __init__(
        self, model: HierarchicalAttentionLSTM, windows: Windows, documents: Tensor, shift: float, base_rate: float
    ):
        self.model, self.windows, self.shift, self.base_rate = model, windows, shift, base_rate
        self.days, _ = model.encode_days(documents, windows.day_documents)
        self.inputs = model.join_days(self.days, windows)
        self.whole = self._probability(self.inputs, windows.present)

    def change(self, places: _Places, tables: Tensor, documents: Tensor) -> np.ndarray:
        """Return how much the probability falls when the day of each place has the documents of its table row."""
        falls = [np.empty(0)]
        for part in torch.arange(len(places.row), device=documents.device).split(CHUNK):
            row, time = places.row[part], places.time[part]
            vectors, present = self.inputs[row], self.windows.present[row]  # copies
            each = torch.arange(len(part), device=documents.device)
            vectors[each, time, : self.days.shape[1]] = self.model.encode_days(documents, tables[part])[0]
            present[each, time] = (tables[part] >= 0).any(dim=1)
            falls.append((self.whole[row] - self._probability(vectors, present)).cpu().numpy())
        return np.concatenate(falls)

    def _probability(self, vectors: Tensor, present: Tensor) -> Tensor:
        probability = torch.sigmoid(self.model.read_days(vectors, present)[0].double() - self.shift)
        return torch.where(present.any(dim=1), probability, self.base_rate)
