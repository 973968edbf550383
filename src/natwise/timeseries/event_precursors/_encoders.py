"""From documents to what the model reads: word ids, or vectors of documents or sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from natwise.core.validation import check_array, check_integer, check_option

TextEncoder: TypeAlias = Callable[[list[str]], Any]
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?…؟。])\s+")


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return _WORD.findall(text.lower())


def words_of(document: Any) -> list[Any]:
    """Return the words of a text, or word ids as text."""
    return split_words(document) if isinstance(document, str) else [str(word) for word in document.tolist()]


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text; at least one."""
    return _SENTENCE.split(text.strip())


class BagOfWords:
    """Text encoder that needs no download: normalised, rarity-weighted counts of the most frequent words.

    Parameters
    ----------
    max_words : int
        Length of the vectors at most.

    Examples
    --------
    >>> encoder = BagOfWords().fit(["troops moved", "talks held", "troops held talks"])
    >>> encoder(["troops", "unknown"]).shape
    (2, 4)
    """

    def __init__(self, max_words: int = 1000):
        self.max_words = check_integer("max_words", max_words, minimum=1)

    def fit(self, texts: Sequence[str]) -> BagOfWords:
        """Learn words and their rarity from the texts of the training period."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(analyzer=words_of, max_features=self.max_words)
        try:
            self._vectorizer.fit(texts)
        except ValueError as error:
            raise ValueError(f"texts must hold a word, got none ({error})") from None
        return self

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return vectors (n_texts, at most `max_words`) of float64; zero for a text without a known word."""
        return self._vectorizer.transform(texts).toarray()


class WordIds:
    """Vocabulary of the training documents; id 0 stands for every other word.

    Parameters
    ----------
    min_documents : int
        A word of fewer documents has id 0, which so gets trained too.
    max_words : int
        Words read of a document at most.
    """

    def __init__(self, min_documents: int, max_words: int):
        self.min_documents, self.max_words = min_documents, max_words

    def learn(self, documents: Sequence[Any]) -> list[np.ndarray]:
        """Count in how many documents each word stands; return the documents' word ids."""
        counts = Counter(word for document in documents for word in set(self.words(document)))
        kept = sorted(word for word, count in counts.items() if count >= self.min_documents)
        self.ids = {word: number for number, word in enumerate(kept, start=1)}
        return self(documents)

    def __call__(self, documents: Sequence[Any]) -> list[np.ndarray]:
        """Return word ids of every document; [0] for one without words."""
        rows = ([self.ids.get(word, 0) for word in self.words(document)] or [0] for document in documents)
        return [np.array(row, dtype=np.int64) for row in rows]

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.ids) + 1

    def excerpt(self, document: Any, position: int) -> str:
        """Return a word with the two before and after it."""
        return " ".join(self.words(document)[max(0, position - 2) : position + 3])

    def words(self, document: Any) -> list[Any]:
        """Return the words that are read of a document."""
        return words_of(document)[: self.max_words]


class Vectors:
    """Documents, or their sentences, as vectors of one mean length.

    Parameters
    ----------
    encoder : callable or None
        Texts -> vectors (n, width). None: the documents are vectors already.
    sentences : bool
        Encode each sentence of a text instead of the whole.
    size : float or None
        Root mean square length of the training vectors after scaling; None leaves them as they are.
    """

    def __init__(self, encoder: TextEncoder | None, sentences: bool, size: float | None):
        self.encoder, self.sentences, self.size = encoder, sentences, size

    def learn(self, documents: Sequence[Any]) -> list[np.ndarray]:
        """Fit the bag of words and find the scale; return the documents' vectors, for which each was encoded once."""
        if isinstance(self.encoder, BagOfWords):
            self.encoder.fit(documents)
        self.scale: float = 1.0
        self.width: int | None = None
        units = self(documents)
        vectors = np.concatenate([np.atleast_2d(vector) for vector in units])
        self.width = vectors.shape[1]
        length = np.sqrt(np.square(vectors).sum(axis=1).mean())
        if self.size is not None and length > 0:
            self.scale = self.size / length
        return [unit * self.scale for unit in units]

    def __call__(self, documents: Sequence[Any]) -> list[np.ndarray]:
        """Return of every document a vector (width,), or vectors (n_sentences, width)."""
        if self.encoder is None:
            return [vector * self.scale for vector in self._checked(documents)]
        if not self.sentences:
            return list(self._encode(list(documents)))
        parts = [split_sentences(document) for document in documents]
        vectors = self._encode([sentence for sentences in parts for sentence in sentences])
        return np.split(vectors, np.cumsum([len(sentences) for sentences in parts])[:-1])

    @property
    def vectors_width(self) -> int:
        """Length of the vectors, known after `fit`."""
        return int(self.width or 0)

    def excerpt(self, document: str, position: int) -> str:
        """Return a sentence."""
        return split_sentences(document)[position]

    def _encode(self, texts: list[str]) -> np.ndarray:
        assert self.encoder is not None
        vectors = check_array("encoder's vectors", self.encoder(texts), shape=(len(texts), self.width or "width"))
        return vectors * self.scale

    def _checked(self, documents: Sequence[Any]) -> Sequence[Any]:
        if self.width is not None and documents and documents[0].shape[-1] != self.width:
            raise ValueError(f"dataset must hold vectors of length {self.width}, got {documents[0].shape[-1]}")
        return documents


def check_encoder(encoder: Any, options: Sequence[str]) -> None:
    """Refuse what is neither a function of texts nor one of `options`."""
    if not callable(encoder):
        check_option("encoder", encoder, options)


def new_vectors(
    kind: str, encoder: str | TextEncoder, *, sentences: bool = False, size: float | None = None, max_words: int = 1000
) -> Vectors:
    """Return what makes vectors of documents of a kind; lengths stay as they are when `size` is None."""
    if kind in ("vectors", "excerpts"):
        return Vectors(None, False, size)
    words = encoder if callable(encoder) else BagOfWords(max_words)
    if kind == "words" and callable(encoder):
        raise ValueError(f"encoder must be 'words' or 'bag_of_words' for word ids, got {encoder!r}")
    return Vectors(words, sentences, size)
