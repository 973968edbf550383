"""Limited-memory BFGS that reads its history once per step."""

from __future__ import annotations

from collections.abc import Callable

import torch

MEMORY = 3
FIRST_STEP = 0.1  # of the norm of the weights
SUFFICIENT = 1e-4  # share of the predicted decrease that is asked for
SMALLEST_STEP = 1e-8
_GRADIENT = 2 * MEMORY  # its position in the basis, after the steps and the changes of the gradient

Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class LBFGS:
    """Weights on their way down, with the last few steps and changes of the gradient.

    Parameters
    ----------
    objective : callable
        ``objective(weights, gradient)`` returns the objective and writes its gradient to the second tensor.
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
    (Chen, Wang, Zhou 2014): a step multiplies each of the seven vectors with the new gradient, and combines them once.
    The usual recursion would pass over the memory a dozen times, which costs as much as the objective. All vectors are
    allocated once. Steps are backtracked until the objective decreases enough; a step along which the curvature is not
    positive is not remembered.
    """

    def __init__(self, objective: Objective, weights: torch.Tensor):
        self._objective, self._weights = objective, weights
        self._trial, self._new_gradient = torch.empty_like(weights), torch.empty_like(weights)
        self._basis = [torch.empty_like(weights) for _ in range(_GRADIENT + 1)]
        self._gram = torch.zeros(_GRADIENT + 1, _GRADIENT + 1, dtype=torch.float64)
        self._order: list[int] = []  # slots of the remembered steps, oldest first
        self.value, self.n_evaluations = float(objective(weights, self._basis[_GRADIENT])), 1
        self._set_products(_GRADIENT, self._products(self._basis[_GRADIENT]))

    def step(self) -> bool:
        """Move downhill; return False when no step along the direction lowers the objective."""
        coefficients = self._direction()
        slope = float(self._gram[_GRADIENT] @ coefficients)
        size = 1.0
        while size >= SMALLEST_STEP:
            self._try(size * coefficients)
            value = float(self._objective(self._trial, self._new_gradient))
            self.n_evaluations += 1
            if value <= self.value + SUFFICIENT * size * slope:  # not for NaN
                self.value = value
                self._remember(size * coefficients)
                return True
            size *= self._shorter(value - self.value, size * slope)
        return False

    def _try(self, step: torch.Tensor) -> None:
        """Set the trial weights; the step is given by its coefficients in the basis, (7,)."""
        first, *others = self._positions()
        torch.add(self._weights, self._basis[first], alpha=float(step[first]), out=self._trial)
        for position in others:
            self._trial.add_(self._basis[position], alpha=float(step[position]))

    def _remember(self, step: torch.Tensor) -> None:
        """Move to the trial weights; remember the step when the curvature along it is positive.

        The step is a combination of the basis, so that its products with the basis follow from the Gram matrix, and
        those of the change of the gradient follow from those of the gradients.
        """
        with_step, with_gradient = self._gram @ step, self._gram[_GRADIENT].clone()
        if len(self._order) == MEMORY:
            self._order.pop(0)
        slot = min(set(range(MEMORY)) - set(self._order))
        self._order.append(slot)
        torch.sub(self._trial, self._weights, out=self._basis[slot])
        change = torch.sub(self._new_gradient, self._basis[_GRADIENT], out=self._basis[MEMORY + slot])
        self._weights.copy_(self._trial)
        self._basis[_GRADIENT], self._new_gradient = self._new_gradient, self._basis[_GRADIENT]
        with_new_gradient = self._products(self._basis[_GRADIENT])
        curvature = with_new_gradient[slot] - with_step[_GRADIENT]
        with_change = with_new_gradient - with_gradient
        with_step[_GRADIENT], with_step[MEMORY + slot] = with_new_gradient[slot], curvature
        with_change[_GRADIENT], with_change[slot] = with_new_gradient[MEMORY + slot], curvature
        with_change[MEMORY + slot] = torch.dot(change.flatten(), change.flatten())
        self._set_products(_GRADIENT, with_new_gradient)
        self._set_products(slot, with_step)
        self._set_products(MEMORY + slot, with_change)
        if not curvature > 0:
            self._order.pop()

    def _positions(self) -> list[int]:
        """Return the positions in the basis that hold something."""
        return [*self._order, *(MEMORY + slot for slot in self._order), _GRADIENT]

    def _products(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the inner products (7,) of a vector, of the weights' shape, with the basis."""
        positions, products = self._positions(), torch.zeros(_GRADIENT + 1, dtype=torch.float64)
        found = [torch.dot(self._basis[position].flatten(), vector.flatten()) for position in positions]
        products[positions] = torch.stack(found).double().cpu()
        return products

    def _set_products(self, position: int, products: torch.Tensor) -> None:
        """Keep the inner products (7,) of the vector in a slot with the basis."""
        self._gram[:, position] = self._gram[position] = products

    def _direction(self) -> torch.Tensor:
        """Return the coefficients of minus the inverse Hessian times the gradient: the two-loop recursion."""
        gram, result = self._gram, torch.zeros(_GRADIENT + 1, dtype=torch.float64)
        result[_GRADIENT] = -1.0
        if not self._order:
            size = FIRST_STEP * float(self._weights.norm())
            return result * (size / float(gram[_GRADIENT, _GRADIENT].sqrt().clamp_min(1e-30)))
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
