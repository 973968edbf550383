"""LIMIT: the classifier is trained on gradients that a second network predicts without seeing the label."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import log_softmax, softmax

from natwise.core.random import RandomState
from natwise.core.validation import check_flag, check_integer, check_option, check_real
from natwise.supervision.limit._inputs import REDUCTIONS, check_labels, check_logits, one_hot, reduce
from natwise.supervision.limit._losses import GradientNoise

Q_DISTS = ("gaussian", "laplace", "ce", "dot")
FORMS = ("cross_entropy", "mae")


class LIMITOutput(NamedTuple):
    """The losses of one LIMIT step, scalars; back-propagate `total`.

    Attributes
    ----------
    total : Tensor
        ``classifier + q``. Its gradient reaches the classifier through `classifier` and q through `q` only.
    classifier : Tensor
        Cross-entropy of the classifier to q's label distribution, which is held fixed.
    q : Tensor
        How far the predicted gradient is from the true one, plus the penalty ``grad_l2``.
    """

    total: torch.Tensor
    classifier: torch.Tensor
    q: torch.Tensor


class LIMITLoss(torch.nn.Module):
    """Loss of LIMIT for a classifier and a network q, both mapping x to logits.

    With classifier probabilities p, label y (one-hot) and q's probabilities t, the true gradient at the logits is
    g = p - y and the predicted one ĝ = p - t. q minimises the distance of ĝ from g; the classifier is given ĝ in
    the place of g, which is the gradient of the cross-entropy to t with t held fixed. So labels reach the
    classifier through q alone (paper, algorithm 1).

    Parameters
    ----------
    q_dist : {"gaussian", "laplace", "ce", "dot"}
        What q minimises per sample: sum_c (ĝ - g)^2 (LIMIT_G), ``sum_c |ĝ - g|`` (LIMIT_L), the cross-entropy of t to
        the label, or -<ĝ, g>. The last two are further forms of the original code.
    grad_l2 : float
        beta >= 0, weight of the penalty sum_c ĝ^2 in q's loss. Larger memorises less; the paper advises 0.03 to 10,
        chosen by accuracy on noisy validation labels.
    sample : bool
        Give the classifier a draw from q's distribution around ĝ in the place of ĝ (with `lamb`).
    reduction : {"mean", "sum"}
        ``"mean"``: both terms are means over the batch. ``"sum"``: as in the original code, the classifier's term
        is a sum and q's remains a mean; Adam hides the difference, other optimisers do not.
    lamb : float
        Precision > 0 of the draws: standard deviation sqrt(1 / (2 lamb)) for gaussian, sqrt(2) / lamb for laplace.
    form : {"cross_entropy", "mae"} or GradientHead
        The classifier's loss whose gradient q predicts; or a trained map from (p, t) to ĝ.
    random_state : int, Generator, RandomState, Streams or None
        Seeds the draws; None uses torch's global generator, which `natwise.core.training` seeds.

    Notes
    -----
    The original code does this by a custom autograd function that ignores the incoming gradient, so that loss
    scaling, gradient accumulation and mixing with other losses fail silently; its ``ce`` option raised.

    Examples
    --------
    >>> a, r = torch.zeros(2, 3, requires_grad=True), torch.tensor([[2.0, 0, 0], [0, 2.0, 0]], requires_grad=True)
    >>> output = LIMITLoss("laplace")(a, r, torch.tensor([0, 2]))
    >>> round(output.classifier.item(), 4), round(output.q.item(), 4)
    (1.0986, 1.1065)
    """

    def __init__(
        self,
        q_dist: str = "gaussian",
        grad_l2: float = 0.0,
        sample: bool = False,
        reduction: str = "mean",
        *,
        lamb: float = 50.0,
        form: Any = "cross_entropy",
        random_state: RandomState = None,
    ):
        super().__init__()
        self.q_dist = check_option("q_dist", q_dist, Q_DISTS)
        self.grad_l2 = check_real("grad_l2", grad_l2, minimum=0.0)
        self.sample = check_flag("sample", sample)
        if sample and q_dist not in ("gaussian", "laplace"):
            raise ValueError(f"q_dist must be 'gaussian' or 'laplace' to sample from it, got {q_dist!r}")
        self.reduction = check_option("reduction", reduction, REDUCTIONS)
        self.lamb = check_real("lamb", lamb, minimum=0.0, exclusive=True)
        self.form = form if isinstance(form, torch.nn.Module) else check_option("form", form, FORMS)
        self.noise = GradientNoise(random_state)

    def forward(self, classifier_logits: torch.Tensor, q_logits: torch.Tensor, y: torch.Tensor) -> LIMITOutput:
        """Return the losses of a batch.

        Parameters
        ----------
        classifier_logits, q_logits : Tensor of shape (n, n_classes), float
            Of two networks without a common parameter; see `check_separate_networks`.
        y : Tensor of shape (n,), integer
            Given labels in [0, n_classes).
        """
        a = check_logits("classifier_logits", classifier_logits)
        r = check_logits("q_logits", q_logits, *a.shape)
        if a is r:
            raise ValueError("q_logits must come from another network than classifier_logits, got the same tensor")
        y = check_labels("y", y, *a.shape)
        log_p, log_t, label = log_softmax(a, dim=1), log_softmax(r, dim=1), one_hot(y, a)
        p, t = log_p.detach().exp(), log_t.exp()
        predicted = self._gradient(p, t)
        q = self._distance(predicted, self._label_gradient(p, label), -(label * log_t).sum(dim=1))
        if self.grad_l2:
            q = q + self.grad_l2 * predicted.square().sum(dim=1)
        q = q.mean()
        classifier = reduce(self._classifier(a, log_p, t.detach(), predicted.detach()), self.reduction)
        return LIMITOutput(classifier + q, classifier, q)

    def _gradient(self, p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the predicted gradient (n, n_classes) from probabilities p and t of that shape."""
        if self.form == "mae":
            return (p * t).sum(dim=1, keepdim=True) * (p - t)
        return p - t if self.form == "cross_entropy" else self.form(p, t)

    def _label_gradient(self, p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the true gradient (n, n_classes) at probabilities p for one-hot labels."""
        return self._gradient(p, label) if self.form == "mae" else p - label

    def _distance(self, predicted: torch.Tensor, actual: torch.Tensor, ce: torch.Tensor) -> torch.Tensor:
        """Return how far the gradients (n, n_classes) are from each other, (n,); `ce` is the cross-entropy (n,)."""
        if self.q_dist == "gaussian":
            return (predicted - actual).square().sum(dim=1)
        if self.q_dist == "laplace":
            return (predicted - actual).abs().sum(dim=1)
        if self.q_dist == "dot":
            return -(predicted * actual).sum(dim=1)
        return ce

    def _classifier(
        self, a: torch.Tensor, log_p: torch.Tensor, t: torch.Tensor, predicted: torch.Tensor
    ) -> torch.Tensor:
        """Return per-sample losses whose gradient at the logits `a` is the predicted one, plus noise if sampled."""
        losses = -(t * log_p).sum(dim=1) if self.form == "cross_entropy" else (predicted * a).sum(dim=1)
        if not self.sample:
            return losses
        std = (2 * self.lamb) ** -0.5 if self.q_dist == "gaussian" else 2**0.5 / self.lamb
        return losses + (self.noise.draw(a, self.q_dist) * std * a).sum(dim=1)


class GradientHead(torch.nn.Module):
    """The general form of q: a small network from (p, t) to the predicted gradient, for ``LIMITLoss(form=...)``.

    Its parameters are the loss's: hand ``loss.parameters()`` to the optimiser too.

    Parameters
    ----------
    n_classes : int
        Number of classes.
    n_hidden : int
        Width of the hidden layer.
    """

    def __init__(self, n_classes: int, n_hidden: int = 128):
        super().__init__()
        check_integer("n_classes", n_classes, minimum=2)
        check_integer("n_hidden", n_hidden, minimum=1)
        layers = torch.nn.Linear(2 * n_classes, n_hidden), torch.nn.ReLU(), torch.nn.Linear(n_hidden, n_classes)
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the predicted gradient, shape (n, n_classes)."""
        return self.layers(torch.cat([p, t], dim=1))


class LIMITPenaltyLoss(torch.nn.Module):
    """The penalised variant of LIMIT: cross-entropy plus the information in the last layer's gradient.

    The gradient of the last layer (without bias) is (p - y) z^T with z its input, so the penalty is
    weight * ||z||^2 ||y - t||^2 + grad_l2 * ||z||^2 ||p - t||^2 per sample. Unlike in `LIMITLoss`, labels and
    gradients flow into the classifier, which can escape by shrinking z: the paper prefers `LIMITLoss`.

    Parameters
    ----------
    weight : float
        Of the distance of q from the label, >= 0; the original tried 0.001 to 0.1.
    grad_l2 : float
        Of the predicted gradient's square, >= 0.
    reduction : {"mean", "sum"}
        How the samples of a batch are put together.
    """

    def __init__(self, weight: float = 0.01, grad_l2: float = 0.0, reduction: str = "mean"):
        super().__init__()
        self.weight = check_real("weight", weight, minimum=0.0)
        self.grad_l2 = check_real("grad_l2", grad_l2, minimum=0.0)
        self.reduction = check_option("reduction", reduction, REDUCTIONS)

    def forward(
        self, classifier_logits: torch.Tensor, features: torch.Tensor, q_logits: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a batch, a scalar; `features` (n, d) enter the classifier's last layer."""
        a = check_logits("classifier_logits", classifier_logits)
        r = check_logits("q_logits", q_logits, *a.shape)
        y = check_labels("y", y, *a.shape)
        z = check_logits("features", features, len(a))
        log_p, t, label = log_softmax(a, dim=1), softmax(r, dim=1), one_hot(y, a)
        penalty = self.weight * (label - t).square().sum(dim=1)
        penalty = penalty + self.grad_l2 * (log_p.exp() - t).square().sum(dim=1)
        return reduce(-(label * log_p).sum(dim=1) + z.square().sum(dim=1) * penalty, self.reduction)


def check_separate_networks(classifier: torch.nn.Module, q_network: torch.nn.Module) -> None:
    """Raise `ValueError` when the two networks share a parameter or buffer, wholly or in part of its memory.

    A shared parameter carries the labels that q sees straight into the classifier, which voids the method.

    Parameters
    ----------
    classifier, q_network : torch.nn.Module
        The networks of `LIMITLoss`.
    """
    for name, network in {"classifier": classifier, "q_network": q_network}.items():
        if not isinstance(network, torch.nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(network).__name__}")
    owners = {memory: name for name, memory in _memory(classifier)}
    shared = [f"{owners[memory]!r} (q's {name!r})" for name, memory in _memory(q_network) if memory in owners]
    if shared:
        raise ValueError(f"q_network must share no parameter with classifier, got shared {', '.join(shared[:3])}")


def _memory(network: torch.nn.Module) -> list[tuple[str, int]]:
    tensors = [*network.named_parameters(), *network.named_buffers()]
    found = [(name, tensor.untyped_storage().data_ptr()) for name, tensor in tensors if tensor.numel()]
    return [(name, address) for name, address in found if address]
