"""Losses for wrong labels, one interface: ``loss(logits, y)`` with logits (n, n_classes) and class numbers y (n,).

Every loss is a `torch.nn.Module` that checks its input, and reduces by ``"mean"`` or ``"sum"`` over the batch. Two
need more: `ELRLoss` the positions of the samples in the data, `CoTeachingLoss` the logits of a second network.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.nn.functional import cross_entropy, log_softmax, softmax

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_flag, check_integer, check_option, check_real
from natwise.supervision.limit._inputs import REDUCTIONS, check_labels, check_logits, one_hot, reduce
from natwise.supervision.limit._noise import check_transition

_EPSILON = 1e-10


class NoisyLabelLoss(torch.nn.Module):
    """A loss that is a mean or sum over samples; a subclass gives `per_sample`.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = check_option("reduction", reduction, REDUCTIONS)

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch, a scalar: logits (n, n_classes) float, y (n,) integer class numbers."""
        logits = check_logits("logits", logits)
        return reduce(self.per_sample(logits, check_labels("y", y, *logits.shape)), self.reduction)

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the losses of the samples, shape (n,); the input has been checked."""
        raise NotImplementedError


class MAELoss(NoisyLabelLoss):
    """Mean absolute error between probabilities and label, ``sum_c |y_c - p_c| = 2 (1 - p_y)`` (Ghosh et al. 2017).

    Parameters
    ----------
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.

    Examples
    --------
    >>> MAELoss()(torch.zeros(2, 4), torch.tensor([0, 3])).item()
    1.5
    """

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return 2 (1 - p_y)."""
        return 2 * (1 - _at(softmax(logits, dim=1), y))


class MSELoss(NoisyLabelLoss):
    """Squared error between probabilities and label (Brier score), sum_c (y_c - p_c)^2.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the sum over classes of the squared differences."""
        return (one_hot(y, logits) - softmax(logits, dim=1)).square().sum(dim=1)


class GCELoss(NoisyLabelLoss):
    """Generalised cross-entropy (1 - p_y^q) / q: cross-entropy for q -> 0, 1 - p_y for q = 1 (Zhang and Sabuncu 2018).

    Parameters
    ----------
    q : float
        In (0, 1]; larger is more robust and slower to learn.
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    def __init__(self, q: float = 0.7, reduction: str = "mean"):
        super().__init__(reduction)
        self.q = check_real("q", q, minimum=1e-6, maximum=1.0)

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (1 - p_y^q) / q, from log p_y so that small q and small p lose no digits."""
        return -torch.expm1(self.q * _at(log_softmax(logits, dim=1), y)) / self.q


class SymmetricCELoss(NoisyLabelLoss):
    """Symmetric cross-entropy alpha CE + beta RCE, with RCE = -A (1 - p_y) (Wang et al. 2019).

    The reverse term -sum_c p_c log y_c is finite by setting log 0 to A.

    Parameters
    ----------
    alpha : float
        Weight of cross-entropy.
    beta : float
        Weight of the reverse cross-entropy.
    log_zero : float
        A, the value for log 0.
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0, reduction: str = "mean"):
        super().__init__(reduction)
        self.alpha = check_real("alpha", alpha, minimum=0.0)
        self.beta = check_real("beta", beta, minimum=0.0)
        self.log_zero = check_real("log_zero", log_zero, maximum=0.0)

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return alpha CE - beta A (1 - p_y)."""
        log_p = _at(log_softmax(logits, dim=1), y)
        return -self.alpha * log_p - self.beta * self.log_zero * (1 - log_p.exp())


class LabelSmoothingLoss(NoisyLabelLoss):
    """Cross-entropy to a label that is mixed with the uniform distribution; plain cross-entropy at 0.

    Parameters
    ----------
    smoothing : float
        Share of the uniform distribution, in [0, 1].
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    def __init__(self, smoothing: float = 0.1, reduction: str = "mean"):
        super().__init__(reduction)
        self.smoothing = check_real("smoothing", smoothing, minimum=0.0, maximum=1.0)

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy to the smoothed label."""
        return cross_entropy(logits, y, reduction="none", label_smoothing=self.smoothing)


class BootstrapLoss(NoisyLabelLoss):
    """Cross-entropy to the label mixed with the model's own prediction (Reed et al. 2015).

    Parameters
    ----------
    kind : {"soft", "hard"}
        Mix in the probabilities (their gradient flows too), or the likeliest class.
    weight : float, optional
        Share of the given label, in [0, 1]. Default: 0.95 for soft, 0.8 for hard.
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    def __init__(self, kind: str = "soft", weight: float | None = None, reduction: str = "mean"):
        super().__init__(reduction)
        self.kind = check_option("kind", kind, ("soft", "hard"))
        default = 0.95 if kind == "soft" else 0.8
        self.weight = check_real("weight", default if weight is None else weight, minimum=0.0, maximum=1.0)

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy (n,) to the mixed label, of logits (n, n_classes) and labels (n,)."""
        log_p = _log_probabilities(logits)
        own = (log_p.exp() * log_p).sum(dim=1) if self.kind == "soft" else log_p.max(dim=1).values
        return -self.weight * _at(log_p, y) - (1 - self.weight) * own


class ForwardCorrectionLoss(NoisyLabelLoss):
    """Cross-entropy of the noisy label under known noise, -log (p T)_y (forward correction, Patrini et al. 2017).

    Parameters
    ----------
    transition : array-like of shape (n_classes, n_classes)
        T[i, j] = P(given label j | true label i); see `estimate_transition_matrix`.
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    transition: torch.Tensor

    def __init__(self, transition: Any, reduction: str = "mean"):
        super().__init__(reduction)
        matrix = torch.from_numpy(check_transition("transition", transition).copy())
        self.register_buffer("transition", matrix)

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return -log (p T)_y, with p clamped to [1e-10, 1 - 1e-10] as in the original."""
        check_logits("logits", logits, n_classes=len(self.transition))
        p = softmax(logits, dim=1).clamp(_EPSILON, 1 - _EPSILON)
        return -_at(p @ self.transition.to(p), y).clamp(min=_EPSILON).log()


class NoisyGradientLoss(NoisyLabelLoss):
    """Cross-entropy whose gradient at the logits is blurred by independent noise, a baseline of the LIMIT paper.

    Parameters
    ----------
    std : float
        Standard deviation of the noise on the gradient of a sample.
    distribution : {"gaussian", "laplace"}
        Shape of the noise.
    random_state : int, Generator, RandomState, Streams or None
        Seeds the noise; None draws from torch's global generator, which `natwise.core.training` seeds.
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    def __init__(
        self,
        std: float = 0.1,
        distribution: str = "gaussian",
        random_state: RandomState = None,
        reduction: str = "mean",
    ):
        super().__init__(reduction)
        self.std = check_real("std", std, minimum=0.0)
        self.distribution = check_option("distribution", distribution, ("gaussian", "laplace"))
        self.noise = GradientNoise(random_state)

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return cross-entropy plus <noise, logits>, whose gradient is the noisy one."""
        noise = self.noise.draw(logits, self.distribution) * self.std
        return cross_entropy(logits, y, reduction="none") + (noise * logits).sum(dim=1)


class DMILoss(torch.nn.Module):
    """Determinant-based mutual information, ``-log(|det U| + 0.001)`` with U = Y^T P (Xu et al. 2019).

    Noise in the labels multiplies the determinant by that of its transition matrix, and so only adds a constant.
    Train by cross-entropy first and go on with a small learning rate: from scratch it hardly starts.

    Parameters
    ----------
    normalize : bool
        Divide U by the batch size as in the paper of DMI. The code of the LIMIT paper does not (the default).

    Warns
    -----
    UserWarning
        When a class is missing from a batch: the determinant is 0 and so is the gradient.
    """

    def __init__(self, normalize: bool = False):
        super().__init__()
        self.normalize = check_flag("normalize", normalize)

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch, a scalar: logits (n, n_classes) float, y (n,) integer class numbers."""
        logits = check_logits("logits", logits)
        y = check_labels("y", y, *logits.shape)
        present, n_classes = len(y.unique()), logits.shape[1]
        if present < n_classes:
            text = f"DMILoss has no gradient: {n_classes - present} of {n_classes} classes are missing from the batch"
            warnings.warn(f"{text} of {len(y)} labels; use larger batches", UserWarning, stacklevel=2)
        p = softmax(logits, dim=1)
        p = p.to(torch.promote_types(p.dtype, torch.float32))  # half precision has no determinant
        joint = one_hot(y, p).T @ p
        if self.normalize:
            joint = joint / len(y)
        return -(torch.linalg.det(joint).abs() + 1e-3).log()


class ELRLoss(torch.nn.Module):
    """Early-learning regularisation: cross-entropy + weight * log(1 - <target, p>) (Liu et al. 2020).

    Each sample's target is a running mean of its own predictions, which the early, still honest ones dominate. In
    training mode every call updates the targets of its samples.

    Parameters
    ----------
    n_samples, n_classes : int
        Size of the table of targets.
    weight : float
        Of the regulariser; 3 was used for CIFAR-10, 7 for CIFAR-100.
    momentum : float
        Share of the old target, in [0, 1).
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    targets: torch.Tensor

    def __init__(
        self,
        n_samples: int,
        n_classes: int,
        weight: float = 3.0,
        momentum: float = 0.7,
        reduction: str = "mean",
    ):
        super().__init__()
        check_integer("n_samples", n_samples, minimum=1)
        check_integer("n_classes", n_classes, minimum=2)
        self.weight = check_real("weight", weight, minimum=0.0)
        self.momentum = check_real("momentum", momentum, minimum=0.0, maximum=1.0)
        self.reduction = check_option("reduction", reduction, REDUCTIONS)
        self.register_buffer("targets", torch.zeros(n_samples, n_classes))

    def forward(self, logits: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch, a scalar; `index` (n,) holds the samples' positions in [0, n_samples)."""
        logits = check_logits("logits", logits, n_classes=self.targets.shape[1])
        y = check_labels("y", y, *logits.shape)
        index = check_labels("index", index, len(y), len(self.targets))
        p = softmax(logits, dim=1).clamp(1e-4, 1 - 1e-4)
        targets = self.targets[index]
        if self.training:
            own = (p / p.sum(dim=1, keepdim=True)).detach().to(targets)
            targets = self.momentum * targets + (1 - self.momentum) * own
            self.targets[index] = targets
        agreement = (targets.to(p) * p).sum(dim=1)
        return reduce(
            cross_entropy(logits, y, reduction="none") + self.weight * torch.log1p(-agreement), self.reduction
        )


class CoTeachingLoss(torch.nn.Module):
    """Two networks learn from the samples that the other one finds easy (co-teaching, Han et al. 2018).

    Of a batch each network takes the share R(t) = 1 - noise_rate * min(t / ramp, 1) with the smallest
    cross-entropy under its peer; t counts the calls in training mode.

    Parameters
    ----------
    noise_rate : float
        Share of the samples to drop in the end, in [0, 1): an estimate of the share of wrong labels.
    ramp : int
        Calls (optimiser steps) until so many are dropped.
    """

    calls: torch.Tensor

    def __init__(self, noise_rate: float, ramp: int = 100):
        super().__init__()
        self.noise_rate = check_real("noise_rate", noise_rate, minimum=0.0, maximum=0.999)
        self.ramp = check_integer("ramp", ramp, minimum=1)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, first_logits: torch.Tensor, second_logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the sum of both networks' mean losses over what the other chose; logits (n, n_classes), y (n,)."""
        first_logits = check_logits("first_logits", first_logits)
        second_logits = check_logits("second_logits", second_logits, *first_logits.shape)
        y = check_labels("y", y, *first_logits.shape)
        losses = [cross_entropy(logits, y, reduction="none") for logits in (first_logits, second_logits)]
        kept = 1 - self.noise_rate * min(int(self.calls) / self.ramp, 1.0)
        if self.training:
            self.calls += 1
        n_kept = max(1, round(kept * len(y)))
        first, second = (loss.detach().argsort(stable=True)[:n_kept] for loss in losses)
        return losses[0][second].mean() + losses[1][first].mean()


class ConfusionMatrixLoss(NoisyLabelLoss):
    """Learn the noise with the network: -log (p Q)_y with Q a trained row-stochastic matrix.

    Its matrix is a parameter of the loss: hand it to the optimiser too. A form in the code of the LIMIT paper,
    which trains q so; it adds `entropy_weight` times the entropy of p, that is, asks for sharp predictions.

    Parameters
    ----------
    n_classes : int
        Number of classes.
    entropy_weight : float
        Weight of the entropy of p.
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    def __init__(self, n_classes: int, entropy_weight: float = 0.01, reduction: str = "mean"):
        super().__init__(reduction)
        check_integer("n_classes", n_classes, minimum=2)
        self.entropy_weight = check_real("entropy_weight", entropy_weight)
        self.confusion_logits = torch.nn.Parameter(torch.eye(n_classes))

    def per_sample(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return -log (p Q)_y + entropy_weight * H(p), (n,), of logits (n, n_classes) and labels (n,)."""
        check_logits("logits", logits, n_classes=len(self.confusion_logits))
        log_p = _log_probabilities(logits)
        log_given = torch.logsumexp(log_p + log_softmax(self.confusion_logits, dim=1).T[y], dim=1)
        return -log_given - self.entropy_weight * (log_p.exp() * log_p).sum(dim=1)


class GradientNoise:
    """Unit-variance noise of a gradient's shape, from a generator of its own or torch's global one."""

    def __init__(self, random_state: RandomState = None):
        self.streams = None if random_state is None else Streams.of(random_state)
        self.generator: torch.Generator | None = None

    def draw(self, like: torch.Tensor, distribution: str) -> torch.Tensor:
        """Return noise of mean 0 and standard deviation 1, without a gradient."""
        if self.streams is not None and self.generator is None:
            self.generator = self.streams.torch("gradient-noise", like.device)
        options: dict[str, Any] = {"generator": self.generator, "dtype": like.dtype, "device": like.device}
        if distribution == "gaussian":
            return torch.randn(like.shape, **options)
        uniform = torch.rand(like.shape, **options) - 0.5  # Laplace by the inverse distribution function
        return -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.5 - 1e-7)) / 2**0.5


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return finite ln p (n, n_classes), so that p ln p is 0 and not NaN where p is."""
    return log_softmax(logits, dim=1).clamp(min=torch.finfo(logits.dtype).min)


def _at(values: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the value of each row in the column of its label, shape (n,)."""
    return values.gather(1, y[:, None])[:, 0]
