"""Limited-memory BFGS that reads its history once per step."""

from __future__ import annotations

from collections.abc import Callable

import torch

MEMORY = 3
FIRST_STEP = 0.1  # of the norm of the weights
SUFFICIENT = 1e-4  # share of the predicted decrease that is asked for
SMALLEST_STEP = 1e-8

Objective = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class LBFGS:
    """Weights on their way down, with the last few steps and changes of the gradient.

    Parameters
    ----------
    objective : callable
        Maps weights to the objective and its gradient.
    weights : tensor
        Where to start; moved in place.

    Attributes
    ----------
    value : float
        The objective at `weights`.
    n_evaluations : int
        How often the objective was asked.

    Notes
    -----
    The direction is a combination of the history and the gradient, so the recursion runs on their inner products
    (Chen, Wang, Zhou 2014): one product of the (7, size) history with the new gradient and one combination of it per
    step. The usual recursion would pass over the memory a dozen times, which costs as much as the objective. Steps are
    backtracked until the objective decreases enough; a step along which the curvature is not positive is not
    remembered.
    """

    def __init__(self, objective: Objective, weights: torch.Tensor):
        self._objective, self._weights = objective, weights
        value, gradient = objective(weights)
        self.value, self.n_evaluations = float(value), 1
        self._basis = torch.zeros(2 * MEMORY + 1, weights.numel(), dtype=weights.dtype, device=weights.device)
        self._gram = torch.zeros(2 * MEMORY + 1, 2 * MEMORY + 1, dtype=torch.float64)
        self._order: list[int] = []  # slots of the remembered steps, oldest first
        self._basis[-1] = gradient.flatten()
        self._gram[-1, -1] = torch.dot(self._basis[-1], self._basis[-1])

    def step(self) -> bool:
        """Move downhill; return False when no step along the direction lowers the objective."""
        coefficients = self._direction()
        slope = float(self._gram[-1] @ coefficients)
        direction = (coefficients.to(self._basis) @ self._basis).view_as(self._weights)
        size = 1.0
        while size >= SMALLEST_STEP:
            trial = torch.add(self._weights, direction, alpha=size)
            value, gradient = self._objective(trial)
            self.n_evaluations += 1
            if float(value) <= self.value + SUFFICIENT * size * slope:  # not for NaN
                self.value = float(value)
                self._weights.copy_(trial)
                self._remember(direction.mul_(size).flatten(), size * coefficients, gradient.flatten())
                return True
            size *= self._shorter(float(value) - self.value, size * slope)
        return False

    def _remember(self, step: torch.Tensor, coefficients: torch.Tensor, gradient: torch.Tensor) -> None:
        """Take the new gradient; remember the step and the change of the gradient when the curvature is positive.

        The step is a combination of the basis, so that its products with the basis follow from the Gram matrix, and
        those of the change follow from those of the gradients: one pass over the memory is all that it takes.
        """
        change = gradient - self._basis[-1]
        with_gradient = (self._basis @ gradient).double().cpu()
        with_step = self._gram @ coefficients
        with_change = with_gradient - self._gram[-1]
        along = torch.dot(step, gradient).double().cpu()
        curvature = along - with_step[-1]
        gradient_norm2 = torch.dot(gradient, gradient).double().cpu()
        with_step[-1], with_change[-1] = along, gradient_norm2 - with_gradient[-1]
        with_gradient[-1] = gradient_norm2
        self._put(2 * MEMORY, gradient, with_gradient)
        if curvature > 0:
            slot = self._order.pop(0) if len(self._order) == MEMORY else len(self._order)
            self._order.append(slot)
            self._put(slot, step, with_step)
            self._put(MEMORY + slot, change, with_change)
            self._gram[slot, MEMORY + slot] = self._gram[MEMORY + slot, slot] = curvature
            self._gram[MEMORY + slot, MEMORY + slot] = torch.dot(change, change)

    def _put(self, slot: int, vector: torch.Tensor, products: torch.Tensor) -> None:
        """Store a vector and its products with the basis."""
        self._basis[slot] = vector
        self._gram[:, slot] = self._gram[slot] = products

    def _direction(self) -> torch.Tensor:
        """Return the coefficients of minus the inverse Hessian times the gradient: the two-loop recursion."""
        gram, result = self._gram, torch.zeros(2 * MEMORY + 1, dtype=torch.float64)
        result[-1] = -1.0
        if not self._order:
            result[-1] = -FIRST_STEP * float(self._weights.norm()) / float(gram[-1, -1].sqrt().clamp_min(1e-30))
            return result
        weights = {}
        for slot in reversed(self._order):
            weights[slot] = gram[slot] @ result / gram[slot, MEMORY + slot]
            result[MEMORY + slot] -= weights[slot]
        newest = self._order[-1]
        result *= gram[newest, MEMORY + newest] / gram[MEMORY + newest, MEMORY + newest]
        for slot in self._order:
            correction = gram[MEMORY + slot] @ result / gram[slot, MEMORY + slot]
            result[slot] += weights[slot] - correction
        return result

    @staticmethod
    def _shorter(rise: float, predicted: float) -> float:
        """Return the factor by which to shorten a step: to the minimum of the parabola, within [0.1, 0.5]."""
        return min(0.5, max(0.1, -predicted / (2 * (rise - predicted)))) if rise == rise else 0.1
