"""Many multinomial logistic regressions on the same rows at once, each with its own labels and row weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning

MEMORY = 10
MAX_ITER = 1000
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-8}  # on the squared Newton decrement, in nats per row
SUFFICIENT = 1e-4  # Armijo's constant
MAX_HALVINGS = 40
LARGEST = 2**26  # scores held at once; more fits are done in turns
SMALL = (
    2**22
)  # entries of Z up to which everything is in float64; above, reading Z is what costs, and float32 halves it
CONSTANT = 1e-14  # directions with less than this share of the largest variance are constant but for rounding


@dataclass(frozen=True, eq=False)
class Basis:
    """Rows in the basis of their principal axes, which leaves distances and L2 penalties as they are.

    One Gram matrix, shared by all probes, makes their Hessians at zero diagonal: no other matrix is factored.

    Attributes
    ----------
    X : tensor of shape (n, p + 1)
        Centred coordinates, and a column of ones.
    variance : tensor of shape (p + 1,)
        Mean squares of the columns.
    """

    X: torch.Tensor
    variance: torch.Tensor

    @classmethod
    def of(cls, Z: torch.Tensor) -> Basis:
        """Return the basis of float64 rows (n, d); directions without variance are left out."""
        centred = Z - Z.mean(dim=0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(Z))
        kept = values > CONSTANT * values[-1].clamp(min=1e-300)
        dtype = torch.float64 if Z.numel() <= SMALL else torch.float32
        X = (centred @ vectors[:, kept]).to(dtype)
        ones = X.new_ones(len(X), 1)
        return cls(torch.cat([X, ones], dim=1), torch.cat([values[kept].to(dtype), ones[0]]))

    def __getitem__(self, rows: slice | torch.Tensor) -> Basis:
        return Basis(self.X[rows], self.variance)

    def leverages(self) -> torch.Tensor:
        """Return each row's squared distance from the mean in units of the variances, which affine maps leave alone."""
        return (self.X[:, :-1].double() ** 2 / self.variance[:-1].double()).sum(dim=1)


def fit_logistic(
    basis: Basis,
    codes: torch.Tensor,
    weight: torch.Tensor,
    n_classes: int,
    *,
    C: float = 1.0,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fit B logistic regressions to convergence.

    Each minimises C sum_i weight_i CE_i + |coefficients|^2 / 2, intercepts free, as scikit-learn's does; two classes
    share one coefficient vector. All fits read X together: one product for the direction, one for the gradient per
    iteration of L-BFGS, whose initial matrix is the inverse Hessian at zero.

    Parameters
    ----------
    basis : Basis
        The n rows.
    codes : tensor of int64, shape (B, n)
        Class of each row in each fit, 0 to n_classes - 1.
    weight : tensor, shape (B, n)
        Weight of each row in each fit, 0 for rows that a fit must not see.
    n_classes : int
        At least 2.
    C : float
        Inverse strength of the L2 penalty; infinity for none.
    start : tensor, shape (n_classes, B, p + 1), optional
        Coefficients to start from. Default: zeros.

    Returns
    -------
    tensor of shape (n_classes, B, p + 1)
        Coefficients in the basis, the intercept last.
    """
    X = basis.X
    if start is None:
        start = X.new_zeros(n_classes, len(codes), X.shape[1])
    at_once = max(1, LARGEST // (n_classes * len(X)))
    parts = [
        _Batch(basis, codes[part], weight[part].to(X.dtype), C, start[:, part]).minimise()
        for part in torch.arange(len(codes), device=X.device).split(at_once)
    ]
    return torch.cat(parts, dim=1)


def predict_logistic(basis: Basis, coefficients: torch.Tensor) -> torch.Tensor:
    """Return the class (B, n) that each fit gives each row."""
    return _scores(basis.X, coefficients).argmax(dim=0)


@dataclass
class _Step:
    """One remembered step of L-BFGS: change of coefficients and of gradient, (k, B, p), and their inverse product."""

    s: torch.Tensor
    y: torch.Tensor
    rho: torch.Tensor

    def keep(self, rows: torch.Tensor) -> _Step:
        return _Step(self.s[:, rows], self.y[:, rows], self.rho[rows])


class _Batch:
    """The fits that are still running; finished ones are taken out. Arguments are those of `fit_logistic`."""

    def __init__(self, basis: Basis, codes: torch.Tensor, weight: torch.Tensor, C: float, start: torch.Tensor):
        n_classes = len(start)
        total = weight.sum(dim=1, keepdim=True)
        self.X, self.codes, self.weight = basis.X, codes[None], weight / total
        # of two classes each has half of the common coefficient vector
        self.penalty = ((2.0 if n_classes == 2 else 1.0) / C / total).expand(-1, basis.X.shape[1]).clone()
        self.penalty[:, -1] = 0  # intercepts are free
        self.hessian = basis.variance / n_classes + self.penalty
        self.w = start
        self.scores = _scores(self.X, start)
        self.steps: list[_Step] = []

    def minimise(self) -> torch.Tensor:
        """Return the coefficients (k, B, p + 1) at the minimum of every fit."""
        found = self.w.clone()
        running = torch.arange(found.shape[1], device=found.device)
        loss, probabilities = self._loss(self.scores, self.w)
        gradient = self._gradient(probabilities)
        for _ in range(MAX_ITER):
            going = _dot(gradient, gradient / self.hessian) > TOLERANCE[self.X.dtype]
            if not going.all():
                found[:, running[~going]] = self.w[:, ~going]
                running, loss, gradient = running[going], loss[going], gradient[:, going]
                self._keep(going)
            if not len(running):
                return found
            direction = self._direction(gradient)
            loss, probabilities, moved = self._search(direction, _dot(direction, gradient), loss)
            before, gradient = gradient, self._gradient(probabilities)
            self._remember(moved, gradient - before)
        warnings.warn(
            f"{len(running)} of {found.shape[1]} probes did not converge in {MAX_ITER} iterations; scale the features",
            ConvergenceWarning,
            stacklevel=2,
        )
        found[:, running] = self.w
        return found

    def _loss(self, scores: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each fit and its probabilities (k, B, n)."""
        largest = scores.amax(dim=0)
        probabilities = (scores - largest).exp_()
        total = probabilities.sum(dim=0)
        probabilities /= total
        entropies = total.log_() + largest - scores.gather(0, self.codes)[0]
        return (self.weight * entropies).sum(dim=1) + _dot(self.penalty * w, w) / 2, probabilities

    def _gradient(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the gradient (k, B, p + 1); the probabilities are used up."""
        residual = probabilities.scatter_add_(0, self.codes, probabilities.new_full((), -1.0).expand(self.codes.shape))
        residual *= self.weight
        gradient = (residual.flatten(0, 1) @ self.X).unflatten(0, residual.shape[:2])
        return gradient + self.penalty * self.w

    def _direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return minus the inverse Hessian times the gradient (k, B, p + 1), by the two-loop recursion."""
        q, shares = gradient.clone(), []
        for step in reversed(self.steps):
            shares.append(step.rho * _dot(step.s, q))
            q -= _scaled(shares[-1], step.y)
        q /= self.hessian
        if self.steps:
            last = self.steps[-1]
            curvature = last.rho * _dot(last.y, last.y / self.hessian)
            q /= torch.where(curvature > 0, curvature, torch.ones_like(curvature))[:, None]
        for step, share in zip(self.steps, reversed(shares), strict=True):
            q += _scaled(share - step.rho * _dot(step.y, q), step.s)
        return -q

    def _search(
        self, direction: torch.Tensor, slope: torch.Tensor, loss: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Halve each fit's step along `direction` (k, B, p + 1) until its loss falls enough.

        `slope` and `loss` are (B,). Scores are linear in the step, so that X is read once. Returns the new losses,
        the probabilities (k, B, n), and the steps taken.
        """
        along = _scores(self.X, direction)
        rounding = 8 * torch.finfo(loss.dtype).eps * loss
        t = torch.ones_like(loss)
        for _ in range(MAX_HALVINGS):
            scores, w = self.scores + _scaled(t, along), self.w + _scaled(t, direction)
            reached, probabilities = self._loss(scores, w)
            short = reached > loss + SUFFICIENT * t * slope + rounding
            if not short.any():
                break
            t = torch.where(short, t / 2, t)
        self.w, self.scores = w, scores
        return reached, probabilities, _scaled(t, direction)

    def _remember(self, s: torch.Tensor, y: torch.Tensor) -> None:
        """Keep the change s of the coefficients and that y of the gradient, (k, B, p + 1) each."""
        product = _dot(s, y)
        rho = torch.where(product > 0, 1 / product.clamp(min=1e-300), torch.zeros_like(product))
        self.steps = [*self.steps, _Step(s, y, rho)][-MEMORY:]

    def _keep(self, rows: torch.Tensor) -> None:
        self.w, self.scores, self.codes = self.w[:, rows], self.scores[:, rows], self.codes[:, rows]
        self.weight, self.penalty, self.hessian = self.weight[rows], self.penalty[rows], self.hessian[rows]
        self.steps = [step.keep(rows) for step in self.steps]


def _scores(X: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Return the scores (k, B, n)."""
    return (w.flatten(0, 1) @ X.T).unflatten(0, w.shape[:2])


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the inner product of each fit, (B,)."""
    return (a * b).sum(dim=(0, 2))


def _scaled(factor: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor (k, B, p) with every fit's part times its factor (B,)."""
    return factor[:, None] * tensor
