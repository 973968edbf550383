"""Re-measure the claims of the card: exact weights, sampled thoughts, and small models that add up signed digits."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from natwise.core.random import Streams
from natwise.core.validation import check_option
from natwise.lm.continuous_cot import GRPO, ContinuousCoT, answer_reward, mnns_dataset, subset_sum_transformer
from natwise.lm.continuous_cot._runs import (
    LENGTH,
    PASS_KS,
    Network,
    constant_accuracy,
    decodings,
    discrete_pass_at_k,
    task,
    train,
    trained,
)
from natwise.result import Result, provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KIND = "lm.continuous_cot"
SCALES = ("ci", "small", "paper")
TOKENS = (1, 2, 4, 16)
N_CHAINS = 20_000
COLOURS = {"cot2": "#0072b2", "discrete": "#d55e00", "no_cot": "#555555", "coconut": "#009e73"}
Found = tuple[dict[str, Any], dict[str, float], dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """Sizes of one scale: seeds of the main comparison, and of all else; steps of a training; widths beside 32."""

    seeds: int
    other_seeds: int
    steps: int
    batch_size: int
    widths: tuple[int, ...]
    width_steps: int
    budgets: tuple[int, ...]


SETTINGS = {
    "ci": Setting(1, 1, 1000, 256, (), 0, ()),
    "small": Setting(2, 1, 1000, 256, (16,), 4000, (1, 4, 8, 16)),
    "paper": Setting(5, 5, 20_000, 1024, (16, 24, 32), 20_000, (1, 2, 4, 8, 16)),
}


def run(
    claim: str, *, scale: str, seed: int, data_dir: str | os.PathLike[str] | None = None, device: str = "cpu"
) -> Result:
    """Measure one claim of the card; the scalars hold its metric and what every baseline reaches.

    Parameters
    ----------
    claim : str
        Its id on the card.
    scale : {"ci", "small", "paper"}
    seed : int
        Seeds weights, batches and samples; the split of the digits is the same for all.
    data_dir : path, optional
        Not used: the data are made.
    device : str
        Where models are trained.
    """
    check_option("claim", claim, list(STUDIES))
    check_option("scale", scale, SCALES)
    with provenance(seed=seed, device=device) as record:
        arrays, scalars, params = STUDIES[claim](SETTINGS[scale], seed, device)
    params = {"scale": scale, **params}
    return Result(f"{KIND}/{claim}", arrays=arrays, scalars=scalars, params=params, provenance=record)


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    from matplotlib.figure import Figure

    check_option("claim", claim, list(STUDIES))
    canvas = Figure(figsize=(6.4, 4.0), layout="constrained")
    FIGURES[STUDIES[claim]](canvas.add_subplot(), result)
    return canvas


def _construction(setting: Setting, seed: int, device: str) -> Found:
    """Weights written down against the enumeration of all traces: (m=3, d<=5) whole, (m=4, d<=9) a sample."""
    rng = Streams.of(seed).numpy("construction")
    errors, right = [], []
    for length, high, count in ((3, 5, None), (4, 9, 938)):
        data = mnns_dataset(1, high, length)
        rows = np.arange(len(data.digits)) if count is None else rng.choice(len(data.digits), count, replace=False)
        found = subset_sum_transformer(length, high)(data.digits[rows])
        errors.append(np.abs(found - data.targets[rows]).max())
        right.append((found[:, -1].argmax(axis=1) + data.states[0] == data.answers[rows]).mean())
    example = subset_sum_transformer(4, 9)([[5, 3, 2, 4]])[0]
    scalars = {"largest_error": float(max(errors)), "answers_right": float(min(right))}
    return {"example": example, "sums": np.arange(-36, 37)}, scalars, {"digits": [5, 3, 2, 4]}


class ChainLM(torch.nn.Module):
    """A linear Markov chain as a language model: the next distribution is the fed one times a matrix; no memory."""

    def __init__(self, transition: np.ndarray, start: np.ndarray):
        super().__init__()
        n = len(transition)
        table = np.zeros((n + 1, n + 1))
        table[:n, :n], table[n, :n] = transition, start  # token n is the prompt
        self.transition = torch.from_numpy(table)
        self.embedding = torch.nn.Embedding.from_pretrained(torch.eye(n + 1, dtype=torch.float64))

    def get_input_embeddings(self) -> torch.nn.Embedding:
        """Return one-hot rows."""
        return self.embedding

    def forward(self, inputs_embeds: torch.Tensor) -> SimpleNamespace:
        """Return logits (n, positions, n_tokens)."""
        return SimpleNamespace(logits=(inputs_embeds @ self.transition).clamp(min=1e-300).log())


def chain_moments(transition: np.ndarray, start: np.ndarray, steps: int, n_tokens: int) -> tuple[np.ndarray, float]:
    """Return mean and trace of the covariance of the last distribution under multi-token sampling, exactly."""
    mean, covariance = start, np.zeros((len(start), len(start)))
    for _ in range(steps - 1):
        drawn = (np.diag(mean) - np.outer(mean, mean)) / n_tokens + (1 - 1 / n_tokens) * covariance
        mean, covariance = mean @ transition, transition.T @ drawn @ transition
    return mean, float(np.trace(covariance))


def sampled_traces(
    transition: np.ndarray, start: np.ndarray, n_tokens: int, seed: int, n: int = N_CHAINS
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Return mean and trace of the covariance over sampled rollouts."""
    cot = ContinuousCoT(ChainLM(transition, start))
    prompt = torch.full((n, 1), len(start))
    tokens, _ = cot.sample(prompt, LENGTH, n_tokens, seed)
    last = cot(prompt, tokens)[:, -1].softmax(dim=-1).numpy()[:, : len(start)]
    return last.mean(axis=0), float(last.var(axis=0).sum())


def _variance(setting: Setting, seed: int, device: str) -> Found:
    rng = Streams.of(seed).numpy("chain")
    transition, start = rng.dirichlet(np.full(6, 0.5), size=6), rng.dirichlet(np.full(6, 2.0))
    exact = np.array([chain_moments(transition, start, LENGTH, k)[1] for k in TOKENS])
    seeds = Streams.of(seed).child("rollouts")
    measured = np.array([sampled_traces(transition, start, k, seeds.seed(k))[1] for k in TOKENS])
    scalars = {
        "largest_relative_error": float(np.abs(measured / exact - 1).max()),
        "sixteen_times_ratio": float(16 * measured[-1] / measured[0]),
    }
    return {"n_tokens": np.array(TOKENS), "measured": measured, "exact": exact}, scalars, {"n_chains": N_CHAINS}


def _mnns(setting: Setting, seed: int, device: str) -> Found:
    """Continuous and discrete chains on the same steps and batches."""
    network = Network(steps=setting.steps, batch_size=setting.batch_size)
    curves: dict[str, list[np.ndarray]] = {"cot2": [], "discrete": []}
    passes = []
    for one in range(seed, seed + setting.seeds):
        for name, found in curves.items():
            steps, curve, cot = trained(network, name, None, one, device)
            found.append(curve)
        passes.append(discrete_pass_at_k(cot, one))
    arrays = {
        "steps": steps,
        "pass_at_k": np.array(passes),
        **{f"accuracy_{k}": np.array(v) for k, v in curves.items()},
    }
    last = {name: arrays[f"accuracy_{name}"][:, -1] for name in curves}
    scalars = {f"{name}_accuracy": float(values.mean()) for name, values in last.items()}
    scalars |= {f"{name}_accuracy_least": float(values.min()) for name, values in last.items()}
    scalars["cot2_minus_discrete"] = float((last["cot2"] - last["discrete"]).mean())
    scalars["cot2_minus_discrete_least"] = float((last["cot2"] - last["discrete"]).min())
    means = arrays["pass_at_k"].mean(axis=0)
    scalars |= {f"discrete_pass_at_{k}": float(value) for k, value in zip(PASS_KS, means, strict=True)}
    scalars["cot2_minus_pass_at_4"] = scalars["cot2_accuracy"] - scalars["discrete_pass_at_4"]
    scalars["constant_accuracy"] = constant_accuracy()
    return arrays, scalars, {"seeds": setting.seeds, **vars(network)}


def _baselines(setting: Setting, seed: int, device: str) -> Found:
    """No chain at all, and hidden states as thoughts, on as many steps."""
    network = Network(steps=setting.steps, batch_size=setting.batch_size)
    arrays: dict[str, Any] = {}
    for name in ("cot2", "discrete", "no_cot", "coconut"):
        runs = [trained(network, name, None, one, device) for one in range(seed, seed + setting.other_seeds)]
        arrays["steps"], arrays[f"accuracy_{name}"] = runs[0][0], np.array([one[1] for one in runs])
    scalars = {f"{key[9:]}_accuracy": float(v[:, -1].mean()) for key, v in arrays.items() if key != "steps"}
    scalars["constant_accuracy"] = constant_accuracy()
    for name in ("no_cot", "coconut"):
        scalars[f"cot2_minus_{name}"] = scalars["cot2_accuracy"] - scalars[f"{name}_accuracy"]
    return arrays, scalars, {"seeds": setting.other_seeds, **vars(network)}


def _budgets(setting: Setting, seed: int, device: str) -> Found:
    network = Network(steps=setting.steps, batch_size=setting.batch_size)
    seeds = range(seed, seed + setting.other_seeds)
    accuracy = np.array([[trained(network, "cot2", b, one, device)[1][-1] for b in setting.budgets] for one in seeds])
    scalars = {f"accuracy_b{b}": float(v) for b, v in zip(setting.budgets, accuracy.mean(axis=0), strict=True)}
    scalars["b16_minus_b1"] = scalars["accuracy_b16"] - scalars["accuracy_b1"]
    return {"budget": np.array(setting.budgets), "accuracy": accuracy}, scalars, vars(network)


def _widths(setting: Setting, seed: int, device: str) -> Found:
    """Narrower models, trained longer: the order of continuous and discrete chains may turn round."""
    arms = (("cot2", None), ("cot2", 8), ("discrete", None))
    accuracy = np.zeros((len(setting.widths), len(arms), setting.other_seeds))
    for i, width in enumerate(setting.widths):
        network = Network(width, steps=setting.width_steps, batch_size=setting.batch_size)
        for j, (name, budget) in enumerate(arms):
            for s in range(setting.other_seeds):
                accuracy[i, j, s] = trained(network, name, budget, seed + s, device)[1][-1]
    scalars: dict[str, float] = {}
    for width, (whole, half, discrete) in zip(setting.widths, accuracy.mean(axis=-1), strict=True):
        scalars |= {f"cot2_accuracy_{width}": whole, f"cot2_b8_accuracy_{width}": half}
        scalars |= {f"discrete_accuracy_{width}": discrete, f"cot2_minus_discrete_{width}": whole - discrete}
    return {"width": np.array(setting.widths), "accuracy": accuracy}, scalars, {"steps": setting.width_steps}


def _grpo(setting: Setting, seed: int, device: str) -> Found:
    """Rewards on sampled thoughts of a discrete model, beside as much further fine-tuning."""
    network = Network(layers=1, heads=1, steps=1500)
    data = task(None)
    start = trained(network, "discrete", None, seed, device)[2]
    prompt, reward = data.prompts(data.train), answer_reward(data.answer_tokens[data.train])
    scalars = {f"{name}_before": value for name, value in decodings(start, seed).items()}
    rewards = {}
    for k in (1, 3):
        cot = copy.deepcopy(start)
        rewards[f"reward_k{k}"] = GRPO(steps=LENGTH, n_tokens=k, random_state=seed).fit(cot, prompt, reward)
        scalars |= {f"{name}_grpo_k{k}": value for name, value in decodings(cot, seed).items()}
    control = copy.deepcopy(start)
    train(control, Network(layers=1, heads=1, steps=600, learning_rate=3e-4), "discrete", data, seed)
    scalars |= {f"{name}_control": value for name, value in decodings(control, seed).items()}
    for k in (1, 3):
        scalars[f"lift_k{k}"] = scalars[f"mts_k{k}_grpo_k{k}"] - scalars[f"mts_k{k}_before"]
        scalars[f"lift_over_control_k{k}"] = scalars[f"mts_k{k}_grpo_k{k}"] - scalars[f"mts_k{k}_control"]
    return rewards, scalars, {"updates": 600, "prompts": 32, "rollouts": 8, **vars(network)}


STUDIES: dict[str, Callable[[Setting, int, str], Found]] = {
    "construction-error": _construction,
    "construction-answers": _construction,
    "mts-variance": _variance,
    "mnns-accuracy": _mnns,
    "mnns-gap": _mnns,
    "pass-at-k": _mnns,
    "baselines": _baselines,
    "budgets": _budgets,
    "narrow": _widths,
    "grpo": _grpo,
    "grpo-control": _grpo,
}


def _draw_construction(axes: Any, result: Result) -> None:
    sums, alpha = result.arrays["sums"], result.arrays["example"]
    image = axes.imshow(alpha, aspect="auto", cmap="viridis", extent=(sums[0] - 0.5, sums[-1] + 0.5, LENGTH + 0.5, 0.5))
    axes.figure.colorbar(image, ax=axes, label="probability")
    axes.set(
        xlabel="sum",
        ylabel="step",
        yticks=range(1, LENGTH + 1),
        title="digits 5 3 2 4: all signs at once",
        xlim=(-16, 16),
    )


def _draw_variance(axes: Any, result: Result) -> None:
    k = result.arrays["n_tokens"]
    axes.loglog(k, result.arrays["exact"], "-", color=COLOURS["cot2"], label="exact")
    axes.loglog(k, result.arrays["measured"], "o", color=COLOURS["discrete"], label="sampled")
    axes.loglog(k, result.arrays["exact"][0] / k, ":", color="#555555", label="1 / K")
    axes.set(xlabel="tokens per thought K", ylabel="trace of the covariance", xticks=k, xticklabels=k)
    axes.legend()


def _draw_curves(axes: Any, result: Result) -> None:
    labels = {"cot2": "continuous (CoT2)", "discrete": "discrete", "no_cot": "no chain", "coconut": "hidden states"}
    for name, label in labels.items():
        if (key := f"accuracy_{name}") in result.arrays:
            curves = result.arrays[key]
            axes.plot(result.arrays["steps"], curves.mean(axis=0), label=label, color=COLOURS[name])
            axes.fill_between(
                result.arrays["steps"], curves.min(axis=0), curves.max(axis=0), alpha=0.2, color=COLOURS[name]
            )
    for k, style in ((1, ":"), (16, "--")) if "pass_at_k" in result.arrays else ():
        value = result.scalars[f"discrete_pass_at_{k}"]
        axes.axhline(value, ls=style, lw=1, color=COLOURS["discrete"], label=f"discrete, one of {k} sampled")
    axes.set(xlabel="training step", ylabel="share of right answers (validation)", ylim=(0, 1.02))
    axes.legend(loc="lower right")


def _draw_budgets(axes: Any, result: Result) -> None:
    budgets, accuracy = result.arrays["budget"], result.arrays["accuracy"]
    axes.plot(budgets, accuracy.mean(axis=0), "o-", color=COLOURS["cot2"])
    axes.set_xscale("log", base=2)
    axes.set(xlabel="traces in the targets B", ylabel="share of right answers (validation)", ylim=(0, 1.02))
    axes.set_xticks(budgets, labels=[str(b) for b in budgets])


def _draw_widths(axes: Any, result: Result) -> None:
    means = result.arrays["accuracy"].mean(axis=-1)
    places = np.arange(len(means))
    for j, (label, colour) in enumerate(
        (("CoT2, 16 traces", "#0072b2"), ("CoT2, 8 traces", "#56b4e9"), ("discrete", "#d55e00"))
    ):
        axes.bar(places + 0.25 * (j - 1), means[:, j], 0.25, label=label, color=colour)
    axes.set_xticks(places, labels=[f"width {w}" for w in result.arrays["width"]])
    axes.set(ylabel="share of right answers (validation)", ylim=(0, 1.02))
    axes.legend()


def _draw_grpo(axes: Any, result: Result) -> None:
    groups = {"before": "before", "control": "fine-tuned on", "grpo_k1": "GRPO, K = 1", "grpo_k3": "GRPO, K = 3"}
    decodings = {
        "greedy": "greedy discrete",
        "mts_k1": "sampled, K = 1",
        "mts_k3": "sampled, K = 3",
        "base": "continuous",
    }
    for j, (name, label) in enumerate(decodings.items()):
        values = [result.scalars[f"{name}_{group}"] for group in groups]
        axes.bar(np.arange(len(groups)) + 0.2 * (j - 1.5), values, 0.2, label=label)
    axes.set_xticks(range(len(groups)), labels=list(groups.values()))
    axes.set(ylabel="share of right answers (validation)", ylim=(0, 1.02), xlabel="training")
    axes.legend(title="decoding", ncols=2, loc="upper left", fontsize=8)


FIGURES: dict[Any, Callable[[Any, Result], None]] = {
    _construction: _draw_construction,
    _variance: _draw_variance,
    _mnns: _draw_curves,
    _baselines: _draw_curves,
    _budgets: _draw_budgets,
    _widths: _draw_widths,
    _grpo: _draw_grpo,
}
