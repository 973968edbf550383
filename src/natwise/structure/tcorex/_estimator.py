"""`TCorEx`: a covariance matrix, groups of variables and change scores for each period of a series."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from natwise.core.gaussian import LowRankDiagCovariance
from natwise.core.progress import progress
from natwise.core.random import RandomState, Streams
from natwise.core.validation import (
    check_device,
    check_flag,
    check_integer,
    check_option,
    check_real,
)
from natwise.structure._inputs import check_missing_values, check_rows, nan_is_missing
from natwise.structure.linear_corex import LinearCorEx
from natwise.structure.linear_corex._moments import SMALLEST_VARIANCE, mutual_information
from natwise.structure.tcorex._changes import PrecisionDifference
from natwise.structure.tcorex._descent import Descent
from natwise.structure.tcorex._objective import OwnRows, Rows, TemporalObjective, TemporalPenalty
from natwise.structure.tcorex._periods import Standardization, check_times, distance_weights, find_periods

PENALTIES = ("weights", "mutual_info")


class TCorEx(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """T-CorEx: one linear CorEx model per period of a series, tied to its neighbours in time.

    Parameters
    ----------
    n_components : int, default 2
        Number of latent factors m of each period, at most the number of variables.
    l1 : float, default 0.0
        Cost of the absolute change of each weight from one period to the next: for sudden changes.
    l2 : float, default 0.0
        Cost of the squared change: for smooth changes.
    gamma : float in [0, 1], default 0.5
        A sample of a period at distance k counts gamma^k; weights below 1e-6 count nothing. 0: each period for itself,
        1: all samples are the same to all periods.
    max_iter : int, default 1000
        Iterations allowed in each of the seven stages of annealing.
    tol : float, default 3e-5
        A stage has converged when two iterations in a row lower the objective, in nats per variable and period, by
        less. Much smaller values let models with few samples per period overfit.
    weighted_objective : bool, default False
        Measure the residuals on all samples with their weights, instead of those of the period itself.
    penalty : {"weights", "mutual_info"}, default "weights"
        What `l1` and `l2` apply to: weights or mutual informations of factors and variables.
    missing_values : float or None, default None
        The number (or NaN) that marks missing values; they are replaced by the weighted mean of their period's window.
    device : str or torch.device, default "cpu"
        Where the descent runs.
    dtype : {"float32", "float64"}, default "float32"
        Precision of the descent. Everything learned from the final weights is computed in float64.
    random_state : int, Generator, RandomState or None
        Seeds the initial weights.
    verbose : int, default 0
        Show a progress bar on a terminal.

    Attributes
    ----------
    periods_ : ndarray of shape (n_periods,)
        The distinct times, sorted.
    components_ : ndarray of shape (n_periods, n_components, n_features)
        Weights of the standardised variables, divided by the size of the (noisy) factor. Factor j is the same factor
        in all periods.
    mutual_info_ : ndarray of shape (n_periods, n_components, n_features)
        I(X_i ; Y_j) in nats.
    labels_ : ndarray of shape (n_periods, n_features)
        The factor of largest mutual information: groups of variables.
    tc_ : ndarray of shape (n_periods,)
        Lower bound of the total correlation explained in each period, in nats.
    low_rank_ : list of LowRankDiagCovariance
        The covariance estimate of each period in O(p m) memory.
    covariances_ : ndarray of shape (n_periods, n_features, n_features)
        The same, dense, made when asked for.
    location_ : ndarray of shape (n_periods, n_features)
        Means of the model: weighted means, drawn towards the mean of all periods, and that towards zero, by as much
        as sampling noise explains.
    n_iter_ : int
        Iterations of all stages together.
    history_ : ndarray of shape (n_iterations,)
        The objective after each iteration, under the noise of its stage.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Minimises the noise-free form of the objective,
    ``sum_t O_t + l1 sum |W_{t+1} - W_t| + l2 sum (W_{t+1} - W_t)^2`` with O_t the linear CorEx objective on weighted
    samples, from one linear CorEx model of all periods, so that factors are aligned. The original draws noise at each
    iteration *and* at each evaluation; here a fitted model has one answer.
    All differences from the original code, each with its reason, stand on the method's page.

    scikit-learn names the second argument of `fit` and `score` ``y``: the times can be given in its place or by name.

    References
    ----------
    Harutyunyan, Moyer, Khachatrian, Ver Steeg, Galstyan. Efficient covariance estimation from temporal data.
    arXiv:1905.13276, 2019.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> before = rng.standard_normal((40, 2))[:, [0, 0, 0, 1, 1, 1]]
    >>> after = rng.standard_normal((40, 2))[:, [0, 1, 0, 1, 0, 1]]
    >>> X = np.concatenate([before, after]) + 0.5 * rng.standard_normal((80, 6))
    >>> model = TCorEx(2, l1=0.1, gamma=0.1, random_state=0).fit(X, times=np.repeat([0, 1, 2, 3], 20))
    >>> model.change_scores().argmax()
    np.int64(1)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        gamma: float = 0.5,
        max_iter: int = 1000,
        tol: float = 3e-5,
        weighted_objective: bool = False,
        penalty: str = "weights",
        missing_values: float | None = None,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.n_components = n_components
        self.l1 = l1
        self.l2 = l2
        self.gamma = gamma
        self.max_iter = max_iter
        self.tol = tol
        self.weighted_objective = weighted_objective
        self.penalty = penalty
        self.missing_values = missing_values
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, *, times: Any = None) -> TCorEx:
        """Fit one model per period.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The samples, in any order; at least two of each period and two variables.
        y, times : array-like of shape (n_samples,), optional
            The period of each sample: numbers, dates or strings, anything that sorts. Give one of the two. Default:
            all samples are of the same period, and the model is that of linear CorEx.

        Returns
        -------
        TCorEx
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            If a parameter, `X` or the times are not as described: the message names it.

        Warns
        -----
        ConvergenceWarning
            If the last stage needed more than `max_iter` iterations.
        """
        self._check_parameters()
        X = self._check_data(X, reset=True)
        check_integer("n_components", self.n_components, minimum=1, maximum=X.shape[1])
        times = _one_of(y, times)
        times = np.zeros(len(X), dtype=int) if times is None else check_times(times, len(X))
        self.periods_, period, counts = find_periods(times)
        order = np.argsort(period, kind="stable")
        weights = distance_weights(counts, self.gamma)
        self.__dict__.pop("covariances_", None)
        self._standardization = Standardization.estimate(X[order], weights)
        Z = self._standardization.apply(X[order], period[order])
        if not Z.any():
            raise ValueError("X must have a column that varies, all its columns are constant")
        window = weights / weights.sum(axis=1, keepdims=True)
        self._describe(Z, counts, window, self._minimize(Z, counts, window))
        return self

    def transform(self, X: Any, times: Any = None) -> np.ndarray:
        """Return the factors of `X`, shape (n_samples, n_components), each row by the model of its period.

        Without `times` all rows are taken to be of the last period.
        """
        check_is_fitted(self)
        X, period = self._check_new(X, times)
        Z = self._standardization.apply(X, period)
        factors = np.empty((len(X), self.components_.shape[1]))
        for t in np.unique(period):
            factors[period == t] = Z[period == t] @ self.components_[t].T
        return factors

    def score_samples(self, X: Any, times: Any = None) -> np.ndarray:
        """Return the log-likelihood of each row of `X` in its period, in nats, shape (n_samples,).

        Without `times` all rows are taken to be of the last period.
        """
        check_is_fitted(self)
        X, period = self._check_new(X, times)
        centred = X - self.location_[period]
        centred[np.isnan(centred)] = 0.0
        likelihood = np.empty(len(X))
        for t in np.unique(period):
            likelihood[period == t] = self.low_rank_[t].log_likelihood(centred[period == t])
        return likelihood

    def score(self, X: Any, y: Any = None, *, times: Any = None) -> float:
        """Return the mean log-likelihood of the rows of `X` with their times, in nats: larger is better."""
        check_is_fitted(self)
        return float(self.score_samples(X, _one_of(y, times)).mean())

    def change_scores(self, norm: str = "frobenius") -> np.ndarray:
        """Return how much the structure changed from each period to the next, shape (n_periods - 1,).

        Parameters
        ----------
        norm : {"frobenius", "spectral"}
            Norm of the difference of the inverse correlation matrices. Correlations, so that neither units nor
            changes of variance alone matter.
        """
        check_is_fitted(self)
        check_option("norm", norm, ("frobenius", "spectral"))
        return np.array([getattr(change, norm)() for change in self._changes()])

    def feature_change_scores(self) -> np.ndarray:
        """Return how much each variable's row of the inverse correlation matrix changed, (n_periods - 1, n_features).

        The root of a row's sum of squares is the Frobenius change score of that step: which variables moved.
        """
        check_is_fitted(self)
        return np.array([change.row_norms() for change in self._changes()]).reshape(-1, self.n_features_in_)

    @cached_property
    def covariances_(self) -> np.ndarray:
        """Dense covariance estimates, shape (n_periods, n_features, n_features)."""
        return np.stack([covariance.toarray() for covariance in self.low_rank_])

    @property
    def _n_features_out(self) -> int:
        return self.components_.shape[1]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = nan_is_missing(self.missing_values)
        return tags

    def _check_parameters(self) -> None:
        check_integer("n_components", self.n_components, minimum=1)
        for name in ("l1", "l2", "tol"):
            check_real(name, getattr(self, name), minimum=0)
        check_real("gamma", self.gamma, minimum=0, maximum=1)
        check_integer("max_iter", self.max_iter, minimum=1)
        check_flag("weighted_objective", self.weighted_objective)
        check_option("penalty", self.penalty, PENALTIES)
        check_option("dtype", self.dtype, ("float32", "float64"))
        check_missing_values(self.missing_values)
        check_device("device", self.device)

    def _check_data(self, X: Any, *, reset: bool) -> np.ndarray:
        """Return float64 samples (n, p) with NaN where values are missing."""
        X = check_rows(self, X, reset=reset, min_features=2)
        if self.missing_values is None or nan_is_missing(self.missing_values):
            return X
        return np.where(self.missing_values == X, np.nan, X)

    def _check_new(self, X: Any, times: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return samples (n, p) and the position of their period (n,)."""
        X = self._check_data(X, reset=False)
        if times is None:
            return X, np.full(len(X), len(self.periods_) - 1)
        times = check_times(times, len(X))
        try:
            position = np.searchsorted(self.periods_, times).clip(max=len(self.periods_) - 1)
        except TypeError:
            raise TypeError(f"times must be like those of fit, {self.periods_.dtype}, got {times.dtype}") from None
        unknown = times[self.periods_[position] != times]
        if len(unknown):
            raise ValueError(f"times must be periods seen in fit, got {unknown[0]}")
        return X, position

    def _minimize(self, Z: np.ndarray, counts: np.ndarray, window: np.ndarray) -> torch.Tensor:
        """Return the weights (T, m, p)."""
        dtype = getattr(torch, self.dtype)
        rows, own = _rows(Z, counts, window, self.weighted_objective)
        data = rows.to(self.device, dtype), own and own.to(self.device, dtype)
        penalty = TemporalPenalty(self.l1, self.l2, self.penalty)
        weights = self._common_weights(Z).to(self.device, dtype).repeat(len(counts), 1, 1)
        with progress(None, wanted=bool(self.verbose)) as report:
            descent = Descent(self.tol, self.max_iter, report)
            descent.run(lambda eps: TemporalObjective(*data, penalty, eps), weights)
        self.history_, self.n_iter_ = np.array(descent.history), len(descent.history)
        if not descent.converged:
            warnings.warn(
                f"TCorEx did not converge in max_iter={self.max_iter} iterations; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        return weights

    def _common_weights(self, Z: np.ndarray) -> torch.Tensor:
        """Return the weights (m, p) of one linear CorEx model of all samples: they align the factors of all periods."""
        model = LinearCorEx(
            self.n_components,
            gaussianize=None,
            device=self.device,
            dtype=self.dtype,
            random_state=Streams.of(self.random_state).child("common"),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a start only: it need be neither converged nor free of copies
            factors = model.fit(Z).transform(Z)
        size = np.sqrt(1 - (factors**2).mean(axis=0))
        return torch.from_numpy(model.components_ / size[:, None])

    def _describe(self, Z: np.ndarray, counts: np.ndarray, window: np.ndarray, weights: torch.Tensor) -> None:
        """Set the fitted attributes from standardised samples (N, p), `_rows`'s arguments and weights (T, m, p)."""
        weights = weights.double().cpu()
        objective = TemporalObjective(*_rows(Z, counts, window, self.weighted_objective), TemporalPenalty())
        self.tc_ = -objective.evaluate(weights, torch.empty_like(weights))[0].numpy()
        correlations, size = objective.correlations(weights)
        self.components_ = (weights / size).numpy()
        squared = correlations.numpy() ** 2
        self.mutual_info_ = mutual_information(correlations.numpy())
        self.labels_ = self.mutual_info_.argmax(axis=1)
        strength = correlations.numpy() / (1 - squared)
        self._loadings = strength / (1 + (squared / (1 - squared)).sum(axis=1, keepdims=True))
        self._uniqueness = np.maximum(1 - (self._loadings**2).sum(axis=1), SMALLEST_VARIANCE)
        self.location_ = self._standardization.location
        scale = self._standardization.scale
        self.low_rank_ = [
            LowRankDiagCovariance(A * s, d * s**2)
            for A, d, s in zip(self._loadings, self._uniqueness, scale, strict=True)
        ]

    def _changes(self) -> Iterator[PrecisionDifference]:
        models = list(zip(self._loadings, self._uniqueness, strict=True))
        return (PrecisionDifference(before, after) for before, after in pairwise(models))


def _one_of(y: Any, times: Any) -> Any:
    """Return the times, which scikit-learn calls y."""
    if y is not None and times is not None:
        raise ValueError("times must be given once, as the second argument or by name, got both")
    return y if times is None else times


def _rows(
    Z: np.ndarray, counts: np.ndarray, window: np.ndarray, weighted_objective: bool
) -> tuple[Rows, OwnRows | None]:
    """Return the rows that correlations are learned from, and those whose residuals count when they are others.

    Samples Z (N, p) stand period by period; `counts` (T,) says how many are of each, `window` (T, N) what each weighs.
    """
    own = np.zeros((len(counts), counts.max(), Z.shape[1]))
    filled = np.arange(counts.max()) < counts[:, None]
    own[filled] = Z
    position = np.zeros(filled.shape, dtype=int)
    position[filled] = np.arange(len(Z))
    own_rows = OwnRows(torch.from_numpy(own), torch.from_numpy(filled / counts[:, None]), torch.from_numpy(position))
    if np.count_nonzero(window) == len(Z):  # no period looks at another
        return own_rows, None
    return Rows(torch.from_numpy(Z), torch.from_numpy(window)), None if weighted_objective else own_rows
