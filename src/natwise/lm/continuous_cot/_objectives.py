"""Log-densities of sampled thoughts, the GRPO objective over them, rewards, and Pass@k."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from natwise.core.validation import check_array, check_integer, check_option, check_real, shorten
from natwise.lm.continuous_cot._checks import (
    check_drawn,
    check_floats,
    check_ids,
    check_simplex,
    check_targets,
)
from natwise.lm.continuous_cot._distributions import floored, wide
from natwise.lm.continuous_cot._model import RATIOS

Reward: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
LARGEST = 1e30  # of options, which must be finite in float32
MAX_LOG_RATIO = 80.0  # its exponential is finite in float32
NO_SPREAD = "rewards are equal within every group: all advantages are 0, and only the KL term can have a gradient"


def grpo_loss(
    new: Any, old: Any, ref: Any, tokens: Any, final: Any, rewards: Any, *,
    clip: float = 0.1, kl_weight: float = 0.0, ratio: str = "geometric",
) -> Any:  # fmt: skip
    """Return the loss of group relative policy optimisation over rollouts of multi-token sampling.

    Parameters
    ----------
    new, old, ref : float array or tensor of shape (..., n_rollouts, steps, n_tokens)
        Logits of the policy being trained, of the one that drew the rollouts, and of the reference; the rollouts
        of one prompt are a group. `ref` may be None when `kl_weight` is 0. Only `new` has a gradient.
    tokens : int array or tensor of shape (..., n_rollouts, steps - 1, k)
        Tokens drawn for the thoughts, as `ContinuousCoT.sample` gives them.
    final : int array or tensor of shape (..., n_rollouts)
        Answers drawn.
    rewards : array or tensor of shape (..., n_rollouts)
        Advantages are their deviations from the mean of the group in standard deviations (of the population); 0 in
        a group of equal rewards, of which there is a warning when all groups are such.
    clip : float
        A ratio counts no further than 1 - clip and 1 + clip; every step of a rollout is clipped by itself.
    kl_weight : float
        Weight of the KL divergence from the reference, estimated as exp(ref - new) - (ref - new) - 1 per step.
    ratio : {"geometric", "temperature"}
        Ratio of a thought: geometric mean of its tokens' ratios (the paper's), or their product under
        softmax(logits / k) (what the original code does unless told otherwise). Draw the tokens by the same.

    Returns
    -------
    float, or tensor of shape () when `new` is a tensor
        Mean over prompts, rollouts and steps.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not agree, tokens outside the vocabulary, numbers that are not finite.

    Source: section 4 of the paper, Eq. (4).
    """
    check_objective(clip, kl_weight, ratio)
    if ref is None and kl_weight > 0:
        raise ValueError(f"ref must be given when kl_weight is {kl_weight}, got None")
    logits = check_floats("new", new)
    if logits.ndim < 3 or not logits.numel():
        raise ValueError(f"new must have shape (..., n_rollouts, steps, n_tokens), got {tuple(logits.shape)}")
    *groups, steps, n_tokens = logits.shape
    drawn = check_drawn("tokens", tokens, (*groups, steps - 1, "k"), n_tokens, logits.device)
    answers = check_ids("final", final, groups, n_tokens, logits.device)
    gains = check_floats("rewards", rewards, groups, logits.device)
    given = {"old": old} if ref is None else {"old": old, "ref": ref}
    others = [check_floats(name, value, logits.shape, logits.device).detach() for name, value in given.items()]
    if not (gains != gains[..., :1]).any():
        warnings.warn(NO_SPREAD, UserWarning, stacklevel=2)
    log_p = [token_log_probs(one, drawn, answers, ratio) for one in (logits, *others)]
    loss = clipped_objective(log_p[0], log_p[1], log_p[-1], gains, clip, kl_weight)
    return loss if isinstance(new, torch.Tensor) else float(loss)


def check_objective(clip: float, kl_weight: float, ratio: str) -> None:
    """Refuse options that `grpo_loss` does not have."""
    check_option("ratio", ratio, RATIOS)
    check_real("clip", clip, minimum=0.0, maximum=LARGEST, exclusive=True)
    check_real("kl_weight", kl_weight, minimum=0.0, maximum=LARGEST)


def token_log_probs(
    logits: torch.Tensor, tokens: torch.Tensor, final: torch.Tensor, ratio: str = "geometric"
) -> torch.Tensor:
    """Return the log-probability of every step of rollouts, (..., steps): of thoughts by convention, of the answer.

    Logits are (..., steps, n_tokens), the thoughts' tokens (..., steps - 1, k), answers (...).
    """
    k = tokens.shape[-1]
    thoughts = wide(logits[..., :-1, :]) / (k if ratio == "temperature" else 1)
    each = thoughts.log_softmax(dim=-1).gather(-1, tokens)
    combined = each.sum(dim=-1) if ratio == "temperature" else each.mean(dim=-1)
    return torch.cat([combined, _answer_log_prob(logits, final)], dim=-1)


def dirichlet_log_probs(
    logits: torch.Tensor, points: torch.Tensor, final: torch.Tensor, concentration: float, floor: float = 1e-3
) -> torch.Tensor:
    """Return the log-density of every step of rollouts with Dirichlet thoughts, (..., steps), float64.

    Logits are (..., steps, n_tokens), thoughts points (..., steps - 1, n_tokens), answers (...).
    """
    alpha = floored(logits[..., :-1, :].double().softmax(dim=-1), floor)
    density = _dirichlet_log_density(points.log(), concentration * alpha)
    return torch.cat([density, _answer_log_prob(logits, final)], dim=-1)


def clipped_objective(
    new: torch.Tensor, old: torch.Tensor, ref: torch.Tensor, rewards: torch.Tensor, clip: float, kl_weight: float
) -> torch.Tensor:
    """Return the GRPO loss from log-probabilities (..., n_rollouts, steps) and rewards (..., n_rollouts)."""
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    spread = centred.square().mean(dim=-1, keepdim=True).sqrt()
    advantages = (centred / spread.clamp(min=1e-12))[..., None].to(new.dtype)
    ratio = (new - old).clamp(max=MAX_LOG_RATIO).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    loss = -gain.mean()
    if not kl_weight:
        return loss
    log_ratio = (ref - new).clamp(max=MAX_LOG_RATIO)
    return loss + kl_weight * (torch.expm1(log_ratio) - log_ratio).mean()


def dirichlet_log_ratio(x: Any, alpha_new: Any, alpha_old: Any, concentration: float) -> Any:
    """Return log Dir(x; concentration alpha_new) - log Dir(x; concentration alpha_old).

    Parameters
    ----------
    x : array or tensor of shape (..., n_tokens)
        Points of the simplex, positive, at least one.
    alpha_new, alpha_old : array or tensor of shape (..., n_tokens)
        Means of the two densities, positive, summing to one; leading axes broadcast against those of `x`.
    concentration : float
        Sum of the Dirichlet parameters, > 0.

    Returns
    -------
    array, or tensor when `x` or a mean is one, of shape (...)
        In nats, float64.

    Raises
    ------
    TypeError, ValueError
        For points and means that are not positive or do not sum to one, or whose axes do not broadcast.

    Notes
    -----
    The original code restricts both densities to tokens that are probable at the moment, and fixes the concentration
    to 1; its KL term mixes densities and probabilities. Here the densities are over the whole simplex.
    """
    scale = check_real("concentration", concentration, minimum=0.0, exclusive=True)
    checked = []
    for name, value in (("x", x), ("alpha_new", alpha_new), ("alpha_old", alpha_old)):
        given = check_floats(name, value)
        if not given.numel():
            raise ValueError(f"{name} must hold at least one point, got shape {tuple(given.shape)}")
        checked.append(check_simplex(name, given, [None] * max(given.ndim, 1)).double())
        if not (checked[-1] > 0).all():
            raise ValueError(f"{name} must be > 0, got {float(checked[-1].min()):.6g}: the density is 0 or infinite")
    points, new, old = checked
    for name, mean in (("alpha_new", new), ("alpha_old", old)):
        if mean.shape[-1] != points.shape[-1] or not _broadcast(mean.shape, points.shape):
            raise ValueError(f"{name} must broadcast against x, {tuple(points.shape)}, got {tuple(mean.shape)}")
    log_x = points.log()
    found = _dirichlet_log_density(log_x, scale * new) - _dirichlet_log_density(log_x, scale * old)
    if not torch.isfinite(found).all():
        raise ValueError(f"concentration must leave densities within float64, got {concentration}")
    return found if any(isinstance(value, torch.Tensor) for value in (x, alpha_new, alpha_old)) else found.numpy()


def answer_reward(answers: Any) -> Reward:
    """Return the reward 1 for the right final token and 0 for any other.

    Parameters
    ----------
    answers : int array or tensor of shape (n_prompts,)
        Right tokens.

    Returns
    -------
    callable
        ``reward(rows, tokens, final)`` for rollouts: the prompt's row (n,), tokens (n, steps - 1, k), final (n,).
    """
    right = torch.as_tensor(check_array("answers", answers, shape=(None,), dtype=np.int64))

    def reward(rows: torch.Tensor, tokens: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
        return (final == right.to(final.device)[rows]).double()

    return reward


def process_reward(targets: Any, weight: float = 0.5) -> Reward:
    """Return the reward of the right answer, plus `weight` times the share of the thoughts that lies on a trace.

    Parameters
    ----------
    targets : array or tensor of shape (n_prompts, steps, n_tokens)
        Superposed traces; the last step's most probable token is the answer.
    weight : float
        Of the thoughts against the answer.

    Returns
    -------
    callable
        As of `answer_reward`.
    """
    aims = check_targets(targets, "n_prompts", "n_tokens")
    check_real("weight", weight, minimum=0.0)
    right = answer_reward(aims[:, -1].argmax(dim=-1))

    def reward(rows: torch.Tensor, tokens: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
        possible = (aims.to(final.device)[rows, :-1] > 0).double()
        if tokens.is_floating_point():  # points of the simplex
            shares = (possible * tokens).sum(dim=-1)
        else:
            shares = possible.gather(-1, tokens).mean(dim=-1)
        return right(rows, tokens, final) + weight * shares.sum(dim=-1) / max(shares.shape[-1], 1)

    return reward


def pass_at_k(correct: Any, ks: Sequence[int]) -> np.ndarray:
    """Return the probability that one of k answers drawn per prompt is right, without bias.

    Parameters
    ----------
    correct : bool array or tensor of shape (n_prompts, n_samples)
        Which of the sampled answers are right.
    ks : sequence of int
        At least one, each in 1 … n_samples.

    Returns
    -------
    float64 array of shape (len(ks),)
        Mean over prompts of 1 - C(n - c, k) / C(n, k), with c right among n answers.

    Raises
    ------
    TypeError, ValueError
        For what is not 0 or 1, and k that are not whole or outside 1 … n_samples.

    Source: Chen and others, Evaluating Large Language Models Trained on Code, 2021.
    """
    right = check_array("correct", correct, shape=("n_prompts", "n_samples"))
    if not right.size or not np.isin(right, (0, 1)).all():
        raise ValueError(f"correct must hold 0 and 1 of at least one answer, got shape {right.shape}")
    n = right.shape[1]
    counts = right.sum(axis=1).astype(int)
    if not check_array("ks", ks, shape=("n_ks",)).size:
        raise ValueError(f"ks must hold at least one integer, got {shorten(ks)}")
    sizes = [check_integer(f"ks[{i}]", k, minimum=1, maximum=n) for i, k in enumerate(ks)]
    missed = np.array([[math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)] for k in sizes])
    return 1 - missed[:, counts].mean(axis=1)


def _answer_log_prob(logits: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """Return the log-probability (..., 1) of answers (...) under the last of logits (..., steps, n_tokens)."""
    return wide(logits[..., -1, :]).log_softmax(dim=-1).gather(-1, final[..., None])


def _dirichlet_log_density(log_x: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Return log-densities (...) at points, given by their logarithms (..., n_tokens), as the parameters are."""
    kernel = ((parameters - 1) * log_x).sum(dim=-1)
    return kernel + parameters.sum(dim=-1).lgamma() - parameters.lgamma().sum(dim=-1)


def _broadcast(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether arrays of two shapes can be combined."""
    try:
        np.broadcast_shapes(tuple(a), tuple(b))
    except ValueError:
        return False
    return True
