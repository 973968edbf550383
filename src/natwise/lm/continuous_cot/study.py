"""Re-measure the claims of the card: exact weights, sampled thoughts, and small models that add up signed digits."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from natwise.lm.continuous_cot import (
    GRPO,
    ContinuousCoT,
    _pictures,
    answer_reward,
    mnns_dataset,
    prosqa_graphs,
    subset_sum_transformer,
)
from natwise.lm.continuous_cot._runs import (
    LENGTH,
    PASS_KS,
    Network,
    constant_accuracy,
    decodings,
    discrete_pass_at_k,
    fit,
    fresh,
    task,
    train,
    trained,
)
from natwise.result import Result
from natwise.study import Found, Setting, Study, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKENS = (1, 2, 4, 16)
N_CHAINS = 20_000
GRAPHS: dict[str, Any] = {"n_nodes": 8, "n_edges": 9, "hops": (2, 3)}
N_GRAPHS = (12_000, 1000)  # to train on, held back


@dataclass(frozen=True)
class Sizes:
    """How much is trained at one scale.

    `seeds` trainings of `steps` steps for the main comparison, the first `other_seeds` of them on to `horizon`, where
    the learning rate reaches 0, and as many of all else; `widths` beside 32, trained for `width_steps`; questions
    about graphs for `graph_steps`.
    """

    seeds: int
    other_seeds: int
    steps: int
    horizon: int
    batch_size: int
    widths: tuple[int, ...]
    width_steps: int
    budgets: tuple[int, ...]
    graph_steps: int


SIZES = {
    "ci": Sizes(1, 0, 1000, 4000, 256, (), 0, (), 0),
    "small": Sizes(3, 1, 1000, 4000, 256, (16,), 5000, (1, 4, 8, 16), 2000),
    "paper": Sizes(5, 5, 20_000, 20_000, 1024, (16, 24, 32), 20_000, (1, 2, 4, 8, 16), 20_000),
}


def _construction(setting: Setting) -> Found:
    """Weights written down against the enumeration of all traces: (m=3, d<=5) whole, (m=4, d<=9) a sample."""
    rng = setting.streams.numpy("construction")
    errors, right = [], []
    for length, high, count in ((3, 5, None), (4, 9, 938)):
        data = mnns_dataset(1, high, length)
        rows = np.arange(len(data.digits)) if count is None else rng.choice(len(data.digits), count, replace=False)
        found = subset_sum_transformer(length, high)(data.digits[rows])
        errors.append(np.abs(found - data.targets[rows]).max())
        right.append((found[:, -1].argmax(axis=1) + data.states[0] == data.answers[rows]).mean())
    example = subset_sum_transformer(4, 9)([[5, 3, 2, 4]])[0]
    scalars = {"largest_error": float(max(errors)), "answers_right": float(min(right))}
    return Found({"example": example, "sums": np.arange(-36, 37)}, scalars, {"digits": [5, 3, 2, 4]})


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
    """Return mean (n,) and trace of the covariance of the last distribution under multi-token sampling, exactly.

    The chain has the transition matrix (n, n) and starts at the distribution (n,).
    """
    mean, covariance = start, np.zeros((len(start), len(start)))
    for _ in range(steps - 1):
        drawn = (np.diag(mean) - np.outer(mean, mean)) / n_tokens + (1 - 1 / n_tokens) * covariance
        mean, covariance = mean @ transition, transition.T @ drawn @ transition
    return mean, float(np.trace(covariance))


def sampled_traces(
    transition: np.ndarray, start: np.ndarray, n_tokens: int, seed: int, n: int = N_CHAINS
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Return mean (n,) and trace of the covariance over sampled rollouts of the chain: see `chain_moments`."""
    cot = ContinuousCoT(ChainLM(transition, start))
    prompt = torch.full((n, 1), len(start))
    tokens, _ = cot.sample(prompt, LENGTH, n_tokens, seed)
    last = cot(prompt, tokens)[:, -1].softmax(dim=-1).numpy()[:, : len(start)]
    return last.mean(axis=0), float(last.var(axis=0).sum())


def _variance(setting: Setting) -> Found:
    """Compare the spread of sampled thoughts of a linear chain with the exact one."""
    rng = setting.streams.numpy("chain")
    transition, start = rng.dirichlet(np.full(6, 0.5), size=6), rng.dirichlet(np.full(6, 2.0))
    exact = np.array([chain_moments(transition, start, LENGTH, k)[1] for k in TOKENS])
    seeds = setting.streams.child("rollouts")
    measured = np.array([sampled_traces(transition, start, k, seeds.seed(k))[1] for k in TOKENS])
    scalars = {
        "largest_relative_error": float(np.abs(measured / exact - 1).max()),
        "sixteen_times_ratio": float(16 * measured[-1] / measured[0]),
    }
    arrays = {"n_tokens": np.array(TOKENS), "measured": measured, "exact": exact}
    return Found(arrays, scalars, {"n_chains": N_CHAINS})


def _mnns(setting: Setting) -> Found:
    """Continuous and discrete chains on the same steps and batches."""
    sizes = SIZES[setting.scale]
    arrays = _main_curves(setting, ("cot2", "discrete"), sizes.seeds)
    last = {name: arrays[f"accuracy_{name}"][:, -1] for name in ("cot2", "discrete")}
    last["cot2_minus_discrete"] = last["cot2"] - last["discrete"]
    scalars = {"constant_accuracy": constant_accuracy()}
    for name, values in last.items():
        name = name if "minus" in name else f"{name}_accuracy"
        scalars |= {name: float(values.mean()), f"{name}_least": float(values.min())}
        if len(values) > 1:  # half a 95 % interval over seeds
            scalars[f"{name}_plus_minus"] = mean_interval(values)[1]
    return Found(arrays, scalars, {"seeds": sizes.seeds, **vars(_main_network(sizes))})


def _longer(setting: Setting) -> Found:
    """Take the first of these runs on until the learning rate is 0; sample the discrete chain beside them."""
    sizes = SIZES[setting.scale]
    arrays: dict[str, Any] = {}
    for name in ("cot2", "discrete"):
        runs = [_main_run(setting, name, index) for index in range(sizes.other_seeds)]
        arrays["steps"], arrays[f"accuracy_{name}"] = runs[0][0], np.array([curve for _, curve, _ in runs])
    samples = [discrete_pass_at_k(cot, setting.seed + index) for index, (*_, cot) in enumerate(runs)]
    arrays["pass_at_k"] = np.array(samples)
    scalars = _last_accuracies(arrays, "discrete")
    for k, value in zip(PASS_KS, arrays["pass_at_k"].mean(axis=0), strict=True):
        scalars |= {f"discrete_pass_at_{k}": float(value), f"cot2_minus_pass_at_{k}": scalars["cot2_accuracy"] - value}
    return Found(arrays, scalars, {"seeds": sizes.other_seeds, **vars(_main_network(sizes))})


def _baselines(setting: Setting) -> Found:
    """No chain at all, and hidden states as thoughts, on as many steps."""
    sizes = SIZES[setting.scale]
    network = _main_network(sizes)
    arrays = _main_curves(setting, ("cot2", "discrete"), sizes.other_seeds)
    for name in ("no_cot", "coconut"):
        arrays[f"accuracy_{name}"] = _curves(setting, network, name)[1]
    scalars = {**_last_accuracies(arrays, "no_cot", "coconut"), "constant_accuracy": constant_accuracy()}
    return Found(arrays, scalars, {"seeds": sizes.other_seeds, **vars(network)})


def _budgets(setting: Setting) -> Found:
    """Targets of the best traces alone, of several numbers of them."""
    sizes = SIZES[setting.scale]
    network = _main_network(sizes)
    accuracy = np.zeros((sizes.other_seeds, len(sizes.budgets)))
    for j, budget in enumerate(sizes.budgets):
        if budget == 2**LENGTH:
            curves = _main_curves(setting, ("cot2",), sizes.other_seeds)["accuracy_cot2"]
        else:
            curves = _curves(setting, network, "cot2", budget)[1]
        accuracy[:, j] = curves[:, -1]
    scalars = {f"accuracy_b{b}": float(v) for b, v in zip(sizes.budgets, accuracy.mean(axis=0), strict=True)}
    scalars["b16_minus_b1"] = scalars["accuracy_b16"] - scalars["accuracy_b1"]
    return Found({"budget": np.array(sizes.budgets), "accuracy": accuracy}, scalars, vars(network))


def _widths(setting: Setting) -> Found:
    """Narrower models, trained longer: the order of continuous and discrete chains may turn round."""
    sizes = SIZES[setting.scale]
    found: dict[str, list[np.ndarray]] = {"cot2": [], "discrete": []}
    steps = sizes.width_steps
    for width in sizes.widths:
        network = Network(width, steps=steps, horizon=steps, batch_size=sizes.batch_size)
        for name, curves in found.items():
            marks, accuracy = _curves(setting, network, name)
            curves.append(accuracy)
    arrays = {f"accuracy_{name}": np.array(curves) for name, curves in found.items()}  # (widths, seeds, marks)
    scalars: dict[str, float] = {}
    for i, width in enumerate(sizes.widths):
        last = {name: float(arrays[f"accuracy_{name}"][i, :, -1].mean()) for name in found}
        scalars |= {f"{name}_accuracy_{width}": value for name, value in last.items()}
        scalars[f"cot2_minus_discrete_{width}"] = last["cot2"] - last["discrete"]
    arrays |= {"width": np.array(sizes.widths), "steps": marks}
    return Found(arrays, scalars, {"seeds": sizes.other_seeds, "steps": steps})


def _main_network(sizes: Sizes) -> Network:
    """Return the network of the main comparison and its training, as far as all arms are compared."""
    return Network(steps=sizes.steps, horizon=sizes.horizon, batch_size=sizes.batch_size)


def _main_run(setting: Setting, name: str, index: int) -> tuple[np.ndarray, np.ndarray, ContinuousCoT]:
    """Return steps, accuracy and model of one training of the main comparison, which goes on when it is read later."""
    sizes = SIZES[setting.scale]
    network = _main_network(sizes)
    if index < sizes.other_seeds:
        network = replace(network, steps=sizes.horizon)
    return trained(network, name, None, setting.seed + index, setting.device)


def _main_curves(setting: Setting, names: Iterable[str], count: int) -> dict[str, np.ndarray]:
    """Return steps and accuracies (count, n_marks) of `count` trainings, as far as all of them are compared."""
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        runs = [_main_run(setting, name, index) for index in range(count)]
        marks = runs[0][0][runs[0][0] <= SIZES[setting.scale].steps]
        arrays |= {"steps": marks, f"accuracy_{name}": np.array([curve[: len(marks)] for _, curve, _ in runs])}
    return arrays


def _curves(
    setting: Setting, network: Network, name: str, budget: int | None = None
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return steps and accuracies (seeds, n_marks) of trainings beside the main comparison."""
    seeds = range(setting.seed, setting.seed + SIZES[setting.scale].other_seeds)
    runs = [trained(network, name, budget, seed, setting.device) for seed in seeds]
    return runs[0][0], np.array([curve for _, curve, _ in runs])


def _last_accuracies(arrays: Mapping[str, np.ndarray], *others: str) -> dict[str, float]:
    """Return the mean last accuracy of every arm (seeds, evaluations), and what continuous chains gain on `others`."""
    last = {name.removeprefix("accuracy_"): curves[:, -1] for name, curves in arrays.items() if "accuracy_" in name}
    scalars = {f"{name}_accuracy": float(values.mean()) for name, values in last.items()}
    for name in others:
        scalars[f"cot2_minus_{name}"] = scalars["cot2_accuracy"] - scalars[f"{name}_accuracy"]
    return scalars


@functools.lru_cache(maxsize=1)  # two claims read it
def _grpo(setting: Setting) -> Found:
    """Rewards on sampled thoughts of a discrete model, beside as much further fine-tuning."""
    seed, network, data = setting.seed, Network(layers=1, heads=1, steps=1500, horizon=1500), task(None)
    start = trained(network, "discrete", None, seed, setting.device)[2]
    prompt, reward = data.prompts(data.train), answer_reward(data.answer_tokens[data.train])
    scalars = {f"{name}_before": value for name, value in decodings(start, seed).items()}
    rewards = {}
    for k in (1, 3):
        cot = copy.deepcopy(start)
        rewards[f"reward_k{k}"] = GRPO(steps=LENGTH, n_tokens=k, random_state=seed).fit(cot, prompt, reward)
        scalars |= {f"{name}_grpo_k{k}": value for name, value in decodings(cot, seed).items()}
    control = copy.deepcopy(start)
    further = Network(layers=1, heads=1, steps=600, horizon=600, learning_rate=3e-4)
    train(control, further, "discrete", data, seed)
    scalars |= {f"{name}_control": value for name, value in decodings(control, seed).items()}
    for k in (1, 3):
        scalars[f"lift_k{k}"] = scalars[f"mts_k{k}_grpo_k{k}"] - scalars[f"mts_k{k}_before"]
        scalars[f"lift_over_control_k{k}"] = scalars[f"mts_k{k}_grpo_k{k}"] - scalars[f"mts_k{k}_control"]
    return Found(rewards, scalars, {"updates": 600, "prompts": 32, "rollouts": 8, **vars(network)})


def _graphs(setting: Setting) -> Found:
    """Which of two nodes can be reached: all nodes within reach as thoughts, a path as thoughts, no thoughts."""
    streams, seed = setting.streams.child("graphs"), setting.seed
    data, held_back = (prosqa_graphs(n, random_state=streams.child(n), **GRAPHS) for n in N_GRAPHS)
    prompts, asked, hops = data.prompts()[0], held_back.prompts()[0], GRAPHS["hops"][1]
    steps = SIZES[setting.scale].graph_steps
    network = Network(steps=steps, horizon=steps, batch_size=64, learning_rate=4e-3)
    arrays: dict[str, Any] = {}
    for name, thoughts, kind in (("cot2", hops, "within"), ("discrete", hops, "path"), ("no_cot", 1, "within")):
        cot = fresh(network, data.n_tokens, prompts.shape[1] + hops, seed, setting.device)
        score = functools.partial(_share_right, cot, asked, thoughts, name, held_back.answer_tokens)
        arrays["steps"], curve = fit(cot, network, prompts, data.token_targets(thoughts, kind=kind), seed, score)
        arrays[f"accuracy_{name}"] = curve[None]
    scalars = _last_accuracies(arrays, "discrete", "no_cot")
    return Found(arrays, scalars, {"questions": N_GRAPHS[0], **GRAPHS, **vars(network)})


def _share_right(cot: ContinuousCoT, prompts: torch.Tensor, steps: int, name: str, answers: np.ndarray) -> float:
    """Return the share of prompts (n, length) whose answers (n,) a chain finds in so many steps."""
    feedback = "token" if name == "discrete" else "distribution"
    return float((cot.generate(prompts, steps, feedback=feedback).answer.cpu().numpy() == answers).mean())


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "construction-error": _construction,
    "construction-answers": _construction,
    "mts-variance": _variance,
    "mnns-accuracy": _mnns,
    "mnns-gap": _mnns,
    "mnns-accuracy-of-a-seed": _mnns,
    "mnns-gap-of-a-seed": _mnns,
    "mnns-longer": _longer,
    "pass-at-k": _longer,
    "baselines": _baselines,
    "budgets": _budgets,
    "narrow": _widths,
    "grpo": _grpo,
    "grpo-control": _grpo,
    "graphs": _graphs,
}
STUDY = Study("lm.continuous_cot", MEASUREMENTS, scales=tuple(SIZES), gpu=True)
run = STUDY.run

DRAWINGS: dict[Any, Callable[[Any, Result], None]] = {
    _construction: _pictures.draw_construction,
    _variance: _pictures.draw_variance,
    _mnns: _pictures.draw_curves,
    _longer: _pictures.draw_curves,
    _baselines: _pictures.draw_curves,
    _budgets: _pictures.draw_budgets,
    _widths: _pictures.draw_widths,
    _grpo: _pictures.draw_grpo,
    _graphs: _pictures.draw_curves,
}


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6.4, 4.0), layout="constrained")
    DRAWINGS[MEASUREMENTS[claim]](canvas.add_subplot(), result)
    return canvas
