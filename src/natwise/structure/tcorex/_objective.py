"""The noise-free T-CorEx objective and its gradient: all periods at once, block of variables by block of variables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from natwise.structure.linear_corex._moments import SMALLEST_VARIANCE

_BLOCK_ELEMENTS = {"cpu": 5 * 2**16, "cuda": 2**27}


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
class OwnRows(Rows):
    """The rows of each period, ``X`` (T, n, p), and their positions among the rows of the window, (T, n)."""

    position: torch.Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> OwnRows:
        """Return the same on another device, in another precision."""
        return OwnRows(self.X.to(device, dtype), self.weights.to(device, dtype), self.position.to(device))


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
        """Return the penalty of `M` (T, m, p), float64, and write its gradient to the second tensor."""
        width = max(1, _BLOCK_ELEMENTS[M.device.type] // len(M))
        blocks = zip(M.flatten(1).split(width, 1), gradient.flatten(1).split(width, 1), strict=True)
        return torch.stack([self._on_block(*block) for block in blocks]).sum()

    def _on_block(self, M: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the penalty of some columns (T, k) of the flattened weights and write their gradient (T, k)."""
        slope = M.new_empty(len(M) + 1, M.shape[1])
        slope[0], slope[-1] = 0, 0  # nothing before the first and after the last period
        change = torch.sub(M[1:], M[:-1], out=slope[1:-1])
        value = torch.zeros((), dtype=torch.float64, device=M.device)
        factor: float | torch.Tensor = 2 * self.l2
        if self.l2:
            value += self.l2 * change.square().sum()
        if self.l1:
            size = torch.addcmul(change.new_tensor(self.smoothing**2), change, change).sqrt_()
            value += self.l1 * (size.sum() - self.smoothing * size.numel())
            factor = size.reciprocal_().mul_(self.l1).add_(factor)
        change.mul_(factor)
        torch.sub(slope[:-1], slope[1:], out=gradient)
        return value

    def applies_to(self, kind: str) -> bool:
        """Say whether changes of ``"weights"`` or of ``"mutual_info"`` cost anything."""
        return self.on == kind and (self.l1 > 0 or self.l2 > 0)


class TemporalObjective:
    """(1 / Tp) [sum_t O_t + penalty] as a function of the weights W (T, m, p), at one level of annealing.

    Parameters
    ----------
    window : Rows
        The samples that each period learns its correlations from, weighted by their distance in time.
    own : OwnRows or None
        The samples whose residuals count: those of the period itself. None: those of `window`.
    penalty : TemporalPenalty
        On the changes of the weights or of the mutual informations.
    eps : float
        Annealing noise: every second-moment matrix S becomes (1 - eps^2) S + eps^2 I.

    Notes
    -----
    The factors are divided by the root of E[z^2] from the start, so that this root enters no m x p pass. An evaluation
    takes four products with the N samples of the window, 8 T N m p flops; the element-wise work is done in place, on
    blocks of variables that stay in the cache, and nothing but W and its gradient is held at full size.
    """

    def __init__(self, window: Rows, own: OwnRows | None, penalty: TemporalPenalty, eps: float = 0.0):
        self._window, self._own, self._penalty, self._noise = window, own, penalty, eps**2
        self._variance = self._with_noise(window.second_moments())
        self._own_variance = self._variance if own is None else self._with_noise(own.second_moments())

    def __call__(self, W: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the objective, a float64 scalar, and write its gradient to the second tensor, (T, m, p)."""
        bounds, penalty = self.evaluate(W, gradient)
        per_variable = 1 / (len(W) * W.shape[2])
        gradient.mul_(per_variable)
        return (bounds.sum() + penalty) * per_variable

    def evaluate(self, W: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return O_t of each period (T,) and the penalty, in nats and float64; write the gradient of their sum."""
        factors = Factors(self._window, self._own, W, self._noise)
        bounds = torch.log(factors.scale).double().sum((1, 2))
        penalty = torch.zeros_like(bounds[0])
        if self._penalty.applies_to("weights"):
            penalty += self._penalty(W, gradient)
        else:
            gradient.zero_()
        for columns in self._blocks(W):
            variances = self._variance[:, columns], self._own_variance[:, columns]
            residuals = Residuals(*factors.images(columns), factors.gram, *variances)
            bounds += residuals.entropy
            if self._penalty.applies_to("mutual_info"):
                penalty += residuals.penalize(self._penalty)
            factors.receive(residuals.gradients(), columns, gradient[..., columns])
        factors.add_gradient(gradient)
        return bounds, penalty

    def correlations(self, W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the correlations of factors and variables (T, m, p), and the root of E[z^2] (T, m, 1)."""
        factors = Factors(self._window, None, W, self._noise)
        return factors.images(slice(None))[0] / _guarded(self._variance).sqrt(), factors.scale

    def _with_noise(self, variance: torch.Tensor) -> torch.Tensor:
        """Return second moments (T, p) under the annealing noise."""
        return (1 - self._noise) * variance + self._noise

    def _blocks(self, W: torch.Tensor) -> Iterator[slice]:
        """Cut the variables of W (T, m, p) into parts that fit the cache."""
        width = max(16, _BLOCK_ELEMENTS[W.device.type] // (W.shape[0] * W.shape[1]))
        return (slice(start, start + width) for start in range(0, W.shape[2], width))


class Factors:
    """The factors z = W x + noise of all samples, and what the objective's gradient has to say about them.

    Parameters
    ----------
    window, own : Rows, OwnRows or None
        As in `TemporalObjective`.
    W : tensor of shape (T, m, p)
        The weights.
    noise : float
        eps^2.

    Attributes
    ----------
    scale : tensor of shape (T, m, 1)
        What the factors are divided by: the root of their second moments E[z^2] in the window.
    gram : tensor of shape (T, m, m)
        Their second moments in the rows whose residuals count, after this division.
    """

    def __init__(self, window: Rows, own: OwnRows | None, W: torch.Tensor, noise: float):
        self._window, self._own, self._W, self._noise = window, own, W, noise
        self._weights = ((1 - noise) * window.weights)[:, None]
        self._values = W @ window.X.mT
        self._weighted = self._values * self._weights
        second_moments = (self._weighted * self._values).sum(2, keepdim=True).add_(1)
        if noise:
            second_moments.add_(W.square().sum(2, keepdim=True), alpha=noise)
        self.scale = second_moments.sqrt_()
        self._values /= self.scale
        self._weighted /= self.scale
        self._own_values, self._own_weighted = self._values, self._weighted
        if own is not None:
            self._position = own.position[:, None].expand(-1, W.shape[1], -1)
            self._own_weights = ((1 - noise) * own.weights)[:, None]
            self._own_values = self._values.gather(2, self._position)
            self._own_weighted = self._own_values * self._own_weights
            self._own_received = torch.zeros_like(self._own_values)
        self.gram = self._own_weighted @ self._own_values.mT
        if noise:
            self.gram.baddbmm_(W / self.scale, (W / self.scale).mT, alpha=noise)
        self.gram.diagonal(dim1=1, dim2=2).add_(self.scale[..., 0] ** -2)
        self._received, self._mixing = torch.zeros_like(self._values), torch.zeros_like(self.gram)
        self._pull = torch.zeros_like(self.scale)

    def images(self, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return E[z_j x_i] / scale_j in the window and in the rows whose residuals count, (T, m, columns)."""
        images = self._weighted @ self._window.X[..., columns]
        own_images = images.clone() if self._own is None else self._own_weighted @ self._own.X[..., columns]
        if self._noise:
            for part in (images, own_images):
                part.addcmul_(self._W[..., columns], self._noise / self.scale)
        return images, own_images

    def receive(self, through: Sequence[torch.Tensor], columns: slice, gradient: torch.Tensor) -> None:
        """Take gradients of `Residuals.gradients`; add what passes by the samples to the gradient of W (T, m, c)."""
        through_images, through_own_images, through_gram = through
        self._mixing += through_gram
        if self._own is None:
            through_images += through_own_images
        else:
            _add_product(self._own_received, through_own_images, self._own.X[..., columns].mT)
        _add_product(self._received, through_images, self._window.X[..., columns].mT)
        if self._noise:
            if self._own is not None:
                through_images += through_own_images
            through_weights = through_images.mul_(self._noise / self.scale)
            gradient += through_weights
            self._pull += through_weights.mul_(self._W[..., columns]).sum(2, keepdim=True)

    def add_gradient(self, gradient: torch.Tensor) -> None:
        """Add the gradient with respect to W (T, m, p) of all that was received, and of the logarithm of the scales."""
        pull = self._pull + (self._received * self._weighted).sum(2, keepdim=True)
        pull += (self._mixing * self.gram).sum(2, keepdim=True)
        if self._own is not None:
            pull += (self._own_received * self._own_weighted).sum(2, keepdim=True)
            through_own_values = self._own_received.baddbmm_(self._mixing, self._own_values)
        else:
            self._received.baddbmm_(self._mixing, self._values)
        through_values = self._received.addcmul_(self._values, 1 - pull).mul_(self._weights / self.scale)
        if self._own is not None:
            through_values.scatter_add_(2, self._position, through_own_values.mul_(self._own_weights / self.scale))
        _add_product(gradient, through_values, self._window.X)
        if self._noise:
            self._mixing.diagonal(dim1=1, dim2=2).add_((1 - pull)[..., 0])
            gradient.baddbmm_(self._noise * self._mixing / self.scale / self.scale.mT, self._W)


class Residuals:
    """sum_i 1/2 log E[(x_i - mu_i(z))^2] over a block of variables, and its gradients.

    Parameters
    ----------
    images, own_images : tensor of shape (T, m, c)
        E[z_j x_i] / sqrt(E[z_j^2]) on the rows that correlations are learned from, and on those whose residuals count;
        the latter are overwritten.
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
        self._images, self._variance = images, _guarded(variance)
        self._q = torch.addcmul(self._variance, images, images, value=-1).reciprocal_()  # 1 / s(1 - R^2)
        self._shrink = self._variance / (self._variance * self._q.sum(1, keepdim=True) + (1 - images.shape[1]))
        self._B = (images * self._q).mul_(self._shrink)
        self._scratch = self._B * own_images
        explained = self._scratch.sum(1)
        self._error = own_images.baddbmm_(gram, self._B, alpha=-1)
        self._elasticity = torch.mul(self._B, self._error, out=self._scratch).sum(1)
        residual = own_variance - explained - self._elasticity
        self._precision = torch.where(residual > SMALLEST_VARIANCE, 1 / residual, 0)[:, None]
        self.entropy = 0.5 * torch.log(residual.clamp_min_(SMALLEST_VARIANCE)).double().sum(1)
        self._through_information: torch.Tensor | None = None

    def penalize(self, penalty: TemporalPenalty) -> torch.Tensor:
        """Return the penalty of the mutual informations -1/2 log(1 - R^2); `gradients` will contain its gradient."""
        self._through_information = torch.empty_like(self._q)
        return penalty(0.5 * torch.log(self._q * self._variance), self._through_information)

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients with respect to `images`, `own_images` and `gram`, the last doubled: it is symmetric."""
        # u: images, s: variance, q = 1 / (s - u^2), B = u q s / (1 + r) with r = sum_j (s q_j - 1), e: error.
        # The gradient by u is q (e - 2 s q (e - u sum_j e_j B_j / s)) times precision and s / (1 + r).
        through_u = torch.addcmul(
            self._error, self._images, -self._elasticity[:, None] / self._variance, out=self._scratch
        )
        through_u.mul_(self._q)
        through_u = self._error.addcmul_(through_u, self._variance, value=-2).mul_(self._q)
        through_u.mul_(self._precision * self._shrink)
        if self._through_information is not None:
            through_u.addcmul_(self._through_information, self._images * self._q)
        through_own = torch.mul(self._B, -self._precision, out=self._scratch)
        return through_u, through_own, -(through_own @ self._B.mT)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add the product of left (T, m, k) and right (T, k, c), or (k, c) for all periods, to the total (T, m, c)."""
    if right.ndim == 2:
        total.flatten(0, 1).addmm_(left.flatten(0, 1), right)
    else:
        total.baddbmm_(left, right)


def _guarded(variance: torch.Tensor) -> torch.Tensor:
    """Return the variance (T, 1, p), two millionths too large: correlations stay below one in float32."""
    return (1 + 2e-6) * variance.clamp_min(SMALLEST_VARIANCE)[:, None]
