"""Small models of the minimum-non-negative-sum task: trained by every method alike, decoded in every way."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from natwise.core.random import Streams
from natwise.core.training import Trainer
from natwise.lm.continuous_cot._baselines import coconut_loss
from natwise.lm.continuous_cot._distributions import trace_loss
from natwise.lm.continuous_cot._mnns import MNNS, mnns_dataset
from natwise.lm.continuous_cot._model import ContinuousCoT
from natwise.lm.continuous_cot._objectives import pass_at_k

LENGTH = 4
PASS_KS = (1, 4, 8, 16)
WARM_UP = 100
MARKS = 40  # readings over the horizon


@dataclass(frozen=True)
class Network:
    """A GPT-2 without dropout and how it is trained: AdamW, warm-up, a cosine that would reach 0 at the horizon."""

    width: int = 32
    layers: int = 2
    heads: int = 2
    steps: int = 1000
    horizon: int = 4000
    batch_size: int = 256
    learning_rate: float = 3e-3

    def factor(self, step: int, n_steps: int) -> float:
        """Return the factor on the learning rate."""
        return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / self.horizon))


@functools.lru_cache(maxsize=8)
def task(budget: int | None) -> MNNS:
    """Return the sequences of four digits, with targets of the best `budget` traces."""
    return mnns_dataset(length=LENGTH, budget=budget)


@functools.lru_cache(maxsize=64)
def trained(
    network: Network, name: str, budget: int | None, seed: int, device: str
) -> tuple[np.ndarray, np.ndarray, ContinuousCoT]:  # fmt: skip
    """Train one model; several claims read the same runs. Returns steps, accuracy at each, and the model."""
    data = task(budget)
    cot = fresh(network, data.n_tokens, 3 * LENGTH, seed, device)
    steps, curve = train(cot, network, name, data, seed)
    return steps, curve, cot


def fresh(network: Network, n_tokens: int, n_positions: int, seed: int, device: str) -> ContinuousCoT:
    """Return an untrained model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=n_tokens, n_positions=n_positions, n_embd=network.width, n_layer=network.layers,
        n_head=network.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function as one operation
    )  # fmt: skip
    with Streams.of(seed).torch_global("weights"):
        return ContinuousCoT(GPT2LMHeadModel(config)).to(device)


def train(cot: ContinuousCoT, network: Network, name: str, data: MNNS, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train in place on sums; return steps and validation accuracy at each, by the decoding that is trained."""
    kind = {"cot2": "superposed", "no_cot": "answer"}.get(name, "trace")
    prompts = data.prompts(data.train, n_arrows=LENGTH if name == "no_cot" else 1)
    targets = data.token_targets(data.train, kind=kind)
    return fit(cot, network, prompts, targets, seed, lambda: accuracy(cot, name), coconut=name == "coconut")


def fit(
    cot: ContinuousCoT, network: Network, prompts: torch.Tensor, targets: torch.Tensor, seed: int,
    score: Callable[[], float], *, coconut: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Train in place on prompts (n, length) and targets (n, steps, n_tokens); return steps and the score at each."""
    marks = np.append(np.arange(0, network.steps, max(network.horizon // MARKS, 1)), network.steps)
    curve = []

    def draw(batch_size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(rng.choice(len(prompts), size=batch_size, replace=False))
        return prompts[rows], targets[rows]

    def loss(model: Any, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
        if step in marks:
            curve.append(score())
        if coconut:  # the last of four stages has as many steps as each before
            return coconut_loss(model, *batch, n_latent=min(LENGTH * step // network.steps, LENGTH - 1))
        return trace_loss(model(batch[0], batch[1][:, :-1]), batch[1])

    Trainer(
        max_epochs=1, steps_per_epoch=network.steps, batch_size=network.batch_size, learning_rate=network.learning_rate,
        optimizer=functools.partial(torch.optim.AdamW, fused=True), schedule=network.factor, device=cot.device,
        random_state=Streams.of(seed).seed("batches"),
    ).fit(cot, loss, draw)  # fmt: skip
    return marks, np.array([*curve, score()])


def accuracy(cot: ContinuousCoT, name: str) -> float:
    """Return the share of right answers on the validation sequences."""
    data = task(None)
    prompts = data.prompts(data.validation, n_arrows=LENGTH if name == "no_cot" else 1)
    feedback = {"discrete": "token", "coconut": "hidden"}.get(name, "distribution")
    answer = cot.generate(prompts, 1 if name == "no_cot" else LENGTH, feedback=feedback).answer
    return _share(answer, data)


def decodings(cot: ContinuousCoT, seed: int) -> dict[str, float]:
    """Return the share of right answers by greedy, continuous and sampled decoding."""
    data = task(None)
    prompts = data.prompts(data.validation)
    found = {"greedy": accuracy(cot, "discrete"), "base": accuracy(cot, "cot2")}
    for k in (1, 3):
        found[f"mts_k{k}"] = _share(cot.sample(prompts, LENGTH, k, Streams.of(seed).child("mts").child(k))[1], data)
    return found


def discrete_pass_at_k(cot: ContinuousCoT, seed: int) -> np.ndarray:
    """Return Pass@k of sampled discrete chains for every k of `PASS_KS`: shape (len(PASS_KS),)."""
    data = task(None)
    prompts = data.prompts(data.validation).repeat_interleave(max(PASS_KS), dim=0)
    final = cot.sample(prompts, LENGTH, 1, Streams.of(seed).child("pass"))[1].cpu().numpy()
    return pass_at_k(final.reshape(-1, max(PASS_KS)) == data.answer_tokens[data.validation][:, None], PASS_KS)


def _share(final: torch.Tensor, data: MNNS) -> float:
    """Return the share of right answers among those to the validation sequences, (n_validation,)."""
    return float((final.cpu().numpy() == data.answer_tokens[data.validation]).mean())


def constant_accuracy() -> float:
    """Return what always giving the training sequences' most frequent answer reaches."""
    data = task(None)
    return float((data.answers[data.validation] == np.bincount(data.answers[data.train]).argmax()).mean())
