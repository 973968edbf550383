"""Stochastic gradient Langevin dynamics with the noise that the bound assumes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_real


class SGLD(torch.optim.Optimizer):
    """Stochastic gradient Langevin dynamics: ``w <- w - lr grad + sqrt(2 lr / beta) N(0, I)``.

    Parameters
    ----------
    params : iterable of torch.Tensor
        As for any torch optimiser; ``lr`` and ``beta`` of a parameter group may be changed between steps.
    lr : float
        Learning rate.
    beta : float
        Inverse temperature; infinity is plain gradient descent.
    noise_scale : float
        Factor on the noise. 1 is the process that `sgld_bound` is about. The f-CMI authors' code multiplies by
        ``1 / beta`` once too often, which is ``noise_scale=1 / beta`` here: practically noise-free.
    random_state : int, Generator, RandomState, Streams or None
        Seeds the noise; torch's global generators are not touched.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 4e-3,
        beta: float = 1000.0,
        noise_scale: float = 1.0,
        random_state: RandomState = None,
    ):
        check_real("lr", lr, minimum=0.0)
        if beta != math.inf:
            beta = check_real("beta", beta, minimum=0.0)
            if beta == 0:
                raise ValueError("beta must be > 0, got 0")
        check_real("noise_scale", noise_scale, minimum=0.0)
        super().__init__(params, {"lr": lr, "beta": beta, "noise_scale": noise_scale})
        device = self.param_groups[0]["params"][0].device
        self._generator = Streams.of(random_state).torch("langevin", device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; `closure` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            spread = group["noise_scale"] * math.sqrt(2 * group["lr"] / group["beta"])
            for p in group["params"]:
                if p.grad is not None:
                    noise = torch.randn(p.shape, generator=self._generator, device=p.device, dtype=p.dtype)
                    p.add_(p.grad, alpha=-group["lr"]).add_(noise, alpha=spread)
        return loss
