"""Fano's inequality between training error and memorised label information, in both directions."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import entr

from natwise.core.validation import check_array, check_integer


def fano_error_lower_bound(label_entropy: Any, information: Any, n_classes: int) -> Any:
    """Return the smallest training error of a model that holds so much information about its labels.

    Per sample, a classifier whose weights hold I nats about a training label of conditional entropy H errs on
    the given labels at a rate r with ``r log(k - 1) + h(r) >= H - I``; the smallest such r is returned
    (Theorem 2.1 of the paper; h is the binary entropy).

    Parameters
    ----------
    label_entropy : float or array-like
        H(y | x) per sample in nats, at most ``log(n_classes)``; see `transition_entropy`.
    information : float or array-like
        I(w; y | x) / n, the information of the weights per sample, in nats.
    n_classes : int
        Number of classes k; 2 is allowed (the term in ``log(k - 1)`` vanishes).

    Returns
    -------
    float or ndarray
        Error rates in [0, (k - 1) / k], in the broadcast shape of the inputs.

    Notes
    -----
    Solved by bisection to the last bit; the original notebook scanned a grid with steps of 0.001.

    Examples
    --------
    >>> from math import log
    >>> round(fano_error_lower_bound(2.258182, log(2), 10), 3)  # 80 % noise, one bit memorised
    0.405
    """
    entropy = _check_entropy(label_entropy, n_classes)
    information = _check_not_negative("information", information)
    _check_broadcast(label_entropy=entropy, information=information)
    missing = np.asarray(np.minimum(entropy - information, np.log(n_classes)))
    low, high = np.zeros_like(missing), np.full_like(missing, (n_classes - 1) / n_classes)
    for _ in range(60):  # halves the interval below the spacing of float64
        middle = (low + high) / 2
        enough = _fano(middle, n_classes) >= missing
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    rate = np.where(missing <= 0, 0.0, high)
    return rate if rate.ndim else float(rate)


def memorized_label_information(train_error: Any, label_entropy: Any, n_classes: int) -> Any:
    """Return a lower bound on what a model has memorised about its training labels, in nats per sample.

    The converse reading of `fano_error_lower_bound`: a model that errs on the *given* (noisy) training labels at
    rate r holds at least ``H - h(r) - r log(k - 1)`` nats per sample about them beyond what the features say. It
    is 0 at the error of a model that knows the noise but not the labels, and H at training error 0. Evaluated
    after every epoch it is the learning curve of memorisation.

    Parameters
    ----------
    train_error : float or array-like
        Error rate on the given training labels, in [0, 1].
    label_entropy : float or array-like
        H(y | x) per sample in nats, at most ``log(n_classes)``; for known noise see `transition_entropy`. Too
        high an estimate gives too high a bound.
    n_classes : int
        Number of classes k.

    Returns
    -------
    float or ndarray
        Information in nats per sample, >= 0, in the broadcast shape of the inputs.

    Examples
    --------
    >>> round(memorized_label_information(0.0, 2.2582, 10), 4), memorized_label_information(0.8, 2.2581, 10)
    (2.2582, 0.0)
    """
    error = _check_not_negative("train_error", train_error)
    if error.max(initial=0.0) > 1:
        raise ValueError(f"train_error must be <= 1, got {error.max()}")
    entropy = _check_entropy(label_entropy, n_classes)
    _check_broadcast(train_error=error, label_entropy=entropy)
    information = np.maximum(entropy - _fano(error, n_classes), 0.0)
    return information if information.ndim else float(information)


def _fano(rate: np.ndarray, n_classes: int) -> np.ndarray:
    return rate * np.log(n_classes - 1) + entr(rate) + entr(1 - rate)


def _check_broadcast(**arrays: np.ndarray) -> None:
    try:
        np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        shapes = " and ".join(str(array.shape) for array in arrays.values())
        raise ValueError(f"{' and '.join(arrays)} must have shapes that fit together, got {shapes}") from None


def _check_not_negative(name: str, value: Any) -> np.ndarray:
    value = check_array(name, value, dtype=np.float64)
    if value.min(initial=0.0) < 0:
        raise ValueError(f"{name} must be >= 0, got {value.min()}")
    return value


def _check_entropy(value: Any, n_classes: int) -> np.ndarray:
    check_integer("n_classes", n_classes, minimum=2)
    entropy = _check_not_negative("label_entropy", value)
    if entropy.max(initial=0.0) > np.log(n_classes) + 1e-9:
        limit = np.log(n_classes)
        raise ValueError(f"label_entropy must be <= log(n_classes) = {limit:.6g} nats, got {entropy.max():.6g}")
    return entropy
