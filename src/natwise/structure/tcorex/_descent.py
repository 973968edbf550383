"""From one model for all periods to a model per period: L-BFGS through the stages of annealing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from natwise.structure.linear_corex._annealing import ANNEALING
from natwise.structure.tcorex._objective import TemporalObjective

_HISTORY = 5


@dataclass(frozen=True)
class Descent:
    """Minimisation through all noise levels 0.6^k, k = 1..6, and then without noise.

    Parameters
    ----------
    tol : float
        A stage ends when an iteration changes the objective, in nats per variable and period, by less.
    max_iter : int
        Iterations allowed in each stage.
    report : callable
        Called with the noise and the objective after each evaluation.
    """

    tol: float
    max_iter: int
    report: Callable[[float, float], None] = lambda eps, value: None

    def run(
        self, objective_at: Callable[[float], TemporalObjective], weights: torch.Tensor
    ) -> tuple[list[float], int, bool]:
        """Move `weights` (T, m, p) in place.

        Returns the objective at each evaluation, the number of iterations, and whether the last stage converged.
        """
        history: list[float] = []
        n_iter, last = 0, 0
        for eps in (*ANNEALING, 0.0):
            last = self._run_stage(objective_at(eps), weights, eps, history)
            n_iter += last
        return history, n_iter, last < self.max_iter

    def _run_stage(self, objective: TemporalObjective, weights: torch.Tensor, eps: float, history: list[float]) -> int:
        """Return the number of iterations."""
        parameter = weights.requires_grad_()
        optimizer = torch.optim.LBFGS(
            [parameter],
            max_iter=self.max_iter,
            max_eval=2 * self.max_iter,
            history_size=_HISTORY,
            tolerance_grad=0.0,
            tolerance_change=self.tol,
            line_search_fn="strong_wolfe",
        )

        def evaluate() -> float:
            value, parameter.grad = objective(parameter.detach())
            history.append(float(value))
            self.report(eps, history[-1])
            return history[-1]

        optimizer.step(evaluate)
        parameter.requires_grad_(False).grad = None
        return optimizer.state[parameter]["n_iter"]
