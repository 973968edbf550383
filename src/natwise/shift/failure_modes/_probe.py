"""Many multinomial logistic regressions on the same rows at once, each with its own labels and row weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning

MEMORY = 10
MAX_ITER = 1000
TOLERANCE = 1e-9  # on the squared Newton decrement, in nats per row
SUFFICIENT = 1e-4  # Armijo's constant
MAX_HALVINGS = 40
LARGEST = 2**26  # scores held at once; more fits are done in turns


def fit_logistic(
    X: torch.Tensor,
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
    iteration of L-BFGS, whose initial matrix is the exact inverse Hessian at zero (one Gram matrix for all fits).

    Parameters
    ----------
    X : tensor of float64, shape (n, p)
        Features; a column of ones is added here.
    codes : tensor of int64, shape (B, n)
        Class of each row in each fit, 0 to n_classes - 1.
    weight : tensor of float64, shape (B, n)
        Weight of each row in each fit, 0 for rows that a fit must not see.
    n_classes : int
        At least 2.
    C : float
        Inverse strength of the L2 penalty; infinity for none.
    start : tensor, shape (n_classes, B, p + 1), optional
        Coefficients to start from. Default: zeros.

    Returns
    -------
    tensor of float64, shape (n_classes, B, p + 1)
        Coefficients, the intercept last.
    """
    X = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    if start is None:
        start = X.new_zeros(n_classes, len(codes), X.shape[1])
    at_once = max(1, LARGEST // (n_classes * len(X)))
    parts = [
        _Batch(X, codes[part], weight[part], C, start[:, part]).minimise()
        for part in torch.arange(len(codes), device=X.device).split(at_once)
    ]
    return torch.cat(parts, dim=1)


def predict_logistic(X: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Return the class (B, n) that each fit gives each row."""
    scores = coefficients[..., :-1] @ X.T + coefficients[..., -1:]
    return scores.argmax(dim=0)


@dataclass
class _Step:
    """One remembered step of L-BFGS: change of coefficients and of gradient, (k, B, p), and their inverse product."""

    s: torch.Tensor
    y: torch.Tensor
    rho: torch.Tensor

    def keep(self, rows: torch.Tensor) -> _Step:
        return _Step(self.s[:, rows], self.y[:, rows], self.rho[rows])


class _Batch:
    """The fits that are still running; finished ones are taken out."""

    def __init__(self, X: torch.Tensor, codes: torch.Tensor, weight: torch.Tensor, C: float, start: torch.Tensor):
        n_classes = len(start)
        total = weight.sum(dim=1, keepdim=True)
        self.X, self.codes, self.weight = X, codes[None], weight / total
        # of two classes each has half of the common coefficient vector
        self.penalty = (2.0 if n_classes == 2 else 1.0) / C / total[:, 0]
        self.w = start
        self.scores = self._scores(start)
        self.factor = self._factor(n_classes)
        self.steps: list[_Step] = []

    def minimise(self) -> torch.Tensor:
        found = self.w.clone()
        running = torch.arange(found.shape[1], device=found.device)
        loss, gradient = self._loss(self.scores, self.w), self._gradient()
        for _ in range(MAX_ITER):
            newton = self._precondition(gradient)
            going = _dot(gradient, newton) > TOLERANCE
            if not going.all():
                found[:, running[~going]] = self.w[:, ~going]
                running, loss, gradient = running[going], loss[going], gradient[:, going]
                self._keep(going)
            if not len(running):
                return found
            direction = self._direction(gradient)
            loss, moved = self._search(direction, _dot(direction, gradient), loss)
            before, gradient = gradient, self._gradient()
            self._remember(moved, gradient - before)
        warnings.warn(
            f"{len(running)} of {found.shape[1]} probes did not converge in {MAX_ITER} iterations; scale the features",
            ConvergenceWarning,
            stacklevel=2,
        )
        found[:, running] = self.w
        return found

    def _scores(self, w: torch.Tensor) -> torch.Tensor:
        return (w.flatten(0, 1) @ self.X.T).unflatten(0, w.shape[:2])

    def _loss(self, scores: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        entropies = scores.logsumexp(dim=0) - scores.gather(0, self.codes)[0]
        return (self.weight * entropies).sum(dim=1) + self.penalty / 2 * _dot(w[..., :-1], w[..., :-1])

    def _gradient(self) -> torch.Tensor:
        residual = self.scores.softmax(dim=0)
        residual.scatter_add_(0, self.codes, residual.new_full((), -1.0).expand(self.codes.shape))
        residual *= self.weight
        gradient = (residual.flatten(0, 1) @ self.X).unflatten(0, residual.shape[:2])
        gradient[..., :-1] += self.penalty[:, None] * self.w[..., :-1]
        return gradient

    def _factor(self, n_classes: int) -> torch.Tensor:
        """Return the Cholesky factor of the mean Hessian at zero, of one class."""
        gram = (self.X.T * self.weight.mean(dim=0)) @ self.X / n_classes
        diagonal = gram.diagonal()
        ridge = 1e-10 * diagonal.max() * torch.ones_like(diagonal)  # redundant features, no penalty
        ridge[:-1] += self.penalty.mean()
        return torch.linalg.cholesky(gram + ridge.diag())

    def _precondition(self, vector: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_solve(vector.flatten(0, 1).T, self.factor).T.unflatten(0, vector.shape[:2])

    def _direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return minus the inverse Hessian times the gradient, by the two-loop recursion."""
        q, shares = gradient.clone(), []
        for step in reversed(self.steps):
            shares.append(step.rho * _dot(step.s, q))
            q -= _scaled(shares[-1], step.y)
        q = self._precondition(q)
        if self.steps:
            last = self.steps[-1]
            q *= (1 / (last.rho * _dot(last.y, self._precondition(last.y))))[:, None]
        for step, share in zip(self.steps, reversed(shares), strict=True):
            q += _scaled(share - step.rho * _dot(step.y, q), step.s)
        return -q

    def _search(
        self, direction: torch.Tensor, slope: torch.Tensor, loss: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Halve each fit's step until its loss falls enough; scores are linear in it, so X is read once."""
        along = self._scores(direction)
        t = torch.ones_like(loss)
        for _ in range(MAX_HALVINGS):
            reached = self._loss(self.scores + _scaled(t, along), self.w + _scaled(t, direction))
            short = reached > loss + SUFFICIENT * t * slope + 1e-15 * loss.abs()
            if not short.any():
                break
            t = torch.where(short, t / 2, t)
        moved = _scaled(t, direction)
        self.w = self.w + moved
        self.scores = self.scores + _scaled(t, along)
        return reached, moved

    def _remember(self, s: torch.Tensor, y: torch.Tensor) -> None:
        product = _dot(s, y)
        rho = torch.where(product > 0, 1 / product.clamp(min=1e-300), torch.zeros_like(product))
        self.steps = [*self.steps, _Step(s, y, rho)][-MEMORY:]

    def _keep(self, rows: torch.Tensor) -> None:
        self.w, self.scores, self.codes = self.w[:, rows], self.scores[:, rows], self.codes[:, rows]
        self.weight, self.penalty = self.weight[rows], self.penalty[rows]
        self.steps = [step.keep(rows) for step in self.steps]


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the inner product of each fit, (B,)."""
    return (a * b).sum(dim=(0, 2))


def _scaled(factor: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return factor[:, None] * tensor
