"""Preconditioned conjugate-gradient ascent of the objective, with one pair of matrix products per iteration.

Along a search line V all that the objective needs is linear or quadratic in the step: with R = W S and R_V = V S,
rho(eta) = R + eta R_V, and the Gram matrix W S W^T of the factors is a quadratic polynomial of m x m matrices. So a
line search never touches the data. A trial is one blocked pass, in which all element-wise work of objective, slope
*and* gradient is done while a block of variables is in the processor's cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

SUFFICIENT_GAIN = 0.1  # of what the slope promises
OVERSHOOT = 0.5  # slope behind the minimum, relative to that at the start of the line, that is worth a second trial
SMALLEST_STEP = 1e-10
_BLOCK_ELEMENTS = 2**19


@dataclass
class _Point:
    """A trial on the search line: the objective, its slope, and the m x m sums that the gradient there needs."""

    eta: float
    tc: float
    slope: float  # of -TC along the line
    gram: torch.Tensor  # W S W^T; its diagonal is u
    mixing: torch.Tensor  # H + diag(1 / (1 - u))


class Ascent:
    """Weights at one level of annealing, and all that the next step needs to know about them.

    Parameters
    ----------
    X : tensor of shape (n, p)
        Standardised data; their device and dtype are used throughout.
    weights : tensor of shape (m, p)
        Where to start, with u < 1; moved in place by `step`.
    eps : float
        Annealing noise: the correlation matrix S becomes (1 - eps^2) S + eps^2 I.

    Attributes
    ----------
    gradient : tensor of shape (m, p)
        G, where the derivative of -TC with respect to the weights is G S.

    Notes
    -----
    G = T + (H + diag(1 / (1 - u))) W, where T is local to each variable and is found during the trial. The direction of
    the original, P = -(1 - u) (G - 2 B W / (1 + u)), becomes the preconditioned gradient of Polak-Ribiere's conjugate
    directions, and its halving of steps a cubic interpolation. The first step of a fresh `Ascent` tries the original's
    step first. Sums over variables of the objective are kept in float64.
    """

    def __init__(self, X: torch.Tensor, weights: torch.Tensor, eps: float = 0.0):
        self._X, self.weights, self.eps = X, weights, eps
        self._factors, self._rho = self._images(weights, out=torch.empty_like(weights))
        self._line, self._line_rho = torch.zeros_like(weights), torch.zeros_like(weights)
        self._line_factors = torch.zeros_like(self._factors)
        self._trial_rho, self._preconditioned = torch.empty_like(weights), torch.empty_like(weights)
        self.gradient = torch.empty_like(weights)
        self._trial_gradient = torch.zeros_like(weights)  # after a step: the gradient before it
        self._steepness = -math.inf  # of the preconditioned gradient before the last step
        block = weights.shape[1] if X.is_cuda else max(1, _BLOCK_ELEMENTS // len(weights))
        self._scratch = X.new_empty(4, len(weights), min(block, weights.shape[1]))
        self._one = X.new_ones(())
        gram = self._inner(weights, self._factors, weights, self._factors)
        self._line_cross, self._line_gram = torch.zeros_like(gram), torch.zeros_like(gram)
        self._here = _Point(0.0, math.nan, 0.0, gram, gram)
        self._move_to(self._try(0.0))

    @property
    def tc(self) -> float:
        """The objective at `weights`, in nats."""
        return self._here.tc

    @property
    def u(self) -> torch.Tensor:
        """The diagonal of W S W^T, shape (m,), float64."""
        return self._here.gram.diagonal()

    def step(self) -> bool:
        """Move uphill; return False when no step along the search line improves the objective."""
        slope = self._choose_line()
        point = self._search(slope)
        if point is not None:
            self._move_to(point)
        return point is not None

    def _choose_line(self) -> float:
        """Set a search line that is conjugate to the last one; return the slope of -TC along it."""
        G, P, r = self.gradient, self._preconditioned, (1 - self.u).to(self.gradient.dtype)[:, None]
        B = torch.mul(self._rho, G, out=P).sum(1, keepdim=True)
        torch.mul(G, -r, out=P).addcmul_(self.weights, 2 * r * B / (2 - r))
        factors, rho = self._images(P, out=self._trial_rho)
        steepness = _dot(G, rho)
        change = steepness - _dot(self._trial_gradient, rho)
        beta = max(0.0, change / self._steepness) if self._steepness else 0.0  # 0: underflow, for tiny data
        if steepness + beta * self._here.slope >= 0:
            beta = 0.0
        self._steepness = steepness
        torch.add(P, self._line, alpha=beta, out=self._line)
        torch.add(rho, self._line_rho, alpha=beta, out=self._line_rho)
        torch.add(factors, self._line_factors, alpha=beta, out=self._line_factors)
        self._line_cross = self._inner(self._line, self._line_factors, self.weights, self._factors)
        self._line_gram = self._inner(self._line, self._line_factors, self._line, self._line_factors)
        return steepness + beta * self._here.slope

    def _search(self, slope: float) -> _Point | None:
        """Return a point on the line that gains enough: the last one tried, so that the trial buffers are its own."""
        point = self._try(1.0)
        while not point.tc >= self.tc - SUFFICIENT_GAIN * point.eta * slope:  # also when NaN: u or rho reached 1
            if point.eta < SMALLEST_STEP:
                return None
            point = self._try(_clip(self._minimum(slope, point), 0.1 * point.eta, 0.7 * point.eta))
        if point.slope <= OVERSHOOT * abs(slope):
            return point
        refined = self._try(_clip(self._minimum(slope, point), 0.1 * point.eta, 0.9 * point.eta))
        return refined if refined.tc > point.tc else self._try(point.eta)

    def _minimum(self, slope: float, point: _Point) -> float:
        """Return where the cubic through both ends of the line is smallest; half the step if it has no minimum."""
        bend = slope + point.slope - 3 * (self.tc - point.tc) / point.eta
        square = bend * bend - slope * point.slope
        if not square > 0:
            return point.eta / 2
        root = math.sqrt(square)
        return point.eta * (1 - (point.slope + root - bend) / (point.slope - slope + 2 * root))

    def _move_to(self, point: _Point) -> None:
        self.weights.add_(self._line, alpha=point.eta)
        self._factors.add_(self._line_factors, alpha=point.eta)
        self._rho, self._trial_rho = self._trial_rho, self._rho
        self.gradient, self._trial_gradient = self._trial_gradient, self.gradient
        self.gradient.addmm_(point.mixing.to(self.gradient.dtype), self.weights, beta=-1)
        self._here = point

    def _try(self, eta: float) -> _Point:
        """Return the point at a step `eta`; leaves rho and -T there in the trial buffers."""
        gram = self._here.gram + eta * (self._line_cross + self._line_cross.T) + eta**2 * self._line_gram
        u = gram.diagonal()
        if not u.max() < 1:
            return _Point(eta, math.nan, math.nan, gram, gram)
        ry = gram.to(self._X.dtype, copy=True).fill_diagonal_(1)
        H, sums = torch.zeros_like(ry), gram.new_zeros(2)
        for start in range(0, self.weights.shape[1], self._scratch.shape[2]):
            columns = slice(start, start + self._scratch.shape[2])
            rho, T = self._trial_rho[:, columns], self._trial_gradient[:, columns]
            torch.add(self._rho[:, columns], self._line_rho[:, columns], alpha=eta, out=rho)
            sums += self._try_block(rho, self._line_rho[:, columns], ry, H, T)
        mixing = H.double().fill_diagonal_(0) + torch.diag(1 / (1 - u))
        tc, slope = sums + torch.stack(
            [0.5 * torch.log1p(-u).sum(), (mixing * (self._line_cross + eta * self._line_gram)).sum()]
        )
        return _Point(eta, float(tc), float(slope), gram, mixing)

    def _try_block(
        self, rho: torch.Tensor, line_rho: torch.Tensor, ry: torch.Tensor, H: torch.Tensor, T: torch.Tensor
    ) -> torch.Tensor:
        """Return a block's parts of objective and slope, (2,); add its part to `H` (m, m), write -T (m, width).

        `rho` and `line_rho` are (m, width), `ry` is (m, m).
        """
        inverse, b, Q, work = self._scratch[:, :, : rho.shape[1]]
        torch.addcmul(self._one, rho, rho, value=-1, out=inverse).reciprocal_()
        torch.mul(rho, inverse, out=b)
        S = torch.mul(rho, b, out=work).sum(0)
        torch.mm(ry, b, out=Q)
        D = 1 + torch.addcmul(Q, S, rho, value=-1, out=work).mul_(b).sum(0)
        H.addmm_(torch.div(b, D, out=work), b.T)
        torch.addcmul(Q.div_(D), inverse, Q, value=-2, out=work).addcmul_(b, 2 / (1 + S) + 2 * S / D)
        torch.mul(work, inverse, out=T)
        tc = (torch.log1p(S).double() - 0.5 * torch.log(D).double()).sum()
        return torch.stack([tc, -torch.mul(T, line_rho, out=work).sum(1).double().sum()])

    def _images(self, V: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return V X^T (m, n) of weights V (m, p), and V S (m, p) in `out`."""
        factors = V @ self._X.T
        torch.mm(factors * ((1 - self.eps**2) / len(self._X)), self._X, out=out)
        return factors, out.add_(V, alpha=self.eps**2) if self.eps else out

    def _inner(self, A: torch.Tensor, A_X: torch.Tensor, B: torch.Tensor, B_X: torch.Tensor) -> torch.Tensor:
        """Return A S B^T (m, m) in float64 from A, B (m, p) and their products with X^T (m, n)."""
        inner = (A_X @ B_X.T).double() * ((1 - self.eps**2) / len(self._X))
        return inner + self.eps**2 * (A @ B.T).double() if self.eps else inner


def _dot(A: torch.Tensor, B: torch.Tensor) -> float:
    """Return the inner product of two matrices of one shape."""
    return float(torch.dot(A.view(-1), B.view(-1)))


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
