"""What is trained: a featurizer with a linear head, and the loss of a domain-generalisation algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from natwise.shift.failure_modes import penalties

WEIGHTS = {  # of the paper's code and DomainBed
    "erm": 0.0,
    "irm": 100.0,
    "vrex": 10.0,
    "coral": 1.0,
    "mmd": 1.0,
    "dann": 1.0,
    "group_dro": 0.01,
    "hsic": 1.0,
    "conditional_hsic": 1.0,
    "spectral_decoupling": 0.01,
    "gradient_penalty": 1.0,
}
ANNEALED = ("irm", "vrex")
N_DISCRIMINATOR = 128


@dataclass(frozen=True, eq=False)
class _Pass:
    """One forward pass, as the penalties see it; `losses` are the domains' mean cross-entropies."""

    z: torch.Tensor
    logits: torch.Tensor
    losses: torch.Tensor
    y: torch.Tensor
    domain: torch.Tensor
    objective: Objective


def _dann(step: _Pass) -> torch.Tensor:
    # the weight multiplies the reversed gradient alone: the discriminator learns at its own pace
    guessed = step.objective.discriminator(penalties.reverse_gradient(step.z, step.objective.weights["dann"]))
    return cross_entropy(guessed, step.domain)


_PENALTIES: dict[str, Callable[[_Pass], torch.Tensor]] = {
    "irm": lambda step: penalties.irm(step.logits, step.y, step.domain, step.objective.irm_estimator),
    "vrex": lambda step: penalties.vrex(step.losses),
    "coral": lambda step: penalties.coral(step.z, step.domain),
    "mmd": lambda step: penalties.mmd(step.z, step.domain),
    "dann": _dann,
    "hsic": lambda step: penalties.hsic(step.z, step.domain),
    "conditional_hsic": lambda step: penalties.conditional_hsic(step.z, step.y, step.domain),
    "spectral_decoupling": lambda step: penalties.spectral_decoupling(step.logits),
    "gradient_penalty": lambda step: penalties.gradient_penalty(step.losses, step.objective.head.parameters()),
}


class Objective(nn.Module):
    """A featurizer, its linear head, and the loss of one or several algorithms together.

    Parameters
    ----------
    featurizer : torch.nn.Module
        Maps X to representations (n, n_features).
    n_features, n_classes, n_domains : int
        Sizes of the representation, of the output and of the training data.
    weights : mapping of str to float
        Weight of each algorithm; for group_dro the step size of the domains' weights.
    irm_estimator : {"split", "full"}
        See `penalties.irm`.
    """

    q: torch.Tensor
    head: nn.Linear
    discriminator: nn.Sequential
    irm_estimator: str
    weights: dict[str, float]

    def __init__(
        self,
        featurizer: nn.Module,
        n_features: int,
        n_classes: int,
        n_domains: int,
        weights: Mapping[str, float],
        irm_estimator: str,
    ):
        super().__init__()
        self.featurizer = featurizer
        self.head = nn.Linear(n_features, n_classes)
        self.n_domains, self.weights, self.irm_estimator = n_domains, dict(weights), irm_estimator
        self.annealing = False
        self.register_buffer("q", torch.full((n_domains,), 1 / n_domains))
        if "dann" in weights:
            self.discriminator = nn.Sequential(
                nn.Linear(n_features, N_DISCRIMINATOR), nn.ReLU(), nn.Linear(N_DISCRIMINATOR, n_domains)
            )

    def forward(self, x: torch.Tensor, y: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
        """Return the loss of one batch: features x (n, ...), classes y and domains (n,) from 0 on."""
        z = self.featurizer(x)
        logits = self.head(z)
        losses = penalties.domain_losses(logits, y, domain, self.n_domains)
        step = _Pass(z, logits, losses, y, domain, self)
        loss = losses.mean()
        if "group_dro" in self.weights:
            loss, self.q = penalties.group_dro(losses, self.q, self.weights["group_dro"])
        largest = 1.0
        for name, penalty in _PENALTIES.items():
            if name in self.weights:
                weight = self._weight(name)
                loss = loss + weight * penalty(step)
                largest = max(largest, weight if name in ANNEALED else 1.0)
        return loss / largest  # a weight of 10,000 must not become a learning rate of as much

    def _weight(self, name: str) -> float:
        if name == "dann" or (self.annealing and name in ANNEALED):
            return 1.0
        return self.weights[name]


class Perceptron(nn.Module):
    """One hidden layer of rectified units on standardised features; constant features become 0."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, X: np.ndarray, n_hidden: int):
        super().__init__()
        flat = X.reshape(len(X), -1)
        mean, scale = flat.mean(axis=0, dtype=np.float64), flat.std(axis=0, dtype=np.float64)
        scale[scale <= 1e-6 * np.maximum(abs(mean), 1e-6)] = 1.0
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.layer = nn.Linear(flat.shape[1], n_hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the hidden units (n, n_hidden)."""
        return torch.relu(self.layer((x.flatten(1) - self.mean) / self.scale))
