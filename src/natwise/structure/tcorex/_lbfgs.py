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
    (Chen, Wang, Zhou 2014): one product of the (7, size) history with three new vectors and one combination of it per
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
        self._remember({2 * MEMORY: gradient})

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
                self._arrive(trial, gradient, direction.mul_(size))
                return True
            size *= self._shorter(float(value) - self.value, size * slope)
        return False

    def _arrive(self, trial: torch.Tensor, gradient: torch.Tensor, step: torch.Tensor) -> None:
        """Take the step, and remember it when it tells a positive curvature."""
        change = gradient.flatten() - self._basis[-1]
        self._weights.copy_(trial)
        new = {2 * MEMORY: gradient}
        if torch.dot(step.flatten(), change) > 0:
            slot = self._order.pop(0) if len(self._order) == MEMORY else len(self._order)
            self._order.append(slot)
            new |= {slot: step, MEMORY + slot: change}
        self._remember(new)

    def _remember(self, new: dict[int, torch.Tensor]) -> None:
        """Put vectors into slots, and their products with all others into the Gram matrix."""
        for slot, vector in new.items():
            self._basis[slot] = vector.flatten()
        slots = list(new)
        products = (self._basis @ self._basis[slots].T).double().cpu()
        self._gram[:, slots], self._gram[slots] = products, products.T

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
