"""Which sequences are hard but learnable? Scores from an early checkpoint of the small model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from natwise.core.validation import check_array, check_integer, check_real
from natwise.lm._checks import IGNORED
from natwise.lm.salt._loss import as_tensor, check_floats, check_labels


def sequence_scores(logits: Any, labels: Any, k: int = 10) -> Any:
    r"""Median of the token losses, where tokens outside the model's k most likely ones count as 0 (Eq. 10).

    .. math:: S_k(x) = median_i\; 1[x_i \in top_k P(\cdot | x_{<i})]\, (-\log P(x_i | x_{<i}))

    A high loss means a challenging sequence; a token within the top k one that can be learned, which keeps noise out.
    More than half of the tokens outside the top k give exactly 0.

    Parameters
    ----------
    logits : tensor or ndarray (n, t, V)
    labels : int tensor or ndarray (n, t)
        True next tokens, aligned with the logits; -100 marks tokens that do not count, in the median neither.
    k : int
        From 1 to V. A token whose probability ties with the k-th counts as inside.

    Returns
    -------
    tensor (n,), float64 (ndarray for an ndarray)
        Nats. For an even number of tokens the mean of the two middle values (`numpy.median`; `torch.median` would
        return the lower). Larger is to be chosen first.

    Raises
    ------
    TypeError, ValueError
        For other shapes or dtypes, k outside [1, V], logits that are not finite, or a sequence without a token that
        counts.
    """
    given = logits
    logits, labels = as_tensor(logits), as_tensor(labels)
    check_floats("logits", logits, labels)
    if logits.ndim != 3:
        raise ValueError(f"logits must have shape (n, t, V), got {tuple(logits.shape)}")
    k = check_integer("k", k, minimum=1, maximum=logits.shape[-1])
    labels = check_labels(labels, logits.shape[-1])
    counted = labels != IGNORED
    if not counted.any(dim=1).all():
        raise ValueError(f"labels must hold a token that counts in every sequence, got a row of {IGNORED}")
    scores = torch.stack([_score(*row, k) for row in zip(logits.detach(), labels, counted, strict=True)])
    return scores.numpy() if isinstance(given, np.ndarray) else scores


def select_sequences(scores: Any, keep: int | float) -> np.ndarray:
    """Return the indices of the sequences with the largest scores, in their order.

    Parameters
    ----------
    scores : array-like (n,)
    keep : int or float
        A count, or a fraction between 0 and 1. Ties go to the earlier sequence.

    Returns
    -------
    ndarray of int64 (count,)
        At least one.

    Raises
    ------
    TypeError, ValueError
        For no or other scores, or a count or fraction that they do not have.
    """
    values = check_array("scores", scores, shape=("sequences",))
    if not len(values):
        raise ValueError("scores must hold a sequence, got none")
    if isinstance(keep, int | np.integer):
        count = check_integer("keep", keep, minimum=1, maximum=len(values))
    else:
        count = max(round(check_real("keep", keep, minimum=0.0, maximum=1.0) * len(values)), 1)
    return np.sort(np.argsort(-values, kind="stable")[:count])


def _score(logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor, k: int) -> torch.Tensor:
    """Return the score of one sequence: logits (t, V), labels and which of them count (t,)."""
    logits, truth = logits[counted].double(), labels[counted][:, None]
    if not torch.isfinite(logits).all():
        raise ValueError("logits must be finite, got NaN or infinity")
    own = logits.gather(-1, truth)[:, 0]
    inside = own >= logits.topk(k, dim=-1).values[:, -1]
    losses = torch.where(inside, torch.logsumexp(logits, dim=-1) - own, 0.0)
    return torch.quantile(losses, 0.5)
