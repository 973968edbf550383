"""`EventForecaster`: trains the hierarchical attention LSTM on an `EventDataset` and names the precursors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from natwise.core.random import RandomState, Streams
from natwise.core.training import Trainer, TrainingHistory
from natwise.core.validation import check_device, check_flag, check_integer, check_option, check_real
from natwise.timeseries.event_precursors._baselines import later_part
from natwise.timeseries.event_precursors._corpus import Blocks, Corpus
from natwise.timeseries.event_precursors._counts import word_associations
from natwise.timeseries.event_precursors._dataset import EventDataset, check_dataset, check_trainable
from natwise.timeseries.event_precursors._encoders import TextEncoder, Vectors, WordIds, check_encoder, new_vectors
from natwise.timeseries.event_precursors._model import HierarchicalAttentionLSTM
from natwise.timeseries.event_precursors._precursors import (
    NO_SCORES,
    Scores,
    attention_scores,
    best_scores,
    excerpt_occlusion_scores,
    mean_scores,
    occlusion_scores,
    precursor_frame,
)

MARK = 0.5  # length of an embedding per standard error of association
LONGEST_BLOCK = 32  # consecutive instances in a step; more would save little more encoding
ROWS = 256  # instances read at a time in forecasting


class EventForecaster(BaseEstimator):
    """Forecasts events from the documents of the days before, and says which of them announced the event.

    Documents become vectors, by a word LSTM with attention or by any text encoder; attention over the documents of a
    day and an LSTM with attention over days give the probability: see `HierarchicalAttentionLSTM`. The weights of the
    epoch with the lowest loss on a later period are kept.

    A step takes consecutive days of a series, so that a document is encoded about once per epoch though up to `history`
    windows share it.

    Parameters
    ----------
    hidden_dim : int
        Units of the LSTMs, and length of word embeddings and attention queries.
    encoder : {"words", "bag_of_words"} or callable
        What texts become. ``"words"``: a vocabulary and a word LSTM, learned from the training documents;
        ``"bag_of_words"``: `BagOfWords`; a function: list of texts -> array (n_texts, width), such as the ``encode`` of
        a sentence embedder, which is not trained. Not used for documents that are vectors.
    sentences : bool
        Let the encoder make a vector of each sentence instead of the whole text: excerpts are then sentences.
    counts : bool
        Tell the model how many documents a day has: see `HierarchicalAttentionLSTM`.
    past_labels : bool
        Let the model see the labels of the days of the window, as the baselines do. Precursors are then what the
        documents say beyond them.
    n_members : int
        Models trained from different initial weights; forecasts and scores are their means.
    class_weight : {"balanced", None}
        Weigh both labels alike in training, for rare events. Probabilities are corrected for it afterwards.
    dropout : float
        On document vectors and before the last layer.
    weight_decay : float
        Of AdamW.
    max_epochs, batch_size : int
        Length of training and instances per step.
    learning_rate : float
        Of AdamW.
    patience : int, optional
        Stop after so many epochs without a lower validation loss.
    validation_fraction : float
        Share of the days, the last ones, held out to choose the epoch when `fit` gets no validation; 0 trains to
        the last epoch.
    min_documents : int
        Words of fewer training documents are treated as unknown words.
    max_words : int
        Words read of a document at most.
    device : str or torch.device
        Where to train and forecast.
    random_state : int, Generator, RandomState, Streams or None
        Seeds initial weights, order and dropout.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Attributes
    ----------
    models_ : list of HierarchicalAttentionLSTM
        The trained members, in evaluation mode.
    histories_ : list of TrainingHistory
        Their losses by epoch.
    base_rate_ : float
        Share of events in training, the forecast where no day of the window has a document.
    threshold_ : float
        `predict` says 1 above it: the base rate of the training instances when classes are weighed alike, else 0.5.

    Notes
    -----
    Sizes, regularisation and the attention's equations are ours: those of the paper are not public.

    Examples
    --------
    >>> from natwise.timeseries.event_precursors import planted_precursors
    >>> data, planted = planted_precursors(n_days=200, random_state=0)
    >>> train, test = data.split(data.target_dates[140])
    >>> model = EventForecaster(8, max_epochs=2, random_state=0).fit(train)
    >>> model.predict_proba(test).shape, list(model.precursors(test, top_k=1).columns[:3])
    ((55, 2), ['instance', 'document', 'score'])
    """

    def __init__(
        self,
        hidden_dim: int = 32,
        *,
        encoder: str | TextEncoder = "words",
        sentences: bool = False,
        counts: bool = True,
        past_labels: bool = False,
        n_members: int = 1,
        class_weight: str | None = "balanced",
        dropout: float = 0.3,
        weight_decay: float = 1e-4,
        max_epochs: int = 60,
        batch_size: int = 16,
        learning_rate: float = 0.01,
        patience: int | None = 20,
        validation_fraction: float = 0.2,
        min_documents: int = 2,
        max_words: int = 256,
        device: str | torch.device = "cpu",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.hidden_dim = hidden_dim
        self.encoder = encoder
        self.sentences = sentences
        self.counts = counts
        self.past_labels = past_labels
        self.n_members = n_members
        self.class_weight = class_weight
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.min_documents = min_documents
        self.max_words = max_words
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        dataset: EventDataset,
        validation: EventDataset | None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> EventForecaster:
        """Train on instances that have a document.

        Parameters
        ----------
        dataset : EventDataset
            The training period. Vocabulary and scale come from the documents of its windows alone.
        validation : EventDataset, optional
            A later period to choose the epoch on. Default: the last part of `dataset`.
        checkpoint : path, optional
            File to resume from when it exists, and to write while training; members after the first add their number.

        Raises
        ------
        TypeError, ValueError
            For wrong settings or data, labels that are all equal, or a validation period that does not lie later.
        """
        self._check()
        train, validation = self._periods(check_dataset("dataset", dataset), validation)
        self.base_rate_ = float(train.y.mean())
        train = check_trainable("dataset", train)
        self._set_class_weights(float(train.y.mean()))
        self.kind_ = train.kind
        self.encode_ = self._new_encoder()
        device = check_device("device", self.device)
        corpora = [Corpus(train, self.encode_.learn, device)]
        if validation is not None and validation.has_documents.any():
            corpora.append(Corpus(validation[validation.has_documents], self.encode_, device))
        self.models_, self.histories_ = [], []
        for member in range(self.n_members):
            streams = Streams.of(self.random_state).child(f"member-{member}")
            model = self._new_model(streams, corpora[0]).to(device)
            path = None if checkpoint is None else Path(f"{os.fspath(checkpoint)}{f'-{member}' if member else ''}")
            self.histories_.append(self._train(model, corpora, streams, path))
            self.models_.append(model)
        return self

    def predict_proba(self, dataset: EventDataset) -> np.ndarray:
        """Return the probabilities of no event and of an event.

        An instance without any document gets the base rate; `forecast` marks it.

        Parameters
        ----------
        dataset : EventDataset

        Returns
        -------
        ndarray of shape (n, 2)
        """
        event = self._probability(self._corpus(dataset))
        return np.stack([1 - event, event], axis=1)

    def predict(self, dataset: EventDataset) -> np.ndarray:
        """Return 1 for the instances whose probability of an event exceeds `threshold_`, (n,)."""
        return (self.predict_proba(dataset)[:, 1] > self.threshold_).astype(np.int64)

    def forecast(self, dataset: EventDataset) -> pd.DataFrame:
        """Return a row per instance: ``target_date, series, probability, event`` (0 or 1) and ``no_documents``."""
        probability = self.predict_proba(dataset)[:, 1]
        return pd.DataFrame(
            {
                "target_date": dataset.target_dates,
                "series": dataset.series,
                "probability": probability,
                "event": (probability > self.threshold_).astype(np.int64),
                "no_documents": ~dataset.has_documents,
            }
        )

    def precursors(
        self, dataset: EventDataset, top_k: int | None = 5, *, by: str = "attention", level: str = "document"
    ) -> pd.DataFrame:
        """Return what announced the event: the documents, or excerpts of them, with the highest scores.

        Attention says where the model looked; it is a weak explanation. Occlusion says how much the probability falls
        when the document or excerpt is left out and the rest is read anew.

        Parameters
        ----------
        dataset : EventDataset
            Select instances first, such as ``dataset[model.predict(dataset) == 1]``.
        top_k : int, optional
            Entries per instance; None for all.
        by : {"attention", "occlusion"}
            Attention scores sum to 1 over all entries of an instance.
        level : {"document", "excerpt"}
            Excerpts are words, sentences (`sentences`) or the vectors given. By occlusion, those of the `top_k`
            documents are tried.

        Returns
        -------
        DataFrame
            By ``instance`` (position in `dataset`), best first: ``document`` (position in ``dataset.documents``),
            ``score``, for excerpts ``excerpt`` (position in the document) and, of texts, ``text``; ``date``,
            ``target_date``. Instances without documents have no rows.
        """
        corpus = self._corpus(dataset)
        check_option("by", by, ("attention", "occlusion"))
        check_option("level", level, ("document", "excerpt"))
        if top_k is not None:
            check_integer("top_k", top_k, minimum=1)
        if level == "excerpt" and not self.models_[0].excerpts:
            raise ValueError("level must be 'document' when documents are single vectors, got 'excerpt'")
        parts = [NO_SCORES, *(self._scores(corpus, rows, top_k, by, level) for rows in _chunks(dataset))]
        row, document, excerpt, score = (np.concatenate(values) for values in zip(*parts, strict=True))
        if level == "document":
            return precursor_frame(dataset, row, document, score, top_k)
        frame = precursor_frame(dataset, row, document, score, top_k, excerpt=excerpt)
        if dataset.kind == "text":
            pairs = zip(frame["document"], frame["excerpt"], strict=True)
            frame["text"] = [self.encode_.excerpt(dataset.documents[j], i) for j, i in pairs]
        return frame

    def _check(self) -> None:
        check_encoder(self.encoder, ("words", "bag_of_words"))
        check_option("class_weight", self.class_weight, ("balanced", None))
        for name in ("sentences", "counts", "past_labels"):
            check_flag(name, getattr(self, name))
        for name in ("hidden_dim", "n_members", "max_epochs", "batch_size", "min_documents", "max_words"):
            check_integer(name, getattr(self, name), minimum=1)
        check_real("dropout", self.dropout, minimum=0.0, maximum=0.95)
        check_real("weight_decay", self.weight_decay, minimum=0.0)
        check_real("validation_fraction", self.validation_fraction, minimum=0.0, maximum=0.9)

    def _periods(self, dataset: EventDataset, validation: Any) -> tuple[EventDataset, EventDataset | None]:
        if validation is None:
            return later_part(dataset, self.validation_fraction) if self.validation_fraction else (dataset, None)
        if check_dataset("validation", validation).target_dates.min() <= dataset.target_dates.max():
            raise ValueError(
                f"validation must lie after the training period, which ends on {dataset.target_dates.max().date()}, "
                f"got {validation.target_dates.min().date()}"
            )
        self._check_alike("validation", validation, dataset.kind)
        return dataset, validation

    def _set_class_weights(self, share: float) -> None:
        balanced = self.class_weight == "balanced"
        self.class_weight_ = np.array([0.5 / (1 - share), 0.5 / share]) if balanced else np.ones(2)
        self.threshold_ = share if balanced else 0.5

    def _new_encoder(self) -> WordIds | Vectors:
        if self.encoder == "words" and self.kind_ in ("text", "words"):
            return WordIds(self.min_documents, self.max_words)
        return new_vectors(self.kind_, self.encoder, sentences=self.sentences, size=self.hidden_dim**0.5)

    def _new_model(self, streams: Streams, train: Corpus) -> HierarchicalAttentionLSTM:
        encode = self.encode_
        words = isinstance(encode, WordIds)
        with streams.torch_global("init"):
            model = HierarchicalAttentionLSTM(
                encode.size if isinstance(encode, WordIds) else None,
                self.hidden_dim if isinstance(encode, WordIds) else encode.vectors_width,
                self.hidden_dim,
                excerpts=words or self.kind_ == "excerpts" or (self.sentences and self.kind_ == "text"),
                dropout=self.dropout,
                counts=self.counts,
                past_labels=self.past_labels,
            )
        if isinstance(encode, WordIds):
            associations = word_associations(train.dataset, train.units, encode.size)
            _mark_words(model, associations, streams)
        return model

    def _train(
        self, model: HierarchicalAttentionLSTM, corpora: list[Corpus], streams: Streams, checkpoint: Path | None
    ) -> TrainingHistory:
        train = corpora[0]

        def collate(blocks: list[np.ndarray]) -> tuple[Any, Tensor]:
            rows = np.concatenate(blocks)
            return train.windows(rows), torch.as_tensor(train.dataset.y[rows])

        def loss(model: Any, batch: Any, step: int) -> Tensor:
            return self._loss(model(batch[0]).logit, batch[1])

        def validate(model: Any) -> float:
            logits, held_out = self._logits(model, corpora[1]), corpora[1].dataset
            return float(self._loss(logits, torch.as_tensor(held_out.y, device=logits.device)))

        blocks = Blocks(train.dataset, min(self.batch_size, LONGEST_BLOCK))
        trainer = Trainer(
            max_epochs=self.max_epochs,
            batch_size=-(-self.batch_size // LONGEST_BLOCK),
            learning_rate=self.learning_rate,
            optimizer=lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=self.weight_decay),
            patience=self.patience if len(corpora) == 2 else None,
            max_grad_norm=1.0,
            device=self.device,
            random_state=streams.child("trainer"),
            verbose=self.verbose,
        )
        held_out = validate if len(corpora) == 2 else None
        return trainer.fit(model, loss, blocks, validate=held_out, collate=collate, checkpoint=checkpoint)

    def _loss(self, logit: Tensor, y: Tensor) -> Tensor:
        """Return the weighted cross-entropy of logits (b,) and labels (b,)."""
        weight = torch.as_tensor(self.class_weight_, dtype=logit.dtype, device=logit.device)[y]
        return binary_cross_entropy_with_logits(logit, y.to(logit.dtype), weight=weight)

    def _corpus(self, dataset: Any) -> Corpus:
        check_is_fitted(self)
        self._check_alike("dataset", check_dataset("dataset", dataset), self.kind_)
        return Corpus(dataset, self.encode_, check_device("device", self.device))

    @staticmethod
    def _check_alike(name: str, dataset: EventDataset, kind: str) -> None:
        if dataset.kind != kind:
            raise ValueError(f"{name} must hold documents of kind {kind!r} as in training, got {dataset.kind!r}")

    def _logits(self, model: HierarchicalAttentionLSTM, corpus: Corpus) -> Tensor:
        with torch.no_grad():
            return torch.cat([model.read(corpus.windows(rows)).logit for rows in _chunks(corpus.dataset)])

    def _probability(self, corpus: Corpus) -> np.ndarray:
        filled = corpus.dataset.has_documents
        event = np.full(len(filled), self.base_rate_)
        if filled.any():
            shifted = [self._logits(model, corpus).double() - self._shift for model in self.models_]
            event[filled] = torch.stack(shifted).sigmoid().mean(dim=0).cpu().numpy()
        return event

    @property
    def _shift(self) -> float:
        """What weighing the classes adds to the logit."""
        return float(np.log(self.class_weight_[1] / self.class_weight_[0]))

    def _scores(self, corpus: Corpus, rows: np.ndarray, top_k: int | None, by: str, level: str) -> Scores:
        """Return scores of documents or excerpts of some instances, rows (b,), averaged over the members."""
        if by == "attention":
            return mean_scores([attention_scores(model, corpus, rows, level == "excerpt") for model in self.models_])
        reading = {"shift": self._shift, "base_rate": self.base_rate_}
        scores = mean_scores([occlusion_scores(model, corpus, rows, **reading) for model in self.models_])
        if level == "document":
            return scores
        chosen = best_scores(scores, top_k)
        return mean_scores([excerpt_occlusion_scores(model, corpus, chosen, **reading) for model in self.models_])


def _mark_words(model: HierarchicalAttentionLSTM, associations: np.ndarray, streams: Streams) -> None:
    """Start each word's embedding along a common direction, as far as it goes with events beyond two standard errors.

    From purely random embeddings, few windows of many words are memorised before the words that matter are found.
    """
    associations = np.sign(associations) * np.maximum(abs(associations) - 2, 0)
    direction = torch.randn(model.embedding.embedding_dim, generator=streams.torch("direction"))
    marks = torch.outer(torch.as_tensor(associations, dtype=torch.float32), direction / direction.norm())
    with torch.no_grad():
        model.embedding.weight += MARK * marks


def _chunks(dataset: EventDataset) -> list[np.ndarray]:
    """Return the instances that have a document, some at a time."""
    rows = np.flatnonzero(dataset.has_documents)
    return [rows[first : first + ROWS] for first in range(0, len(rows), ROWS)]
