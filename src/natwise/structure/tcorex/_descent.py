"""From one model for all periods to a model per period, through the stages of annealing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from natwise.core.progress import Report
from natwise.structure.linear_corex._annealing import ANNEALING
from natwise.structure.tcorex._lbfgs import LBFGS, Objective


@dataclass
class Descent:
    """Minimisation through all noise levels 0.6^k, k = 1..6, and then without noise.

    Parameters
    ----------
    tol : float
        A stage ends when two iterations in a row lower the objective, in nats per variable and period, by less.
    max_iter : int
        Iterations allowed in each stage.
    report : callable
        Called after each iteration with their number and a text, as `natwise.core.progress` wants it.

    Attributes
    ----------
    history : list of float
        The objective after each iteration, under the noise of its stage.
    converged : bool
        Whether the last stage did.
    """

    tol: float
    max_iter: int
    report: Report = lambda done, text: None
    history: list[float] = field(default_factory=list)
    converged: bool = False

    def run(self, objective_at: Callable[[float], Objective], weights: torch.Tensor) -> None:
        """Move `weights` (T, m, p) in place."""
        for eps in (*ANNEALING, 0.0):
            self.converged = self._run_stage(LBFGS(objective_at(eps), weights), eps)

    def _run_stage(self, lbfgs: LBFGS, eps: float) -> bool:
        small_gains = 0
        for _ in range(self.max_iter):
            before = lbfgs.value
            moved = lbfgs.step()
            self.history.append(lbfgs.value)
            self.report(len(self.history), f"noise {eps:.3f}, objective {lbfgs.value:.5f}")
            small_gains = small_gains + 1 if before - lbfgs.value < self.tol else 0
            if not moved or small_gains == 2:
                return True
        return False
