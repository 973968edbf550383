"""Conditional f-information: other divergences than KL between an output with its split and the two apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr

from natwise.core.validation import check_array, shorten

from ._inputs import check_not_negative

DIVERGENCES = ("mi", "chi2", "hellinger", "jsd", "tv")


def f_information(counts: ArrayLike) -> dict[str, np.ndarray]:
    """Return five divergences between joint and product distribution of each table, over all cells.

    Cells that hold no sample have P = 0 but Q > 0 and contribute Q to chi2, Hellinger and total variation and
    Q log 2 to Jensen-Shannon. The original code leaves them out, which only KL allows: its Hellinger bound can fall
    below the true gap.

    Parameters
    ----------
    counts : array-like of shape (..., n_x, n_y)
        Tables in the last two axes, such as from `natwise.core.information.contingency_tables`.

    Returns
    -------
    dict of ndarray of shape (...)
        ``mi`` sum P log(P / Q); ``chi2`` sum (P - Q)^2 / Q; ``hellinger`` sum (sqrt P - sqrt Q)^2;
        ``jsd`` sum P log(2P / (P + Q)) + Q log(2Q / (P + Q)); ``tv`` sum ``|P - Q|``. Nats where there are logarithms.
    """
    counts = check_not_negative("counts", counts)
    if counts.ndim < 2:
        raise ValueError(f"counts must have at least 2 axes, got shape {counts.shape}")
    total = counts.sum((-2, -1), keepdims=True)
    if (total == 0).any():
        raise ValueError("counts must hold at least one sample per table, got an empty one")
    p = counts / total
    q = p.sum(-1, keepdims=True) * p.sum(-2, keepdims=True)
    middle = (p + q) / 2
    cells = {
        "mi": rel_entr(p, q),
        "chi2": np.divide((p - q) ** 2, q, out=np.zeros_like(q), where=q > 0),
        "hellinger": (np.sqrt(p) - np.sqrt(q)) ** 2,
        "jsd": rel_entr(p, middle) + rel_entr(q, middle),
        "tv": np.abs(p - q),
    }
    return {name: np.maximum(cell.sum((-2, -1)), 0.0) for name, cell in cells.items()}


def f_information_bounds(
    divergences: Mapping[str, ArrayLike], squared_difference: ArrayLike, mean_gap: ArrayLike
) -> dict[str, float]:
    """Return the bounds of Wang and Mao (NeurIPS 2024) on ``|E gap|`` from divergences of the loss difference.

    Parameters
    ----------
    divergences : dict of array-like of shape (n,)
        As `f_information` returns them, of tables of S_i against the loss difference.
    squared_difference : array-like of shape (n,)
        A_i, the mean squared loss difference of pair i.
    mean_gap : array-like of shape (n,)
        B_i, the absolute mean of test loss less training loss of pair i.

    Raises
    ------
    TypeError, ValueError
        If a divergence is missing, shapes differ, or a value is negative or not finite.

    Returns
    -------
    dict of float
        Means over i of: ``oracle_mi`` sqrt(2 (A + B) I), ``oracle_free_mi`` I + sqrt((I + 2 A) I),
        ``mi_tv`` sqrt(2 (A + TV) I), ``hellinger`` sqrt((4 A + 2 B) H), ``hellinger_tv`` with TV for B,
        ``hellinger_tv_loose`` with 1 for A as well, ``jsd`` 2 sqrt((4 A + B) JS), ``chi2`` sqrt(2 (A + B) chi2).
    """
    b = np.abs(check_array("mean_gap", mean_gap, shape=("n",), dtype=np.float64))
    if not b.size:
        raise ValueError("mean_gap must hold at least one value, got none")
    a = check_not_negative("squared_difference", squared_difference, b.shape)
    if not isinstance(divergences, Mapping):
        raise TypeError(f"divergences must be a dict, got {shorten(divergences)}")
    missing = [name for name in DIVERGENCES if name not in divergences]
    if missing:
        raise ValueError(f"divergences must hold {', '.join(DIVERGENCES)}, got none of the name {missing[0]!r}")
    mi, chi2, hellinger, jsd, tv = (
        check_not_negative(f"divergences[{name!r}]", divergences[name], b.shape) for name in DIVERGENCES
    )
    terms = {
        "oracle_mi": np.sqrt(2 * (a + b) * mi),
        "oracle_free_mi": mi + np.sqrt((mi + 2 * a) * mi),
        "mi_tv": np.sqrt(2 * (a + tv) * mi),
        "hellinger": np.sqrt((4 * a + 2 * b) * hellinger),
        "hellinger_tv": np.sqrt((4 * a + 2 * tv) * hellinger),
        "hellinger_tv_loose": np.sqrt((4 + 2 * tv) * hellinger),
        "jsd": 2 * np.sqrt((4 * a + b) * jsd),
        "chi2": np.sqrt(2 * (a + b) * chi2),
    }
    return {name: float(term.mean()) for name, term in terms.items()}
