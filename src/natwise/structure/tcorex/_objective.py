"""The noise-free T-CorEx objective and its gradient: all periods at once, block of variables by block of variables."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

SMALLEST_VARIANCE = 1e-6
_BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**27}


@dataclass(frozen=True)
class Rows:
    """Samples, and the weight that each period gives to each of them.

    ``X`` is (N, p) when all periods look at the same rows, or (T, n, p) when each has its own, filled up with zeros to
    equal numbers; products with (T, m, p) weights are one matrix product or one batched product. ``weights`` is (T, N)
    or (T, n), each row of sum one.
    """

    X: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Rows:
        """Return the same on another device, in another precision."""
        return Rows(self.X.to(device, dtype), self.weights.to(device, dtype))

    def second_moments(self) -> torch.Tensor:
        """Return the weighted mean of x_i^2 in each period, (T, p)."""
        weights = self.weights if self.X.ndim == 2 else self.weights[:, None]
        return (weights @ self.X**2).view(len(self.weights), -1)


@dataclass(frozen=True)
class TemporalPenalty:
    """l1 times the absolute plus l2 times the squared change between consecutive periods.

    The absolute value is smoothed, |d| = sqrt(d^2 + s^2) - s with s = `smoothing`. Weights are of order 0.1 to 1, so a
    change that matters is charged in full, and the objective stays differentiable, which a quasi-Newton method needs.
    Exact zeros would be of no use here: the covariances of two periods differ through their samples anyway.
    """

    l1: float = 0.0
    l2: float = 0.0
    on: str = "weights"
    smoothing: float = 1e-3

    def __call__(self, M: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the penalty of `M` (T, m, p), float64, and add its gradient to `gradient`."""
        change = M[1:] - M[:-1]
        value = torch.zeros((), dtype=torch.float64, device=M.device)
        if self.l2:
            value += self.l2 * (change**2).sum()
            _add_difference(gradient, change, 2 * self.l2)
        if self.l1:
            size = torch.addcmul(change.new_tensor(self.smoothing**2), change, change).sqrt_()
            value += self.l1 * (size.sum() - self.smoothing * size.numel())
            _add_difference(gradient, change.div_(size), self.l1)
        return value

    def applies_to(self, kind: str) -> bool:
        """Say whether changes of ``"weights"`` or of ``"mutual_info"`` cost anything."""
        return self.on == kind and (self.l1 > 0 or self.l2 > 0)


def _add_difference(gradient: torch.Tensor, slope: torch.Tensor, factor: float) -> None:
    """Add the gradient of a function of consecutive differences whose derivative is `factor` times `slope`."""
    gradient[1:].add_(slope, alpha=factor)
    gradient[:-1].sub_(slope, alpha=factor)


class TemporalObjective:
    """(1 / Tp) [sum_t O_t + penalty] as a function of the weights W (T, m, p), at one level of annealing.

    Parameters
    ----------
    window : Rows
        The samples that each period learns its correlations from, weighted by their distance in time.
    own : Rows or None
        The samples whose residuals count: those of the period itself. None: those of `window`.
    penalty : TemporalPenalty
        On the changes of the weights or of the mutual informations.
    eps : float
        Annealing noise: every second-moment matrix S becomes (1 - eps^2) S + eps^2 I.

    Notes
    -----
    The factors are divided by the root of E[z^2] from the start, so that this root enters no m x p pass. An evaluation
    takes four products with the N samples of the window, 8 T N m p flops; the element-wise work is done on blocks of
    variables that stay in the cache, and nothing but W and its gradient is held at full size.
    """

    def __init__(self, window: Rows, own: Rows | None, penalty: TemporalPenalty, eps: float = 0.0):
        self._window, self._own, self._penalty, self._noise = window, own, penalty, eps**2
        self._variance = self._with_noise(window.second_moments())
        self._own_variance = self._variance if own is None else self._with_noise(own.second_moments())

    def __call__(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the objective (float64 scalar) and its gradient (T, m, p)."""
        bounds, penalty, gradient = self.evaluate(W)
        per_variable = 1 / (len(W) * W.shape[2])
        return (bounds.sum() + penalty) * per_variable, gradient.mul_(per_variable)

    def evaluate(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return O_t of each period (T,) and the penalty, in nats and float64, and the gradient of their sum."""
        window = Factors(self._window, W, self._noise)
        own = window if self._own is None else Factors(self._own, W, self._noise, window.scale)
        bounds = torch.log(window.scale).double().sum((1, 2))
        penalty = torch.zeros_like(bounds[0])
        gradient = torch.empty_like(W)
        for columns in self._blocks(W):
            variances = self._variance[:, columns], self._own_variance[:, columns]
            residuals = Residuals(window.images(columns), own.images(columns), own.gram, *variances)
            bounds += residuals.entropy
            if self._penalty.applies_to("mutual_info"):
                penalty += residuals.penalize(self._penalty)
            through_images, through_own_images, through_gram, pull = residuals.gradients()
            window.receive(through_images, columns)
            own.receive(through_own_images, columns)
            own.mixing += through_gram
            window.mixing.diagonal(dim1=1, dim2=2).sub_(pull)
            if self._noise:
                torch.add(through_images, through_own_images, out=gradient[..., columns])
        window.mixing.diagonal(dim1=1, dim2=2).add_(1)  # from the logarithm of the scale
        penalty += self._finish(gradient, W, window, own)
        return bounds, penalty, gradient

    def correlations(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the correlations of factors and variables (T, m, p), and the root of E[z^2] (T, m, 1)."""
        factors = Factors(self._window, W, self._noise)
        return factors.images(slice(None)) / _root(self._variance), factors.scale

    def _finish(self, gradient: torch.Tensor, W: torch.Tensor, window: Factors, own: Factors) -> torch.Tensor:
        """Turn gradients with respect to images and grams into the one with respect to W; return the penalty of W."""
        penalty = torch.zeros((), dtype=torch.float64, device=W.device)
        mixing = window.mixing if own is window else window.mixing + own.mixing
        for columns in self._blocks(W):
            part = window.weight_gradient(columns)
            if own is not window:
                part += own.weight_gradient(columns)
            if self._noise:
                through_noise = gradient[..., columns].baddbmm_(mixing, W[..., columns] / window.scale)
                part.addcmul_(through_noise, self._noise / window.scale)
            if self._penalty.applies_to("weights"):
                penalty += self._penalty(W[..., columns], part)
            gradient[..., columns] = part
        return penalty

    def _with_noise(self, variance: torch.Tensor) -> torch.Tensor:
        return (1 - self._noise) * variance + self._noise

    def _blocks(self, W: torch.Tensor) -> Iterator[slice]:
        width = max(16, _BLOCK_ELEMENTS[W.device.type] // (W.shape[0] * W.shape[1]))
        return (slice(start, start + width) for start in range(0, W.shape[2], width))


class Factors:
    """The factors z = W x + noise on some rows, and what the objective's gradient has to say about them.

    Parameters
    ----------
    rows : Rows
        The samples.
    W : tensor of shape (T, m, p)
        The weights.
    noise : float
        eps^2.
    scale : tensor of shape (T, m, 1), optional
        What the factors are divided by. Default: the root of their second moments E[z^2] on these rows.
    """

    def __init__(self, rows: Rows, W: torch.Tensor, noise: float, scale: torch.Tensor | None = None):
        self.rows, self._W, self._noise = rows, W, noise
        self._weights = ((1 - noise) * rows.weights)[:, None]
        values = W @ rows.X.mT
        gram = (values * self._weights) @ values.mT
        if noise:
            gram = gram.baddbmm_(W, W.mT, alpha=noise)
        gram.diagonal(dim1=1, dim2=2).add_(1)
        self.scale = gram.diagonal(dim1=1, dim2=2).sqrt()[..., None] if scale is None else scale
        self.gram = gram / self.scale / self.scale.mT
        self.values = values.div_(self.scale)
        self._weighted = self.values * self._weights
        self.mixing = torch.zeros_like(gram)
        self._received = torch.zeros_like(self.values)

    def images(self, columns: slice) -> torch.Tensor:
        """Return E[z_j x_i] / scale_j for some variables, (T, m, columns)."""
        images = self._weighted @ self.rows.X[..., columns]
        return images.add_(self._W[..., columns] / self.scale, alpha=self._noise) if self._noise else images

    def receive(self, gradient: torch.Tensor, columns: slice) -> None:
        """Take the gradient with respect to `images`."""
        self._received += gradient @ self.rows.X[..., columns].mT

    def weight_gradient(self, columns: slice) -> torch.Tensor:
        """Return the gradient with respect to W for some variables, but for the terms of the annealing noise."""
        return self._coefficients @ self.rows.X[..., columns]

    @functools.cached_property
    def _coefficients(self) -> torch.Tensor:
        return torch.baddbmm(self._received, self.mixing, self.values) * self._weights / self.scale


class Residuals:
    """sum_i 1/2 log E[(x_i - mu_i(z))^2] over a block of variables, and its gradients.

    Parameters
    ----------
    images, own_images : tensor of shape (T, m, c)
        E[z_j x_i] / sqrt(E[z_j^2]) on the rows that correlations are learned from, and on those whose residuals count.
    gram : tensor of shape (T, m, m)
        E[z_j z_k] / sqrt(E[z_j^2] E[z_k^2]), the numerator on the latter.
    variance, own_variance : tensor of shape (T, c)
        E[x_i^2] on both.

    Attributes
    ----------
    entropy : tensor of shape (T,), float64
        The sum, in nats.
    """

    def __init__(
        self,
        images: torch.Tensor,
        own_images: torch.Tensor,
        gram: torch.Tensor,
        variance: torch.Tensor,
        own_variance: torch.Tensor,
    ):
        self._own_images = own_images
        self._per_root = 1 / _root(variance)
        self._R = images * self._per_root
        self._q = torch.addcmul(images.new_ones(()), self._R, self._R, value=-1).reciprocal_()
        self._b = self._R * self._q
        self._shrink = (1 / (1 - images.shape[1] + self._q.sum(1, keepdim=True))).div_(self._per_root)
        self._B = self._b * self._shrink
        self._predicted = torch.bmm(gram, self._B)
        residual = own_variance + (self._predicted - own_images).sub_(own_images).mul_(self._B).sum(1)
        self._precision = torch.where(residual > SMALLEST_VARIANCE, 1 / residual, 0)[:, None]
        self.entropy = 0.5 * torch.log(residual.clamp_min_(SMALLEST_VARIANCE)).double().sum(1)
        self._through_information: torch.Tensor | None = None

    def penalize(self, penalty: TemporalPenalty) -> torch.Tensor:
        """Return the penalty of the mutual informations -1/2 log(1 - R^2); `gradients` will contain its gradient."""
        self._through_information = torch.zeros_like(self._R)
        return penalty(0.5 * torch.log(self._q), self._through_information)

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients with respect to `images`, `own_images` and `gram`, and the pull on the factors' scales.

        The pull (T, m) is minus the derivative with respect to the logarithm of the scales. The gradient with respect
        to `gram` is doubled, because `gram` is symmetric.
        """
        error = self._predicted.sub_(self._own_images)
        elasticity = (error * self._B).mul_(self._precision)
        through_b = error.mul_(self._precision * self._shrink)
        through_r = -elasticity.sum(1, keepdim=True) * self._shrink * self._per_root
        through_own = self._B * -self._precision
        through_gram = -through_own @ self._B.mT
        # b' = 2 q^2 - q and r' = 2 b q: the derivative by R is q (2 q (through_b + through_r R) - through_b)
        through_R = torch.addcmul(through_b, through_r, self._R).mul_(self._q).mul_(2).sub_(through_b).mul_(self._q)
        if self._through_information is not None:
            through_R.addcmul_(self._through_information, self._b)
        pull = elasticity.sum(2) + (through_R * self._R).sum(2)
        return through_R.mul_(self._per_root), through_own, through_gram, pull


def _root(variance: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation (T, 1, p), a millionth too large: correlations stay below one in float32."""
    return (1 + 1e-6) * variance.clamp_min(SMALLEST_VARIANCE).sqrt()[:, None]
