"""`LinearDisentangler`: a linear autoencoder whose code has a core, a spurious and another part."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from natwise.core.progress import progress
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_device, check_integer, check_option, check_real
from natwise.shift.spurious_features._inputs import check_attribute, check_labels, check_rows, row_weights
from natwise.shift.spurious_features._leace import Moments
from natwise.shift.spurious_features._scores import standardised

KEEPS = ("core", "core+other")
_INIT_NOISE = 0.01


class LinearDisentangler(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Split an embedding linearly into core, spurious and other parts, and keep what is asked for.

    The idea is that of Darbinyan et al. (2023); they published no code and their losses could not be checked, so that
    the objective below is our reconstruction.

    Parameters
    ----------
    n_core, n_spurious : int, default 8
        Sizes of the parts that the class and the attribute are read from; the rest of the n_features codes is other.
    keep : {"core", "core+other"}, default "core"
        What `transform` returns.
    balance : {None, "group"}, default "group"
        ``"group"`` gives every group of class and attribute the same weight. Without it the split is useless when
        class and attribute go together.
    class_weight, attribute_weight : float, default 1.0
        Weights of the cross-entropies of class and attribute, in nats, against the reconstruction error.
    independence : float, default 20.0
        Weight of the squared correlations of core and other codes with the attribute, and of spurious ones with the
        class. Without spurious codes nothing could hold the attribute, and it is not asked for.
    tol : float, default 1e-6
        Relative decrease of the objective in one iteration below which it has converged.
    max_iter : int, default 1000
        Iterations of L-BFGS on all rows at once.
    device : str or torch.device, default "cpu"
        Where the steps run.
    random_state : int, Generator or None
        Seeds the start.
    verbose : int, default 0
        Show a progress bar on a terminal.

    Attributes
    ----------
    encoder_ : ndarray of shape (n_features, n_features)
        Rows give the codes of standardised columns: core first, then spurious, then other.
    decoder_ : ndarray of shape (n_features, n_features)
        Columns say what each code adds to the standardised columns.
    mean_, scale_ : ndarray of shape (n_features,)
        What columns are standardised by.
    reconstruction_error_ : float
        (Weighted) mean squared error per standardised column.
    attribute_leak_ : float
        Largest absolute (weighted) correlation of a core or other code with a value of the attribute.
    n_iter_ : int
        Iterations taken.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    With z the standardised rows, h = E z, and group-balanced weights, minimises mean ||D h - z||^2 / d
    + class_weight CE(y; linear(h_core)) + attribute_weight CE(c; linear(h_spurious)) + independence (sum of
    corr(h_core and other, c)^2 + sum of corr(h_spurious, y)^2), labels one-hot. Reconstruction and correlations depend
    on the rows through second moments alone, so that a step costs n d (n_core + n_spurious) + d^3 instead of 4 n d^2.

    References
    ----------
    Darbinyan, Harutyunyan, Markosyan, Khachatrian. Identifying and disentangling spurious features in pretrained image
    representations. ICML 2023 workshop on spurious correlations, invariance and stability.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y, site = rng.integers(2, size=(2, 300))
    >>> X = rng.standard_normal((300, 4))
    >>> X[:, 0] += 3 * y
    >>> X[:, 1] += 3 * site + y
    >>> split = LinearDisentangler(1, 1, random_state=0).fit(X, y, attribute=site)
    >>> split.transform(X).shape, split.attribute_leak_ < 0.05
    ((300, 1), True)
    """

    def __init__(
        self,
        n_core: int = 8,
        n_spurious: int = 8,
        *,
        keep: str = "core",
        balance: str | None = "group",
        class_weight: float = 1.0,
        attribute_weight: float = 1.0,
        independence: float = 20.0,
        tol: float = 1e-6,
        max_iter: int = 1000,
        device: str | torch.device = "cpu",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.n_core = n_core
        self.n_spurious = n_spurious
        self.keep = keep
        self.balance = balance
        self.class_weight = class_weight
        self.attribute_weight = attribute_weight
        self.independence = independence
        self.tol = tol
        self.max_iter = max_iter
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, *, attribute: Any) -> LinearDisentangler:
        """Train the autoencoder.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Embedding.
        y : array-like of shape (n_samples,)
            Class labels.
        attribute : array-like of shape (n_samples,)
            The spurious attribute: integers, booleans or text.

        Returns
        -------
        LinearDisentangler
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described, the parts are larger than the embedding, or class and attribute
            determine one another.

        Warns
        -----
        UserWarning
            If a group to be balanced has no rows.
        ConvergenceWarning
            If `max_iter` iterations were not enough.
        """
        self._check_parameters()
        X = check_rows(self, X, reset=True)
        if self.n_core + self.n_spurious > X.shape[1]:
            raise ValueError(
                f"n_core + n_spurious must be at most n_features = {X.shape[1]}, got {self.n_core} + {self.n_spurious}"
            )
        classes, site = check_labels("y", y, len(X)), check_attribute(attribute, len(X))
        weights = row_weights(classes.codes, site, self.balance)
        standard, self.mean_, self.scale_ = standardised(X)
        objective = _Objective(standard, classes.one_hot, site.one_hot, weights, self)
        with torch.enable_grad():
            parts = self._descend(objective, objective.start(Streams.of(self.random_state)))
        with torch.no_grad():
            self.reconstruction_error_ = float(objective.reconstruction(parts))
            self.attribute_leak_ = objective.leak(parts)
        self.encoder_, self.decoder_ = (parts[name].detach().cpu().numpy() for name in ("encoder", "decoder"))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the codes that are kept, float64 (n_samples, n_core) or (n_samples, n_features - n_spurious)."""
        check_is_fitted(self)
        return self.encode(X)[:, self._kept]

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the embedding (n_samples, n_features) decoded from kept codes, all others at their mean of zero."""
        check_is_fitted(self)
        kept = check_array("X", X, shape=("n_samples", self._n_features_out), dtype=np.float64)
        codes = np.zeros((len(kept), self.n_features_in_))
        codes[:, self._kept] = kept
        return self.mean_ + self.scale_ * (codes @ self.decoder_.T)

    def encode(self, X: Any) -> np.ndarray:
        """Return all codes (n_samples, n_features): core, spurious, other."""
        check_is_fitted(self)
        return (check_rows(self, X, reset=False) - self.mean_) / self.scale_ @ self.encoder_.T

    @property
    def _kept(self) -> np.ndarray:
        is_core, is_spurious = _parts(self.n_core, self.n_spurious, self.n_features_in_)
        return np.flatnonzero(is_core if self.keep == "core" else ~is_spurious)

    @property
    def _n_features_out(self) -> int:
        return len(self._kept)

    def _check_parameters(self) -> None:
        check_option("keep", self.keep, KEEPS)
        check_device("device", self.device)
        for name in ("n_core", "n_spurious"):
            check_integer(name, getattr(self, name), minimum=0)
        check_integer("max_iter", self.max_iter, minimum=1)
        check_real("tol", self.tol, minimum=0, exclusive=True)
        for name in ("class_weight", "attribute_weight", "independence"):
            check_real(name, getattr(self, name), minimum=0)

    def _descend(self, objective: _Objective, start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the parts of the network after L-BFGS from `start`."""

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            parts = _unflatten(flat, start)
            value = objective(parts)
            gradients = torch.autograd.grad(value, list(parts.values()))
            return value.item(), _flatten(gradients)

        with progress(self.max_iter, wanted=bool(self.verbose)) as report:
            steps = iter(range(1, self.max_iter + 1))
            options = {"maxiter": self.max_iter, "maxfun": 10 * self.max_iter, "ftol": self.tol, "maxcor": 20}
            found = minimize(
                loss,
                _flatten(start.values()),
                jac=True,
                method="L-BFGS-B",
                options=options,
                callback=lambda _: report(next(steps), "autoencoder"),
            )
        self.n_iter_ = int(found.nit)
        if not found.success:
            message = (
                f"LinearDisentangler did not converge in max_iter={self.max_iter} iterations; raise max_iter or tol"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=3)
        return _unflatten(found.x, start)


class _Objective:
    """The loss of encoder, decoder and heads on fixed rows, with everything quadratic taken from moments.

    Z (n, d) are standardised rows, y and c indicators (n, n_classes) and (n, n_values), `weights` (n,). The parts of
    the network are ``encoder`` and ``decoder`` (d, d), ``heads`` (d, n_classes + n_values), ``intercepts``.
    """

    def __init__(self, Z: np.ndarray, y: np.ndarray, c: np.ndarray, weights: np.ndarray, settings: LinearDisentangler):
        labels, share = np.hstack([y, c]), weights / weights.sum()
        moments = Moments.of(Z, labels, weights)
        deviations = np.sqrt(share @ (labels - share @ labels) ** 2 / (1 - share @ share))  # unbiased, as the moments
        is_core, is_spurious = _parts(settings.n_core, settings.n_spurious, Z.shape[1])
        of_class = np.arange(labels.shape[1]) < y.shape[1]
        tensor = partial(torch.tensor, dtype=torch.float64, device=settings.device)
        self.settings, self.n_classes = settings, y.shape[1]
        self.rows, self.share = tensor(Z), tensor(share)
        self.with_labels = tensor((share[:, None] * Z).T @ labels)
        self.label_shares = tensor(share @ labels)
        self.head_weights = tensor(np.where(of_class, settings.class_weight, settings.attribute_weight))
        self.second, self.covariance = tensor((share[:, None] * Z).T @ Z), tensor(moments.xx)
        self.correlating = tensor(moments.xz / np.maximum(deviations, 1e-12))
        self.readable = tensor(np.where(of_class, is_core[:, None], is_spurious[:, None]))
        self.forbidden = tensor(np.where(of_class, is_spurious[:, None], ~is_spurious[:, None] & is_spurious.any()))

    def start(self, streams: Streams) -> dict[str, torch.Tensor]:
        """Return a permuted identity with noise as encoder, its transpose as decoder, and heads of zeros."""
        rng = streams.numpy("start")
        d = len(self.second)
        encoder = np.eye(d)[rng.permutation(d)]
        values = {
            "encoder": encoder + _INIT_NOISE * rng.standard_normal((d, d)),
            "decoder": encoder.T + _INIT_NOISE * rng.standard_normal((d, d)),
            "heads": np.zeros(self.readable.shape),
            "intercepts": np.zeros(self.readable.shape[1]),
        }
        return {name: self.rows.new_tensor(value) for name, value in values.items()}

    def __call__(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss."""
        leaks = (self.forbidden * self.correlations(parts)).square().sum()
        return self.reconstruction(parts) + self._cross_entropies(parts) + self.settings.independence * leaks

    def reconstruction(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean squared error per column."""
        off = parts["decoder"] @ parts["encoder"]
        off = off - torch.eye(len(off), dtype=off.dtype, device=off.device)
        return ((off @ self.second) * off).sum() / len(off)

    def correlations(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the correlations of codes (d,) with indicators of classes and values of the attribute."""
        encoder = parts["encoder"]
        variances = ((encoder @ self.covariance) * encoder).sum(dim=1, keepdim=True)
        return encoder @ self.correlating / (variances + 1e-12).sqrt()

    def leak(self, parts: dict[str, torch.Tensor]) -> float:
        """Return the largest absolute correlation of a core or other code with the attribute."""
        is_spurious = self.readable[:, -1:]
        return float(((1 - is_spurious) * self.correlations(parts)[:, self.n_classes :]).abs().max())

    def _cross_entropies(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the weighted cross-entropies of both heads, folded into the encoder before they meet the rows."""
        weights = parts["encoder"].T @ (self.readable * parts["heads"])
        logits = self.rows @ weights + parts["intercepts"]
        split = logits.split([self.n_classes, logits.shape[1] - self.n_classes], dim=1)
        normalisers = torch.stack([part.logsumexp(dim=1) for part in split], dim=1)
        scale = self.head_weights[[0, -1]]
        given = (self.with_labels * weights).sum(dim=0) + self.label_shares * parts["intercepts"]
        return (self.share @ normalisers) @ scale - given @ self.head_weights


def _parts(n_core: int, n_spurious: int, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Return masks (n_features,) of the core and the spurious codes; the rest is other."""
    code = np.arange(n_features)
    return code < n_core, (code >= n_core) & (code < n_core + n_spurious)


def _flatten(tensors: Iterable[torch.Tensor]) -> np.ndarray:
    """Return all entries of tensors of any shapes as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors]).cpu().numpy()


def _unflatten(flat: np.ndarray, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the parts of a flat vector as tensors with gradients, named, shaped and placed as in `like`."""
    pieces = torch.tensor(flat).split([tensor.numel() for tensor in like.values()])
    named = zip(like.items(), pieces, strict=True)
    return {name: piece.reshape(t.shape).to(t.device).requires_grad_() for (name, t), piece in named}
