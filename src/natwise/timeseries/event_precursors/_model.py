"""Words (or excerpt vectors) -> documents -> days: the hierarchical attention LSTM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from natwise.core.validation import check_flag, check_integer, check_real
from natwise.timeseries.event_precursors._windows import Windows, windows_of


class HierarchicalOutput(NamedTuple):
    """What the model says about n instances; the nested lists follow the instances, days and documents given.

    Attributes
    ----------
    probability : Tensor of shape (n,)
        Probability of the event.
    day_attention : list of Tensor (n_days,)
        beta; 0 for an empty day.
    document_attention : list of lists of Tensor (n_documents,)
        alpha of the documents of each day; sums to 1 on a day with documents.
    word_attention : list of lists of lists of Tensor (n_words,)
        gamma of the words (or excerpts) of each document; sums to 1. A document given as one vector has a single 1.
    document_scores : list of lists of Tensor (n_documents,)
        beta times alpha; sums to 1 over an instance that has a document.
    """

    probability: Tensor
    day_attention: list[Tensor]
    document_attention: list[list[Tensor]]
    word_attention: list[list[list[Tensor]]]
    document_scores: list[list[Tensor]]


class FlatOutput(NamedTuple):
    """The same for `Windows`: padded tensors over the batch's distinct documents and days.

    Attributes
    ----------
    logit : Tensor of shape (n,)
    beta : Tensor of shape (n, history)
    alpha : Tensor of shape (n_days, most documents of a day)
    gamma : Tensor of shape (n_documents, most words of a document)
    """

    logit: Tensor
    beta: Tensor
    alpha: Tensor
    gamma: Tensor


class Attention(nn.Module):
    """Weights softmax(query . tanh(projection(x))) over the items of a set, and the weighted mean of the items.

    Parameters
    ----------
    size : int
        Length of an item.
    attention_dim : int
        Length of the query.
    """

    def __init__(self, size: int, attention_dim: int):
        super().__init__()
        self.projection = nn.Linear(size, attention_dim)
        self.query = nn.Parameter(torch.randn(attention_dim) / attention_dim**0.5)

    def forward(self, items: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return means (..., size) and weights (..., m) of items (..., m, size); both 0 where nothing is present."""
        scores = torch.tanh(self.projection(items)) @ self.query
        scores = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1) * present
        return (weights[..., None, :] @ items)[..., 0, :], weights


class HierarchicalAttentionLSTM(nn.Module):
    """Probability of an event from the documents of the days before it, with attention at three levels.

    A word LSTM reads each document, u_i = LSTM(e_i); attention makes it a vector v_j = sum_i gamma_i u_i. Attention
    over the documents of a day makes the day's vector s_t = sum_j alpha_j v_j, a learned one for a day without
    documents. A forward LSTM reads the days; attention over those with documents gives r = sum_t beta_t h_t and the
    probability sigmoid(w . r + b).

    Parameters
    ----------
    vocab_size : int or None
        Number of word ids. None: documents come as vectors, one each or one per excerpt (sentence).
    embedding_dim : int
        Length of a word's embedding, or of the vectors given.
    hidden_dim : int
        Units of both LSTMs.
    attention_dim : int, optional
        Length of the three queries. Default: `hidden_dim`.
    excerpts : bool
        Whether documents are made of words or excerpts. False: each is one vector, there is no word level.
    dropout : float
        On document vectors and on r, in training.
    counts : bool
        Append log(1 + number of documents) to each day's vector. Attention is a mean and cannot tell one report of
        violence from twenty.
    past_labels : bool
        Append each day's label, and whether it is known, to its vector; lists of instances bring none.

    Notes
    -----
    The equations are the usual ones of hierarchical attention over text; those of the paper are not known in detail.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = HierarchicalAttentionLSTM(30, 6, 5)
    >>> output = model([[[[7, 25], [3]], [], [[1, 2, 3]]]])  # one instance, three days, the second without documents
    >>> output.day_attention[0][1].item(), round(sum(day.sum().item() for day in output.document_scores[0]), 6)
    (0.0, 1.0)
    """

    def __init__(
        self,
        vocab_size: int | None,
        embedding_dim: int,
        hidden_dim: int,
        attention_dim: int | None = None,
        *,
        excerpts: bool = True,
        dropout: float = 0.0,
        counts: bool = False,
        past_labels: bool = False,
    ):
        super().__init__()
        if vocab_size is not None:
            check_integer("vocab_size", vocab_size, minimum=1)
        for name, value in {"embedding_dim": embedding_dim, "hidden_dim": hidden_dim}.items():
            check_integer(name, value, minimum=1)
        size = check_integer("attention_dim", hidden_dim if attention_dim is None else attention_dim, minimum=1)
        check_real("dropout", dropout, minimum=0.0, maximum=1.0)
        excerpts, counts = check_flag("excerpts", excerpts), check_flag("counts", counts)
        past_labels = check_flag("past_labels", past_labels)
        self.vocab_size, self.counts, self.past_labels = vocab_size, counts, past_labels
        document_dim = hidden_dim if excerpts else embedding_dim
        if vocab_size is not None:
            self.embedding = nn.Embedding(vocab_size, embedding_dim)
            nn.init.normal_(self.embedding.weight, std=0.1)  # words that say nothing should not be memorised
        if excerpts:
            self.word_lstm = nn.LSTM(embedding_dim, hidden_dim, batch_first=True)
            self.word_attention = Attention(hidden_dim, size)
        self.excerpts = excerpts
        self.document_attention = Attention(document_dim, size)
        self.empty_day = nn.Parameter(torch.zeros(document_dim))
        self.day_lstm = nn.LSTM(document_dim + counts + 2 * past_labels, hidden_dim, batch_first=True)
        self.day_attention = Attention(hidden_dim, size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_dim, 1)

    def forward(self, instances: Sequence[Any] | Windows) -> HierarchicalOutput | FlatOutput:
        """Forecast a list of instances.

        Parameters
        ----------
        instances : list of lists of lists of documents
            Of each instance the days, earliest first, of each day the documents (perhaps none), of each document
            the word ids; or vectors (n_excerpts, embedding_dim), or (embedding_dim,) without `excerpts`. `Windows`,
            in which instances share days and documents, are answered by a `FlatOutput`.

        Raises
        ------
        TypeError, ValueError
            For word ids outside the vocabulary, empty documents, or vectors of a wrong length.
        """
        if isinstance(instances, Windows):
            return self.read(instances)
        windows = windows_of(instances, self.vocab_size, self.embedding_width, self.excerpts, self.output.weight)
        return _nested(self.read(windows), windows)

    @property
    def embedding_width(self) -> int:
        """Length of the vectors that come into the model."""
        if self.excerpts:
            return self.word_lstm.input_size
        return self.document_attention.projection.in_features

    def read(self, windows: Windows) -> FlatOutput:
        """Encode each document and each day once, then read all windows."""
        documents, gamma = self.encode_documents(windows.units, windows.lengths)
        days, alpha = self.encode_days(documents, windows.day_documents)
        logit, beta = self.read_days(self.join_days(days, windows), windows.present)
        return FlatOutput(logit, beta, alpha, gamma)

    def encode_documents(self, units: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (n, size) and attention over words (n, m) of n padded documents."""
        if not self.excerpts:
            return self.dropout(units), torch.ones(len(units), 1, dtype=units.dtype, device=units.device)
        items = self.embedding(units) if self.vocab_size is not None else units
        if len(items) == 0:
            return items.new_zeros(0, self.word_lstm.hidden_size), items.new_zeros(0, units.shape[1])
        packed = pack_padded_sequence(items, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.word_lstm(packed)[0], batch_first=True, total_length=units.shape[1])
        present = torch.arange(units.shape[1], device=units.device) < lengths[:, None]
        vectors, gamma = self.word_attention(states, present)
        return self.dropout(vectors), gamma

    def encode_days(self, documents: Tensor, day_documents: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (n_days, size) and attention (n_days, m); `day_documents` is padded by -1."""
        present = day_documents >= 0
        padded = torch.cat([documents, documents.new_zeros(1, documents.shape[1])])[day_documents]
        vectors, alpha = self.document_attention(padded, present)
        number = present.sum(dim=1, keepdim=True)
        vectors = torch.where(number > 0, vectors, self.empty_day)
        if self.counts:
            vectors = torch.cat([vectors, torch.log1p(number.to(vectors.dtype))], dim=1)
        return vectors, alpha

    def join_days(self, days: Tensor, windows: Windows) -> Tensor:
        """Return what the day LSTM reads of every window, (n, history, size), from the vectors of days."""
        vectors = days[windows.days]
        return torch.cat([vectors, windows.past], dim=-1) if self.past_labels else vectors

    def read_days(self, days: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n,) and attention (n, history) of windows of day vectors (n, history, size)."""
        states, _ = self.day_lstm(days)
        pooled, beta = self.day_attention(states, present)
        return self.output(self.dropout(pooled))[:, 0], beta


def _nested(flat: FlatOutput, windows: Windows) -> HierarchicalOutput:
    probability = torch.sigmoid(flat.logit)
    day_attention, document_attention, word_attention, scores = [], [], [], []
    for days, beta in zip(windows.days.tolist(), flat.beta, strict=True):
        days = [day for day in days if day > 0]  # day 0 pads
        members = [[j for j in windows.day_documents[day].tolist() if j >= 0] for day in days]
        alphas = [flat.alpha[day, : len(documents)] for day, documents in zip(days, members, strict=True)]
        day_attention.append(beta[: len(days)])
        document_attention.append(alphas)
        word_attention.append([[flat.gamma[j, : windows.lengths[j]] for j in documents] for documents in members])
        scores.append([weight * alpha for weight, alpha in zip(beta, alphas, strict=False)])
    return HierarchicalOutput(probability, day_attention, document_attention, word_attention, scores)
