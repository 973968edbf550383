"""`LinearCorEx`: latent factors, groups of variables, and a covariance matrix from few samples."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from natwise.core.gaussian import LowRankDiagCovariance
from natwise.core.progress import progress
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_device, check_flag, check_integer, check_option, check_real
from natwise.structure._inputs import check_missing_values, check_rows, nan_is_missing
from natwise.structure.linear_corex._annealing import Climb, climb, random_weights
from natwise.structure.linear_corex._gaussianize import KINDS, SMALLEST_SCALE, Gaussianizer
from natwise.structure.linear_corex._moments import SMALLEST_VARIANCE, loadings, mutual_information, objective_moments
from natwise.structure.linear_corex._overlap import OverlapModel, climb_with_overlap, random_overlap_weights

NEARLY_COPY = 0.99995  # correlation of two columns from which the smaller noise is not worth modelling
FAR_OUT = 6  # standard deviations
LARGEST_U = 1 - 1e-7


class LinearCorEx(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Latent factors that make the variables independent, each variable leaning on one factor.

    Parameters
    ----------
    n_components : int, default 2
        Number of latent factors m, at most the number of variables.
    anneal : bool, default True
        Begin with much noise in the correlation matrix and take it away in stages; finds better optima.
    tol : float, default 1e-5
        Gain of the objective, in nats, below which a stage has converged.
    max_iter : int, default 10000
        Iterations allowed in each stage.
    gaussianize : {"standard", "outliers", "empirical", None}, default "standard"
        How columns are brought to mean 0 and variance 1: by mean and standard deviation; the same with values beyond
        four standard deviations squashed; by ranks to normal quantiles; or not at all.
    missing_values : float or None, default None
        The number (or NaN) that marks missing values; they are replaced by the training mean of their column.
    overlap : bool, default False
        Drop the modular constraint: factors may share variables.
    device : str or torch.device, default "cpu"
        Where the ascent runs.
    dtype : {"float32", "float64"}, default "float32"
        Precision of the ascent. Moments and likelihoods of the fitted model, and everything with ``overlap``, are
        float64 always.
    random_state : int, Generator, RandomState or None
        Seeds the initial weights.
    verbose : int, default 0
        Show a progress bar on a terminal, and warn of values beyond six standard deviations.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        Weights of the standardised variables, normalised by the size of the (noisy) factor; with ``overlap`` not
        normalised. Factors are sorted by `tcs_`, largest first.
    labels_ : ndarray of shape (n_features,)
        The factor of largest absolute weight: groups of variables.
    mutual_info_ : ndarray of shape (n_components, n_features)
        I(X_i ; Y_j) in nats.
    tc_ : float
        Lower bound of the total correlation explained, in nats: what was maximised.
    tcs_ : ndarray of shape (n_components,)
        sum_i I(X_i ; Y_j) - I(Y_j ; X) of each factor, in nats.
    low_rank_ : LowRankDiagCovariance
        The covariance estimate in O(p m) memory.
    covariance_, precision_ : ndarray of shape (n_features, n_features)
        Dense, made when asked for. In the units of the data; with ``gaussianize="empirical"`` in those of the scores.
    location_ : ndarray of shape (n_features,)
        Mean in the same units.
    n_iter_ : int
        Iterations of all stages together.
    history_ : ndarray of shape (n_iterations,)
        The objective after each iteration, under the noise of its stage.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Maximises TC = sum_i log(1 + S_i) - 1/2 sum_i log(1 + Q_i - S_i^2) + 1/2 sum_j log(1 - u_j), the closed form of
    TC(X|Z) + TC(Z) with factors that are not synergistic about any variable (Ver Steeg et al. 2019). Differences from
    the original code, each with its reason, stand on the method's page; the main ones: conjugate directions instead of
    plain steps (a third of the iterations), nothing global is seeded, a refit starts anew, `transform` fills missing
    values with training means, the covariance is never dense unless asked for.

    References
    ----------
    Ver Steeg, Harutyunyan, Moyer, Galstyan. Fast structure learning with modular regularization. NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 2))[:, [0, 0, 0, 1, 1, 1]] + 0.5 * rng.standard_normal((100, 6))
    >>> model = LinearCorEx(2, random_state=0).fit(X)
    >>> len(set(model.labels_[:3])), len(set(model.labels_[3:])), len(set(model.labels_))
    (1, 1, 2)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        anneal: bool = True,
        tol: float = 1e-5,
        max_iter: int = 10000,
        gaussianize: str | None = "standard",
        missing_values: float | None = None,
        overlap: bool = False,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.n_components = n_components
        self.anneal = anneal
        self.tol = tol
        self.max_iter = max_iter
        self.gaussianize = gaussianize
        self.missing_values = missing_values
        self.overlap = overlap
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> LinearCorEx:
        """Find the factors of `X` (n_samples >= 2, n_features >= 2).

        Returns
        -------
        LinearCorEx
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            If a parameter or `X` is not as described: the message names it.

        Warns
        -----
        ConvergenceWarning
            If the last stage needed more than `max_iter` iterations.
        UserWarning
            If two columns nearly are copies of one another, if the number that marks missing values does not occur,
            or if the columns are not standardised although ``gaussianize=None``.
        """
        self._check_parameters()
        X = self._check_data(X, reset=True)
        if self.n_components > X.shape[1]:
            raise ValueError(f"n_components must be at most n_features = {X.shape[1]}, got {self.n_components}")
        self._discard_dense()
        self._gaussianizer = Gaussianizer(self.gaussianize, self.missing_values).fit(X)
        Z = self._gaussianizer.transform(X)
        if not Z.any():
            raise ValueError("X must have a column that varies, all its columns are constant")
        if self._gaussianizer.scale_.max() <= SMALLEST_SCALE:
            raise ValueError(f"X must have a standard deviation above {SMALLEST_SCALE:g} in some column: rescale it")
        _warn_of_copies(Z)
        if self.verbose and np.abs(Z).max() > FAR_OUT:
            warnings.warn(
                f"X has values beyond {FAR_OUT} standard deviations; see gaussianize='outliers'", stacklevel=2
            )
        found = self._climb(Z)
        if not found.converged:
            warnings.warn(
                f"LinearCorEx did not converge in max_iter={self.max_iter} iterations; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.history_ = np.array(found.history)
        self.n_iter_ = len(found.history)
        weights = found.weights.double().cpu().numpy()
        (self._describe_overlapping if self.overlap else self._describe)(Z, weights)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the factors of `X`, standardised X times `components_` transposed, shape (n_samples, n_components).

        On the training data factor j has second moment u_j < 1; noise of variance 1 - u_j would make it 1.
        """
        check_is_fitted(self)
        return self._gaussianizer.transform(self._check_data(X, reset=False)) @ self.components_.T

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the variables predicted from factors `X` (n_samples, n_components), in the units of the data."""
        check_is_fitted(self)
        factors = check_array("X", X, shape=("n_samples", len(self.components_)), dtype=np.float64)
        return self._gaussianizer.inverse_transform(factors @ self._regression)

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the log-likelihood of each row of `X` under the fitted Gaussian, in nats, shape (n_samples,)."""
        check_is_fitted(self)
        values = self._gaussianizer.to_model_units(self._check_data(X, reset=False))
        return self.low_rank_.log_likelihood(values - self.location_)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log-likelihood of the rows of `X`, in nats: larger is better."""
        return float(self.score_samples(X).mean())

    @cached_property
    def covariance_(self) -> np.ndarray:
        """Dense covariance estimate, shape (n_features, n_features)."""
        return self.low_rank_.toarray()

    @cached_property
    def precision_(self) -> np.ndarray:
        """Dense inverse of the covariance estimate, shape (n_features, n_features)."""
        return self.low_rank_.precision()

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = nan_is_missing(self.missing_values)
        return tags

    def _check_parameters(self) -> None:
        check_integer("n_components", self.n_components, minimum=1)
        for name in ("anneal", "overlap"):
            check_flag(name, getattr(self, name))
        check_real("tol", self.tol, minimum=0)
        check_integer("max_iter", self.max_iter, minimum=1)
        check_option("gaussianize", self.gaussianize, KINDS)
        check_option("dtype", self.dtype, ("float32", "float64"))
        check_missing_values(self.missing_values)
        check_device("device", self.device)

    def _check_data(self, X: Any, *, reset: bool) -> np.ndarray:
        X = check_rows(self, X, reset=reset, min_features=2)
        expected = reset and self.missing_values is not None and not nan_is_missing(self.missing_values)
        if expected and not (self.missing_values == X).any():
            warnings.warn(f"missing_values={self.missing_values!r} does not occur in X", stacklevel=3)
        return X

    def _climb(self, Z: np.ndarray) -> Climb:
        """Return where the ascent ends on standardised data (n, p)."""
        dtype = torch.float64 if self.overlap else getattr(torch, self.dtype)
        X = torch.from_numpy(Z).to(device=self.device, dtype=dtype)
        generator = Streams.of(self.random_state).numpy("weights")
        with progress(None, wanted=bool(self.verbose)) as report:
            if self.overlap:
                weights = random_overlap_weights(X, self.n_components, generator)
                return climb_with_overlap(X, weights, tol=self.tol, max_iter=self.max_iter, report=report)
            weights = random_weights(X, self.n_components, generator)
            return climb(X, weights, anneal=self.anneal, tol=self.tol, max_iter=self.max_iter, report=report)

    def _describe(self, Z: np.ndarray, weights: np.ndarray) -> None:
        """Set the fitted attributes from standardised data (n, p) and normalised weights (m, p)."""
        weights = _below_one(Z, weights)
        moments = objective_moments(Z, weights)
        tcs = mutual_information(moments["rho"]).sum(axis=1) + 0.5 * np.log1p(-moments["uj"])
        order = np.argsort(-tcs, kind="stable")
        rho, A = moments["rho"][order], loadings(moments)[order]
        regression = np.linalg.solve(moments["ry"][np.ix_(order, order)], rho)
        self._store(weights[order], rho, tcs[order], moments["TC"], regression)
        self._store_covariance(A, 1 - (A**2).sum(axis=0))

    def _describe_overlapping(self, Z: np.ndarray, weights: np.ndarray) -> None:
        """Set the fitted attributes from standardised data (n, p) and weights (m, p) of overlapping factors."""
        X = torch.from_numpy(Z)
        model = OverlapModel.of(X, torch.from_numpy(weights))
        kept = 0.5 * torch.log(model.factor_covariance.diagonal()).numpy()
        tcs = mutual_information(model.correlation.numpy()).sum(axis=1) - kept
        weights = weights[np.argsort(-tcs, kind="stable")]
        model = OverlapModel.of(X, torch.from_numpy(weights))
        tcs = np.sort(tcs)[::-1]
        self._store(weights, model.correlation.numpy(), tcs, model.tc, model.regression.numpy())
        root = torch.linalg.cholesky(model.factor_covariance)
        A = torch.linalg.solve_triangular(root, model.covariance, upper=False)
        self._store_covariance(A.numpy(), model.residual.numpy())

    def _store(self, weights: np.ndarray, rho: np.ndarray, tcs: np.ndarray, tc: float, regression: np.ndarray) -> None:
        """Keep weights, correlations and regression coefficients (m, p), and the factors' shares of the TC (m,)."""
        self.components_ = weights
        self.labels_ = np.abs(weights).argmax(axis=0)
        self.mutual_info_ = mutual_information(rho)
        self.tcs_ = tcs
        self.tc_ = tc
        self._regression = regression

    def _store_covariance(self, A: np.ndarray, residual: np.ndarray) -> None:
        """Keep the covariance of loadings A (m, p) and residual variances (p,) on the model's scale."""
        scale = self._gaussianizer.scale_
        self.location_ = self._gaussianizer.location_
        self.low_rank_ = LowRankDiagCovariance(A * scale, np.maximum(residual, SMALLEST_VARIANCE) * scale**2)

    def _discard_dense(self) -> None:
        """Forget the dense matrices of an earlier fit."""
        for name in ("covariance_", "precision_"):
            self.__dict__.pop(name, None)


def _below_one(Z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Shrink weights (m, p) whose u on the data Z (n, p) rounding has brought to one."""
    u = ((weights @ Z.T) ** 2).mean(axis=1)
    return weights * np.sqrt(np.minimum(1, LARGEST_U / np.maximum(u, LARGEST_U)))[:, None]


def _warn_of_copies(Z: np.ndarray) -> None:
    """Warn of columns of Z (n, p) that nearly are copies: they meet when sorted by a random projection."""
    unit = Z / np.maximum(np.linalg.norm(Z, axis=0), np.finfo(float).tiny)
    order = np.argsort(np.abs(np.random.default_rng(0).standard_normal(len(Z)) @ unit))
    correlation = np.einsum("ij,ij->j", unit[:, order[1:]], unit[:, order[:-1]])
    copies = np.flatnonzero(np.abs(correlation) > NEARLY_COPY)
    if len(copies):
        first, second = sorted(order[copies[0] : copies[0] + 2])
        warnings.warn(
            f"X has nearly identical columns, such as {first} and {second} ({len(copies)} found): their covariance is "
            "nearly singular, and tc_ grows without limit where a factor follows them",
            stacklevel=3,
        )
