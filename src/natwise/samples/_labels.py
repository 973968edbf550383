"""Labels of samples, such as classes and groups, as codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from natwise.core.validation import check_array, shorten


def check_labels(name: str, value: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct labels, sorted, and the position (n,) among them of every sample's label.

    Labels are text, numbers or booleans of one kind; missing ones are refused.
    """
    try:
        labels = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except ValueError as error:
        raise ValueError(f"{name} must be a regular array, got {shorten(value)} ({error})") from None
    if labels.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one label per sample, got {labels.shape}")
    if labels.dtype.kind not in "biufUO":
        raise TypeError(f"{name} must hold text, numbers or booleans, got dtype {labels.dtype}")
    if labels.dtype.kind == "f":
        check_array(name, labels)
    try:
        if np.ma.is_masked(value) or np.any((labels != labels) | (labels == None)):  # noqa: E711
            raise ValueError(f"{name} must not miss any label, got {shorten(value)}")
        names, index = np.unique(labels, return_inverse=True)
    except TypeError:
        raise TypeError(f"{name} must hold labels of one kind, got {shorten(labels.tolist())}") from None
    return names, index
