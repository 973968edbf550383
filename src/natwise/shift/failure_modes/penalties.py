"""Penalties of domain generalisation: differentiable functions of torch tensors for a user's own training loop.

`domain` is an integer tensor (n,) of any ids. Everything keeps dtype and device. Sources: the publications named in
each docstring, in the conventions of the code that the failure-modes paper trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch.nn.functional import cross_entropy, one_hot

from natwise.core.validation import check_integer, check_option, check_real
from natwise.shift.failure_modes._tensors import check_float, check_ids, check_logits, is_dense, with_gradients

GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def coral(z: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
    """Return the difference of means and covariances between domains (deep CORAL, arXiv 1607.01719).

    Mean over pairs of domains of mean_k (mu_ik - mu_jk)^2 + mean_kl (S_i - S_j)_kl^2 with unbiased covariances. The
    original has ||S_i - S_j||^2 / 4 d^2 and no means; this is the version of DomainBed and WILDS.

    Parameters
    ----------
    z : tensor of shape (n, d)
        Representations.
    domain : tensor of int, shape (n,)
        Domain of each row; at least two domains of two rows.

    Returns
    -------
    scalar tensor, >= 0

    Raises
    ------
    TypeError, ValueError
        For what is no float tensor (n, d), no ids, or fewer than two domains of two rows.
    """
    check_float("z", z, 2)
    parts = _parts(z, domain, smallest=2)
    moments = [(part.mean(dim=0), torch.atleast_2d(part.T.cov())) for part in parts]
    return _mean_over_pairs(
        lambda a, b: ((a[0] - b[0]) ** 2).mean() + ((a[1] - b[1]) ** 2).mean(),
        moments,
    )


def mmd(z: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
    """Return the squared maximum mean discrepancy between domains, mean over pairs (as in DomainBed).

    The kernel is the sum of exp(-gamma |a - b|^2) over seven gammas from 1e-3 to 1e3; the estimate is the biased one,
    with the diagonal.

    Parameters
    ----------
    z : tensor of shape (n, d)
        Representations.
    domain : tensor of int, shape (n,)
        Domain of each row; at least two domains.

    Returns
    -------
    scalar tensor, >= 0

    Raises
    ------
    TypeError, ValueError
        For what is no float tensor (n, d), no ids, or fewer than two domains.
    """
    check_float("z", z, 2)
    parts = _parts(z, domain)
    own = [_kernel(part, part) for part in parts]
    return _mean_over_pairs(
        lambda a, b: own[a] + own[b] - 2 * _kernel(parts[a], parts[b]),
        range(len(parts)),
    )


def irm(logits: torch.Tensor, y: torch.Tensor, domain: torch.Tensor, estimator: str = "split") -> torch.Tensor:
    """Return the invariant-risk penalty (IRMv1, arXiv 1907.02893): mean over domains of a squared gradient.

    The gradient is that of a domain's mean cross-entropy with respect to a scale w on the logits at w = 1, which is
    mean_i (sum_k p_ik l_ik - l_i,y).

    Parameters
    ----------
    logits : tensor of shape (n, n_classes)
        The classifier's outputs.
    y, domain : tensor of int, shape (n,)
        Class and domain of each row.
    estimator : {"split", "full"}
        "full" squares the gradient of all rows, as the paper does: never negative, biased upwards in small batches.
        "split" multiplies the gradients of rows 0, 2, 4, … and 1, 3, 5, … of each domain: unbiased, so that it may be
        negative. It needs two rows per domain.

    Returns
    -------
    scalar tensor

    Raises
    ------
    TypeError, ValueError
        For what are no logits, classes or ids; for domains of one row with "split".
    """
    check_logits(logits, y)
    check_option("estimator", estimator, ("split", "full"))
    slopes = (logits.softmax(dim=1) * logits).sum(dim=1) - logits.gather(1, y.long()[:, None])[:, 0]
    split = estimator == "split"
    parts = _parts(slopes, domain, smallest=2 if split else 1, fewest=1)
    if split:
        return torch.stack([part[0::2].mean() * part[1::2].mean() for part in parts]).mean()
    return torch.stack([part.mean() ** 2 for part in parts]).mean()


def vrex(losses: torch.Tensor) -> torch.Tensor:
    """Return the population variance of the domains' mean losses (V-REx, arXiv 2003.00688).

    Parameters
    ----------
    losses : tensor of shape (n_domains,)
        Mean loss of each domain.

    Returns
    -------
    scalar tensor, >= 0

    Raises
    ------
    TypeError, ValueError
        For what is no vector of finite floats.
    """
    check_float("losses", losses, 1)
    return ((losses - losses.mean()) ** 2).mean()


def group_dro(losses: torch.Tensor, q: torch.Tensor, step_size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of group DRO and the new weights of the domains (arXiv 1911.08731).

    The weights are multiplied by exp(step_size * losses) and normalised before they are used, and carry no gradient.
    A domain that is absent from the batch has the loss 0.

    Parameters
    ----------
    losses : tensor of shape (n_domains,)
        Mean loss of each domain.
    q : tensor of shape (n_domains,)
        Weights so far, >= 0; uniform at the start. Left as it is.
    step_size : float
        Of the weights; 0.01 is usual.

    Returns
    -------
    loss : scalar tensor
        Sum of q times losses.
    q : tensor of shape (n_domains,)
        The new weights, of sum 1.

    Raises
    ------
    TypeError, ValueError
        For what are no such vectors, or a step size below 0.
    """
    check_float("losses", losses, 1)
    check_float("q", q, 1)
    if q.shape != losses.shape or (q < 0).any() or not q.sum() > 0:
        raise ValueError(f"q must hold one weight >= 0 for each of {len(losses)} losses, got {q.tolist()}")
    step_size = check_real("step_size", step_size, minimum=0.0)
    detached = losses.detach()
    q = q * torch.exp(step_size * (detached - detached.max()))  # the largest loss cancels, and cannot overflow
    q = q / q.sum()
    return (q * losses).sum(), q


def hsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the Hilbert-Schmidt independence criterion tr(K H L H) / n with Gaussian kernels.

    The width of each kernel is s = sqrt(median / 2) of the positive squared distances (the lower of two medians),
    computed anew and differentiated through. Divided by n, as in the paper's code; others divide by n^2 or (n - 1)^2.

    Parameters
    ----------
    a, b : tensor of shape (n, p) and (n, q)
        Paired samples, n >= 2. Integers of shape (n,) are labels and become one-hot rows.

    Returns
    -------
    scalar tensor, >= 0

    Raises
    ------
    TypeError, ValueError
        For what are no numbers or labels, or numbers of rows that differ.
    """
    a, b = _columns("a", a, b), _columns("b", b, a)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a and b must have the same number of rows, at least 2, got {len(a)} and {len(b)}")
    K, L = _median_kernel(a), _median_kernel(b.to(a.dtype))
    centred = K - K.mean(dim=0) - K.mean(dim=1, keepdim=True) + K.mean()
    return (centred * L).sum() / len(a)


def conditional_hsic(z: torch.Tensor, y: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
    """Return `hsic` of the representation joined with the one-hot label, and the domain.

    Parameters
    ----------
    z : tensor of shape (n, d)
        Representations.
    y, domain : tensor of int, shape (n,)
        Class and domain of each row.

    Returns
    -------
    scalar tensor, >= 0

    Raises
    ------
    TypeError, ValueError
        For what is no float tensor (n, d), or no labels and ids.
    """
    check_float("z", z, 2)
    for name, ids in (("y", y), ("domain", domain)):
        check_ids(name, ids, len(z))
    return hsic(torch.cat([z, _columns("y", y, z)], dim=1), domain)


def spectral_decoupling(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean squared logit over rows and classes (arXiv 2011.09468).

    Parameters
    ----------
    logits : tensor of shape (n, n_classes)
        The classifier's outputs.

    Returns
    -------
    scalar tensor, >= 0

    Raises
    ------
    TypeError, ValueError
        For what is no matrix of finite floats.
    """
    check_float("logits", logits, 2)
    return (logits**2).mean()


def gradient_penalty(losses: torch.Tensor, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return how far the mean gradient moves when one domain is left out, summed over domains.

    With g_e the gradient of domain e's loss and g their mean: sum_e || g - (E g - g_e) / (E - 1) ||_2.

    Parameters
    ----------
    losses : tensor of shape (n_domains,)
        Mean loss of each domain, of at least two, with their graph.
    parameters : iterable of tensors
        Those whose gradients are compared, such as the parameters of the head; frozen ones are left out.

    Returns
    -------
    scalar tensor, >= 0

    Raises
    ------
    TypeError, ValueError
        For fewer than two losses, or parameters on which they do not depend.
    """
    check_float("losses", losses, 1)
    if len(losses) < 2:
        raise ValueError(f"losses must be of at least two domains, got {len(losses)}")
    trained = with_gradients(parameters)
    if not trained or not losses.requires_grad:
        raise ValueError("parameters must hold tensors on which the losses depend, got none")
    gradients = [
        torch.autograd.grad(loss, trained, create_graph=True, materialize_grads=True)  # 0 for what it ignores
        for loss in losses
    ]
    flat = torch.stack([torch.cat([part.flatten() for part in own]) for own in gradients])
    # g - (E g - g_e) / (E - 1) = (g_e - g) / (E - 1)
    return torch.linalg.vector_norm(flat - flat.mean(dim=0), dim=1).sum() / (len(losses) - 1)


def reverse_gradient(z: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """Return `z` itself, whose gradient will come back times minus `weight` (DANN, arXiv 1505.07818).

    Parameters
    ----------
    z : float tensor of any shape
        Representations on their way into a domain classifier.
    weight : float
        Strength of the reversal.

    Returns
    -------
    tensor of the same shape

    Raises
    ------
    TypeError, ValueError
        For what is no finite float tensor, or a weight below 0.
    """
    check_float("z", z)
    weight = check_real("weight", weight, minimum=0.0)
    return z.detach() * (1 + weight) - z * weight


def domain_losses(logits: torch.Tensor, y: torch.Tensor, domain: torch.Tensor, n_domains: int) -> torch.Tensor:
    """Return the mean cross-entropy of each domain 0 to n_domains - 1; 0 for a domain without a row.

    Parameters
    ----------
    logits : tensor of shape (n, n_classes)
        The classifier's outputs.
    y, domain : tensor of int, shape (n,)
        Class and domain of each row.
    n_domains : int
        Number of domains; larger than every id.

    Returns
    -------
    tensor of shape (n_domains,)

    Raises
    ------
    TypeError, ValueError
        For what are no logits or classes, or ids that are not from 0 to n_domains - 1.
    """
    check_logits(logits, y)
    check_ids("domain", domain, len(logits))
    check_integer("n_domains", n_domains, minimum=1)
    if domain.min() < 0 or domain.max() >= n_domains:
        raise ValueError(f"domain must hold numbers 0 to {n_domains - 1}, got {domain.min()} to {domain.max()}")
    losses = cross_entropy(logits, y.long(), reduction="none")
    share = one_hot(domain.long(), n_domains).to(losses.dtype)
    return losses @ share / share.sum(dim=0).clamp(min=1)


def _mean_over_pairs(distance: Callable[[Any, Any], torch.Tensor], items: Sequence[Any]) -> torch.Tensor:
    return torch.stack([distance(a, b) for a, b in combinations(items, 2)]).mean()


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return |a_i - b_j|^2, (n, m), of rows a (n, d) and b (m, d)."""
    squares = (a**2).sum(dim=1)[:, None] + (b**2).sum(dim=1) - 2 * a @ b.T
    return squares.clamp(min=0)


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the mean of the kernel over pairs of rows a (n, d) and b (m, d)."""
    squares = _squared_distances(a, b)
    return torch.stack([torch.exp(-gamma * squares).mean() for gamma in GAMMAS]).sum()


def _median_kernel(a: torch.Tensor) -> torch.Tensor:
    """Return the Gaussian kernel (n, n) of rows (n, p), as wide as `hsic` says."""
    squares = ((a[:, None] - a[None]) ** 2).sum(dim=2)
    above = squares[torch.triu(torch.ones_like(squares, dtype=torch.bool), diagonal=1)]
    positive = above[above > 0]
    half_median = 0.5 * positive.median() if len(positive) else squares.new_tensor(1e-8)  # width 1e-4
    return torch.exp(-squares / (2 * half_median))


def _columns(name: str, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return labels (n,) as one-hot rows, numbers (n,) or (n, p) as columns."""
    if isinstance(value, torch.Tensor) and is_dense(value) and not value.is_floating_point():
        has_dtype = isinstance(like, torch.Tensor) and like.is_floating_point()
        dtype = like.dtype if has_dtype else torch.get_default_dtype()
        if value.ndim == 1 and len(value):
            return one_hot(value.unique(return_inverse=True)[1]).to(dtype)
        value = value.to(dtype)
    if isinstance(value, torch.Tensor) and value.ndim == 1:
        value = value[:, None]
    check_float(name, value, 2)
    return value


def _parts(value: torch.Tensor, domain: torch.Tensor, smallest: int = 1, fewest: int = 2) -> list[torch.Tensor]:
    """Return the rows (n_i, ...) of each domain, in their order."""
    check_ids("domain", domain, len(value))
    parts = [value[domain == number] for number in domain.unique()]
    if len(parts) < fewest:
        raise ValueError(f"domain must hold at least {fewest} domains, got {len(parts)}")
    if min(len(part) for part in parts) < smallest:
        raise ValueError(f"domain must hold at least {smallest} rows of each domain, got {min(map(len, parts))}")
    return parts
