"""GRPO on continuous thoughts: all rollouts of a batch of prompts are drawn at once, then one update is made."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from natwise.core.random import RandomState, Streams
from natwise.core.training import Trainer
from natwise.core.validation import check_integer, check_option, check_real, shorten
from natwise.lm.continuous_cot._checks import check_floats
from natwise.lm.continuous_cot._distributions import evaluation
from natwise.lm.continuous_cot._model import ContinuousCoT, check_cot
from natwise.lm.continuous_cot._objectives import (
    LARGEST,
    NO_SPREAD,
    Reward,
    check_objective,
    clipped_objective,
    dirichlet_log_probs,
    token_log_probs,
)

POLICIES = ("tokens", "dirichlet")


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """How to train a policy of continuous thoughts by rewards; `fit` does it.

    Parameters
    ----------
    steps : int
        Number of outputs, the answer among them.
    policy : {"tokens", "dirichlet"}
        Thoughts are means of `n_tokens` drawn tokens, or points of a Dirichlet distribution.
    n_tokens : int
        Tokens per thought.
    concentration : float
        Sum of the Dirichlet parameters.
    n_rollouts : int
        Rollouts per prompt: a group.
    batch_size : int
        Prompts per update.
    max_iter : int
        Updates.
    learning_rate : float
        Of AdamW.
    clip, kl_weight, ratio
        See `grpo_loss`. There is one update per batch of rollouts, as in the original code: ratios are 1 when it is
        made and the clip does not act; it does in a loop of your own that makes several. The reference is the
        model as it came.
    random_state : int, Generator, RandomState, Streams or None
        Chooses prompts and draws thoughts.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Notes
    -----
    Policy, old policy and reference all run in evaluation mode. In the original code the policy alone has dropout,
    so that its ratios differ from 1 before any update.
    """

    steps: int
    policy: str = "tokens"
    n_tokens: int = 3
    concentration: float = 20.0
    n_rollouts: int = 8
    batch_size: int = 32
    max_iter: int = 600
    learning_rate: float = 3e-4
    clip: float = 0.1
    kl_weight: float = 0.0
    ratio: str = "geometric"
    random_state: RandomState = None
    verbose: int = 0

    def fit(self, cot: ContinuousCoT, prompt: Any, reward: Reward, *, mask: Any = None) -> np.ndarray:
        """Train the model of `cot` in place.

        Parameters
        ----------
        cot : ContinuousCoT
        prompt : int array or tensor of shape (n_prompts, length)
            Tokens; rows are drawn with equal probability.
        reward : callable
            ``reward(rows, tokens, final)`` gives a tensor (n,) for n rollouts: see `answer_reward`.
        mask : array or tensor of shape (n_prompts, length), optional
            See `ContinuousCoT.forward`.

        Returns
        -------
        float64 array of shape (max_iter,)
            Mean reward of the rollouts of each update.

        Warns
        -----
        ConvergenceWarning
            When no group ever had rewards that differ: nothing was learned.
        """
        self._check(cot, reward)
        rollouts = _Rollouts(self, cot, prompt, mask, reward)
        trainer = Trainer(
            max_epochs=1, steps_per_epoch=self.max_iter, batch_size=self.batch_size, learning_rate=self.learning_rate,
            optimizer=torch.optim.AdamW, device=rollouts.device, verbose=self.verbose,
            random_state=Streams.of(self.random_state).seed("grpo"),
        )  # fmt: skip
        trainer.fit(cot, rollouts.loss, rollouts.draw)
        if not rollouts.spread:
            warnings.warn(NO_SPREAD, ConvergenceWarning, stacklevel=2)
        return np.array(rollouts.rewards)

    def _check(self, cot: Any, reward: Any) -> None:
        """Refuse wrong options."""
        check_cot(cot)
        if not callable(reward):
            raise TypeError(f"reward must be callable, got {shorten(reward)}")
        check_option("policy", self.policy, POLICIES)
        check_objective(self.clip, self.kl_weight, self.ratio)
        for name, least in (("steps", 1), ("n_tokens", 1), ("n_rollouts", 2), ("batch_size", 1), ("max_iter", 1)):
            check_integer(name, getattr(self, name), minimum=least)
        for name in ("concentration", "learning_rate"):
            check_real(name, getattr(self, name), minimum=0.0, maximum=LARGEST, exclusive=True)


class _Rollouts:
    """Draws batches of rollouts from the policy as it stands, and scores the policy on them."""

    def __init__(self, options: GRPO, cot: ContinuousCoT, prompt: Any, mask: Any, reward: Reward):
        self.options, self.cot, self.reward = options, cot, reward
        self.device = cot.device
        self.prompt, self.mask = cot.check_prompt(prompt, mask)
        self.reference = copy.deepcopy(cot).eval() if options.kl_weight else None
        self.rewards: list[float] = []
        self.spread = False

    def draw(self, batch_size: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        """Return rows of prompts and their rollouts, each with leading axes (batch_size, n_rollouts)."""
        options = self.options
        rows = torch.as_tensor(rng.integers(len(self.prompt), size=batch_size), device=self.device)
        rows = rows.repeat_interleave(options.n_rollouts)
        prompt, mask = self.prompt[rows], None if self.mask is None else self.mask[rows]
        if options.policy == "tokens":
            thoughts, final = self.cot.sample(
                prompt, options.steps, options.n_tokens, rng, ratio=options.ratio, mask=mask
            )  # fmt: skip
        else:
            thoughts, final = self.cot.sample_dirichlet(prompt, options.steps, options.concentration, rng, mask=mask)
        given = self.reward(rows, thoughts, final)
        rewards = check_floats("what reward returns", given, tuple(final.shape), self.device).double()
        self.rewards.append(float(rewards.mean()))
        drawn = (rows, thoughts, final, rewards)
        grouped = tuple(part.unflatten(0, (batch_size, options.n_rollouts)) for part in drawn)
        self.spread |= bool((grouped[-1] != grouped[-1][:, :1]).any())
        return grouped

    def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, ...], step: int) -> torch.Tensor:
        """Return the GRPO loss () of the model on rollouts (`draw`) that it has just drawn."""
        rewards = batch[-1]
        with evaluation(model):
            new = self._log_probs(model, batch)
        old = new.detach()
        ref = old
        if self.reference is not None:
            with torch.no_grad():
                ref = self._log_probs(self.reference, batch)
        return clipped_objective(new, old, ref, rewards, self.options.clip, self.options.kl_weight)

    def _log_probs(self, model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the log-density of every step of a batch that was drawn, (batch_size, n_rollouts, steps)."""
        rows, thoughts, final, _ = (part.flatten(0, 1) for part in batch)
        logits = model(self.prompt[rows], thoughts, None if self.mask is None else self.mask[rows])
        if self.options.policy == "tokens":
            log_p = token_log_probs(logits, thoughts, final, self.options.ratio)
        else:
            log_p = dirichlet_log_probs(logits, thoughts, final, self.options.concentration)
        return log_p.unflatten(0, batch[-1].shape)
