"""Learn how many columns each power deserves: train with the group lasso, prune to a budget, train anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.base import clone

from natwise.core.validation import check_real
from natwise.graphs.mixhop._classifier import MixHopClassifier
from natwise.graphs.mixhop._prune import prune_columns


@dataclass(frozen=True)
class LearnedArchitecture:
    """What `learn_architecture` found.

    Attributes
    ----------
    widths : list of dict of int to int
        Columns per power of every mixing layer, the output's last.
    classifier : MixHopClassifier
        Trained anew with these widths.
    search : MixHopClassifier
        Trained with the group lasso, before pruning.
    n_columns : int
        Sum of `widths`.
    """

    widths: list[dict[int, int]]
    classifier: MixHopClassifier
    search: MixHopClassifier

    @property
    def n_columns(self) -> int:
        """Columns over all layers and powers."""
        return sum(sum(layer.values()) for layer in self.widths)


def learn_architecture(
    X: Any,
    y: Any,
    edge_index: Any,
    train_idx: Any,
    val_idx: Any,
    *,
    budget: int | Sequence[int] | None = None,
    lasso: float = 5e-3,
    classifier: MixHopClassifier | None = None,
) -> LearnedArchitecture:
    """Search, prune, retrain: the paper's way to the widths of every power and layer (Sec. 4.2).

    A network with the classifier's widths is trained with the group lasso by proximal steps, its weakest columns are
    removed, and the small network is drawn anew and trained as the classifier says.

    Parameters
    ----------
    X, y, edge_index, train_idx, val_idx
        As in `MixHopClassifier.fit`.
    budget : int or sequence of int, optional
        Columns to keep, see `prune_columns`. Default: those that the search did not take to zero.
    lasso : float
        Coefficient of the group lasso in the search, > 0.
    classifier : MixHopClassifier, optional
        Everything else; it is not changed. Default: ``MixHopClassifier()``.

    Returns
    -------
    LearnedArchitecture
        Widths, and the classifier with them.

    Raises
    ------
    TypeError, ValueError
        For wrong data or options, or a budget below one column per layer; when the lasso leaves a layer no column.

    Notes
    -----
    Pruning looks at the weights after the last step of the search, when the lasso has done its work, not at those of
    the step with the best validation accuracy. Retraining keeps the classifier's own `lasso`.
    """
    lasso = check_real("lasso", lasso, minimum=0.0, exclusive=True)
    base = MixHopClassifier() if classifier is None else classifier
    if not isinstance(base, MixHopClassifier):
        raise TypeError(f"classifier must be a MixHopClassifier, got {type(base).__name__}")
    if base.network is not None:
        raise ValueError("classifier must have network=None, whose widths can be set, got a network")
    search = clone(base).set_params(lasso=lasso, patience=None).fit(X, y, edge_index, train_idx)
    if not all(any(layer.values()) for layer in search.architecture_):
        raise ValueError(f"lasso={lasso} took all columns of a layer to zero; try a lower one")
    widths = prune_columns(search.network_, budget).architecture
    final = clone(base).set_params(hidden=widths[:-1], output_widths=widths[-1])
    return LearnedArchitecture(widths, final.fit(X, y, edge_index, train_idx, val_idx), search)
