"""`MinSyn`: factors with minimal synergy about the variables, as a scikit-learn transformer."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from natwise.core.progress import progress
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_option, check_real
from natwise.structure._inputs import check_rows
from natwise.structure.linear_corex._moments import mutual_information
from natwise.structure.minsyn._bernoulli import BernoulliDecoder, BernoulliLoss, factor_information
from natwise.structure.minsyn._gaussian import GaussianDecoder, GaussianLoss, correlations, synergy
from natwise.structure.minsyn._span import Span

_FIRST_NOISE = 0.9
_STAGES = 6
_ROUNDING = 1e-14  # spread over magnitude, up to which a column only varies by rounding


class MinSyn(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Factors from which every variable can be predicted by adding up what each factor says on its own.

    Minimises ``sum_i [H(X_i|Y) + S_CI(X_i;Y)] + beta sum_j I(Y_j;X)``, where S_CI is the synergy
    `synergy.ci`: the reconstruction loss of a decoder that takes the factors to be independent given each
    variable. Factors may depend on one another (the letters of a word do), unlike those of ICA.

    Parameters
    ----------
    n_components : int
        Number of factors.
    likelihood : {"gaussian", "bernoulli"}
        "gaussian": linear factors of standardised variables, all terms in closed form. "bernoulli": binary
        factors with probability sigmoid(w·x + c), for variables in [0, 1].
    beta : float
        Price of a nat of information in a factor; 0 is the plain loss.
    noise : float
        Variance of the noise in a factor of unit variance ("gaussian" only), in [1e-6, 1). It bounds I(Y_j;X) by
        -log(noise)/2: without noise, a factor that copies one variable would have an unbounded likelihood.
    n_init : int
        Number of random starts; the one with the lowest loss is kept.
    max_iter : int
        Largest number of L-BFGS iterations of each of the six noise levels ("gaussian"), or of a start.
    tol : float
        Relative decrease of the loss at which a stage ends.
    verbose : int
        1 shows a progress bar over the starts, on a terminal.
    random_state : int, Generator, RandomState or None
        Seed of the random starts.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features), float64
        Weights of the encoder on the standardised ("gaussian") or centred ("bernoulli") variables; the factor that
        tells most about the variables first, the largest weight of each factor positive.
    intercept_ : ndarray of shape (n_components,)
        Constants of the encoder; 0 for "gaussian".
    mean_, scale_ : ndarray of shape (n_features,)
        What the variables are shifted and divided by (scale 1 for constant variables and for "bernoulli").
    mutual_info_ : ndarray of shape (n_components, n_features)
        I(X_i;Y_j) in nats.
    factor_information_ : ndarray of shape (n_components,)
        I(Y_j;X) in nats.
    synergy_ : ndarray of shape (n_features,)
        S_CI(X_i;Y) in nats; "gaussian" only, as it has no closed form for the other.
    loss_ : float
        The minimised loss in nats per sample, of the standardised variables for "gaussian".
    n_iter_ : int
        L-BFGS iterations of the start that was kept.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Ver Steeg, Brekelmans, Harutyunyan and Galstyan, "Disentangled representations via synergy minimization", 2017.
    The authors released no code of the method. The loss is the natural reading of its idea. The
    linear-Gaussian case is linear CorEx with the residual variance of p_CI in the place of a fitted one; `noise`,
    its gradual decrease and the binary version are ours.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> source = rng.standard_normal((500, 2))
    >>> X = np.repeat(source, 3, axis=1) + 0.5 * rng.standard_normal((500, 6))
    >>> model = MinSyn(2, random_state=0).fit(X)
    >>> sorted(np.abs(model.components_).argmax(0) == np.abs(model.components_[:, 0]).argmax())
    [np.False_, np.False_, np.False_, np.True_, np.True_, np.True_]
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        likelihood: str = "gaussian",
        beta: float = 0.0,
        noise: float = 0.003,
        n_init: int = 1,
        max_iter: int = 1000,
        tol: float = 1e-7,
        verbose: int = 0,
        random_state: RandomState = None,
    ):
        self.n_components = n_components
        self.likelihood = likelihood
        self.beta = beta
        self.noise = noise
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> MinSyn:
        """Fit the factors.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least two samples that differ; values in [0, 1] for "bernoulli".
        y : ignored

        Raises
        ------
        ValueError, TypeError
            If a parameter is out of its range, or X is not as described.
        """
        self._check_parameters()
        X = check_rows(self, X, reset=True)
        self._scale(X)
        span = Span.of(self._scaled(X))
        starts = Streams.of(self.random_state)
        with progress(self.n_init, wanted=bool(self.verbose)) as report:
            runs = []
            for k in range(self.n_init):
                runs.append(self._run(X, span, starts.child(k).numpy("start")))
                report(k + 1, f"loss {runs[-1][0]:.6g}")
        self.loss_, a, self.n_iter_, finished = min(runs, key=lambda run: run[0])
        if not finished:
            message = f"MinSyn did not converge in max_iter={self.max_iter} iterations"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        self._keep(X, span, a)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the factors, shape (n_samples, n_components): w·x, or the probability that each is on."""
        check_is_fitted(self)
        X = check_rows(self, X, reset=False)
        if self.likelihood == "bernoulli":
            _check_unit_interval(X)
        values = self._scaled(X) @ self.components_.T + self.intercept_
        return expit(values) if self.likelihood == "bernoulli" else values

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return E[x|y] of the conditionally independent decoder, shape (n_samples, n_features), in the units of fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)
            Factors as given by `transform`.
        """
        check_is_fitted(self)
        Y = check_array("X", X, shape=("n_samples", len(self.components_)), dtype=np.float64)
        if self.likelihood == "bernoulli":
            _check_unit_interval(Y)
        return self._decoder.predict(Y)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean over samples of sum_i E log p_CI(x_i|y) in nats, the expectation over the noise in y.

        A density of X in its own units for "gaussian" (constant variables are left out).
        """
        check_is_fitted(self)
        Y = self.transform(X)
        X = check_rows(self, X, reset=False)
        return self._decoder.log_likelihood(X, Y)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _check_parameters(self) -> None:
        check_integer("n_components", self.n_components, minimum=1)
        check_option("likelihood", self.likelihood, ("gaussian", "bernoulli"))
        check_real("beta", self.beta, minimum=0)
        if not 1e-6 <= check_real("noise", self.noise) < 1:
            raise ValueError(f"noise must be in [1e-6, 1), got {self.noise}")
        check_integer("n_init", self.n_init, minimum=1)
        check_integer("max_iter", self.max_iter, minimum=1)
        check_real("tol", self.tol, minimum=0)

    def _scale(self, X: np.ndarray) -> None:
        """Learn means and scales of samples (n, p)."""
        with np.errstate(over="ignore", invalid="ignore"):
            self.mean_, deviation = X.mean(0), X.std(0)
        if not np.isfinite(deviation).all():
            raise ValueError(f"X must have finite variances, they overflow in column {np.isfinite(deviation).argmin()}")
        self._varies = deviation > _ROUNDING * np.abs(X).max(0)
        if not self._varies.any():
            raise ValueError("X must have a column that varies, all its columns are constant")
        if self.likelihood == "bernoulli":
            _check_unit_interval(X)
        standardise = self._varies if self.likelihood == "gaussian" else False
        self.scale_ = np.where(standardise, deviation, 1.0)

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        """Return samples (n, p) on the model's scale."""
        return (X - self.mean_) / self.scale_

    def _losses(self, X: np.ndarray, span: Span) -> list[GaussianLoss | BernoulliLoss]:
        """Return the losses on samples (n, p) to minimise one after the other; the last one is the loss itself."""
        if self.likelihood == "bernoulli":
            return [BernoulliLoss(X, span, self.n_components, self.beta)]
        levels = np.geomspace(max(_FIRST_NOISE, self.noise), self.noise, _STAGES)
        return [GaussianLoss(span, self.n_components, noise, self.beta) for noise in levels]

    def _run(self, X: np.ndarray, span: Span, rng: np.random.Generator) -> tuple[float, np.ndarray, int, bool]:
        """Return loss, weights (m, rank), number of iterations and whether the last stage ended by itself."""
        losses = self._losses(X, span)
        a, n_iter = losses[0].start(rng), 0
        options = {"maxiter": self.max_iter, "maxfun": 20 * self.max_iter, "ftol": self.tol, "gtol": 1e-7}
        for loss in losses:
            found = minimize(loss, a.ravel(), jac=True, method="L-BFGS-B", options=options)
            a, n_iter = found.x.reshape(a.shape), n_iter + found.nit
        return float(found.fun), a, max(1, n_iter), found.status != 1

    def _keep(self, X: np.ndarray, span: Span, a: np.ndarray) -> None:
        """Store what is learned from weights a (m, rank), factors in order and with their sign."""
        loss = self._losses(X, span)[-1]
        told = self._describe(X, loss, a)[2].sum(1)
        weights = loss.weights(a)
        largest = weights[np.arange(len(a)), np.abs(weights).argmax(1)]
        order = np.argsort(-told, kind="stable")
        a = (np.where(largest < 0, -1.0, 1.0)[:, None] * a)[order]
        self.components_ = loss.weights(a)
        self.intercept_, self.factor_information_, self.mutual_info_ = self._describe(X, loss, a)

    def _describe(
        self, X: np.ndarray, loss: GaussianLoss | BernoulliLoss, a: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Store the decoder; return the intercepts (m,), I(Y_j;X) (m,) and I(X_i;Y_j) (m, p)."""
        if isinstance(loss, BernoulliLoss):
            logits = loss.inputs @ a.T
            Y = expit(logits)
            decoder = BernoulliDecoder.of(X, Y)
            self._decoder: GaussianDecoder | BernoulliDecoder = decoder
            return a[:, -1].copy(), factor_information(logits), decoder.mutual_information(Y.mean(0))
        w = loss.encode(a)
        R = w @ loss.span.loadings
        noise = 1 - (w**2).sum(1)
        self._decoder = GaussianDecoder(R, noise, self.mean_, X.std(0) * self._varies)
        self.synergy_ = synergy(R, correlations(w))
        return np.zeros(len(a)), -0.5 * np.log(noise), mutual_information(R)


def _check_unit_interval(X: np.ndarray) -> None:
    """Refuse values of any shape outside [0, 1]."""
    if X.min() < 0 or X.max() > 1:
        raise ValueError(f"X must be in [0, 1] for likelihood='bernoulli', got values from {X.min()} to {X.max()}")
