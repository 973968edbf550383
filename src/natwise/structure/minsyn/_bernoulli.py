"""The Bernoulli loss of MinSyn: sigmoid factors, pairwise tables, and the gradient.

Y_j is 1 with probability y_j = sigmoid(w_j·x + c_j). The tables p(x_i=1|Y_j=1) = E[x_i y_j]/E[y_j] and
p(x_i=1|Y_j=0) = E[x_i(1-y_j)]/E[1-y_j] are computed from the whole sample, clipped to [0.001, 0.999], and combined
as if the factors were independent given x_i, with the expected logit where y_j is between 0 and 1:

    logit p_CI(x_i=1|y) = logit p_i + sum_j [y_j logit p(x_i|Y_j=1) + (1-y_j) logit p(x_i|Y_j=0) - logit p_i].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, xlogy

from natwise.structure.minsyn._span import Span

CLIP = 1e-3


@dataclass(frozen=True)
class BernoulliDecoder:
    """p_CI(x_i|y) from the log-odds of the variables alone (p,), and given that a factor is on or off (m, p)."""

    alone: np.ndarray
    on: np.ndarray
    off: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, Y: np.ndarray) -> BernoulliDecoder:
        """Return the tables of samples X (n, p) in [0, 1] and factors Y (n, m) in (0, 1)."""
        return cls(_log_odds(X.mean(0)), _log_odds(_mean_given(X, Y)), _log_odds(_mean_given(X, 1 - Y)))

    def logits(self, Y: np.ndarray) -> np.ndarray:
        """Return logit p_CI(x_i=1|y), shape (n, p)."""
        return (1 - len(self.on)) * self.alone + Y @ self.on + (1 - Y) @ self.off

    def predict(self, Y: np.ndarray) -> np.ndarray:
        """Return E[x|y], shape (n, p)."""
        return expit(self.logits(Y))

    def log_likelihood(self, X: np.ndarray, Y: np.ndarray) -> float:
        """Return the mean over samples of sum_i log p_CI(x_i|y)."""
        return -_cross_entropy(X, self.logits(Y))

    def mutual_information(self, share: np.ndarray) -> np.ndarray:
        """Return I(X_i;Y_j) in nats, shape (m, p), where Y_j is on with probability share (m,)."""
        share = share[:, None]
        on, off = expit(self.on), expit(self.off)
        mean = share * on + (1 - share) * off
        return np.maximum(_entropy(mean) - share * _entropy(on) - (1 - share) * _entropy(off), 0.0)


class BernoulliLoss:
    """L = -sum_i E log p_CI(x_i|y) + beta sum_j I(Y_j;X), over the encoder in scaled coordinates of the sample.

    The coordinates are the principal components over the standard deviation of the largest one: directions that
    vary little are learned late, as by gradients on the variables themselves.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Samples in [0, 1].
    span : Span
        Of the centred samples.
    n_components : int
        Number of factors.
    beta : float
        Weight of the information in the factors.
    """

    def __init__(self, X: np.ndarray, span: Span, n_components: int, beta: float):
        self.X, self.span, self.n_components, self.beta = X, span, n_components, beta
        self.relative_scale = span.singular_values / span.singular_values[0]
        self.inputs = np.column_stack([span.coordinates * self.relative_scale, np.ones(len(X))])

    def start(self, rng: np.random.Generator) -> np.ndarray:
        """Return random weights that give logits of standard deviation 1/2, without intercepts."""
        a = rng.standard_normal((self.n_components, self.span.rank + 1))
        a *= 0.5 / np.sqrt((self.relative_scale**2).sum())
        a[:, -1] = 0.0
        return a

    def __call__(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss and its gradient with respect to the weights and intercepts (m (rank + 1),)."""
        logits = self.inputs @ flat.reshape(self.n_components, -1).T
        Y = expit(logits)
        loss, by_Y = _decoding(self.X, Y)
        by_logits = by_Y * Y * expit(-logits)
        if self.beta:
            information, slope = _information(logits, Y)
            loss += self.beta * information.sum()
            by_logits += self.beta * slope
        return float(loss), (by_logits.T @ self.inputs).ravel()

    def weights(self, a: np.ndarray) -> np.ndarray:
        """Return the weights on the centred variables, shape (n_components, n_features)."""
        return self.span.to_variables(a[:, :-1] * self.relative_scale)


def factor_information(logits: np.ndarray) -> np.ndarray:
    """Return I(Y_j;X) in nats of factors that are on with probability sigmoid(logits), shape (n_components,)."""
    return _information(logits, expit(logits))[0]


def _decoding(X: np.ndarray, Y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return -sum_i E log p_CI(x_i|y) and its derivative by Y, through the decoder and through the decoder."""
    decoder = BernoulliDecoder.of(X, Y)
    logits = decoder.logits(Y)
    error = (expit(logits) - X) / len(X)
    through_decoder = error @ (decoder.on - decoder.off).T
    return _cross_entropy(X, logits), through_decoder + _through_table(X, Y, error) - _through_table(X, 1 - Y, error)


def _cross_entropy(X: np.ndarray, logits: np.ndarray) -> float:
    """Return -sum_i E log p(x_i) of samples and log-odds, both (n, p)."""
    return float((np.logaddexp(0.0, logits) - X * logits).sum() / len(X))


def _through_table(X: np.ndarray, share: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return the derivative by the shares (n, m) of the log-odds in the table of means given these shares."""
    mean = _mean_given(X, share)
    inside = (mean > CLIP) & (mean < 1 - CLIP)
    slope = np.where(inside, share.T @ error, 0.0) / (mean * (1 - mean)).clip(CLIP * (1 - CLIP))
    slope /= _total(share)[:, None]
    return X @ slope.T - (slope * mean).sum(1)


def _information(logits: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return I(Y_j;X) of every factor and its derivative by the logits."""
    n = len(Y)
    mean = np.clip(Y.mean(0), 1e-12, 1 - 1e-12)
    given_x = (np.logaddexp(0.0, logits) - Y * logits).mean(0)  # the entropy of a bit with these log-odds
    return _entropy(mean) - given_x, Y * expit(-logits) * (logits - logit(mean)) / n


def _mean_given(X: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return E[x_i | factor j] (m, p) of samples X (n, p) whose shares in the factors are (n, m)."""
    return (share.T @ X) / _total(share)[:, None]


def _total(share: np.ndarray) -> np.ndarray:
    """Return the sums (m,) of shares (n, m), not quite 0."""
    return np.maximum(share.sum(0), 1e-12)


def _log_odds(mean: np.ndarray) -> np.ndarray:
    """Return the log-odds of clipped means of any shape."""
    return logit(np.clip(mean, CLIP, 1 - CLIP))


def _entropy(p: np.ndarray) -> np.ndarray:
    """Return the entropy of bits of probability p, of any shape."""
    return -xlogy(p, p) - xlogy(1 - p, 1 - p)
