"""The claims of mixtures of recursions, measured: quality at equal operations, the causal rule, costs and serving."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from natwise.core.random import Streams
from natwise.core.training import Trainer
from natwise.datasets import local
from natwise.datasets.language import N_BYTES, draw_windows, load_corpus, windows
from natwise.lm._study import byte_sizes
from natwise.lm.mixture_of_recursions._accounting import count_flops, kv_cache_bytes
from natwise.lm.mixture_of_recursions._serving import WAYS, serving_benchmark
from natwise.result import Result
from natwise.study import Found, Setting, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"vanilla": "#777777", "recursive": "#d55e00", "mor": "#0072b2", "mor_causal": "#56b4e9"}
BUDGET, TOKENS_PER_STEP, LONG = 16.5e18, 1024 * 2048, 2048
OFFICIAL_STEPS = {  # (recursions, layers, shared keys and values) -> steps in the published configurations
    (1, 32, False): 9438,
    (2, 32, False): 12619,
    (3, 32, False): 14161,
    (4, 34, False): 14216,
    (3, 32, True): 14672,
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks and of their training; `steps` are those of the plain recursive network."""

    corpus: str
    width: int
    heads: int
    layers: int
    context: int
    batch_size: int
    steps: int
    validation_windows: int


SHAKESPEARE = "text/tinyshakespeare.txt"
SIZES = {
    "ci": Sizes(SHAKESPEARE, 48, 4, 8, 64, 8, 90, 64),
    "small": Sizes(SHAKESPEARE, 64, 4, 8, 128, 12, 220, 128),
    "paper": Sizes("text/war_and_peace_first_two_thirds.txt", 512, 8, 14, 1024, 32, 1500, 64),
}
SERVING = {
    "ci": {"n_requests": 32, "new_tokens": 12, "repeats": 5},
    "small": {"n_requests": 64, "new_tokens": 16, "repeats": 5},
    "paper": {"n_requests": 2048, "new_tokens": 32, "repeats": 5, "n_slots": 256},
}
STEP_TIME = {"ci": (96, 11, 3, 2), "small": (192, 11, 5, 4), "paper": (512, 14, 20, 32)}  # width, layers, rounds, batch
WIDE = {  # a block as in Gemma, which needs a GPU; the vocabulary is of bytes: the paper too leaves out the head's time
    "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8, "num_key_value_heads": 1,
    "head_dim": 256, "num_hidden_layers": 18, "num_recursions": 2,
}  # fmt: skip


def _published_sizes(recursions: int, layers: int, shared: bool) -> Any:
    """Return the configuration of the published network with 360 million weights."""
    from natwise.lm.mixture_of_recursions import MoRConfig

    return MoRConfig(
        vocab_size=49152, hidden_size=960, intermediate_size=2560, num_attention_heads=15, num_key_value_heads=5,
        num_hidden_layers=layers, num_recursions=recursions, max_position_embeddings=LONG,
        kv="share" if shared else "cache", dtype="bfloat16",
    )  # fmt: skip


def _flops(setting: Setting) -> Found:
    """Compare operations with the steps that the published configurations took for one budget."""
    from natwise.lm.mixture_of_recursions import MoRForCausalLM

    exact, paper, steps, memory = [], [], [], []
    for sizes in OFFICIAL_STEPS:
        config = _published_sizes(*sizes)
        exact.append(count_flops(config, LONG))
        paper.append(count_flops(config, LONG, "paper"))
        steps.append(BUDGET / paper[-1] / TOKENS_PER_STEP)
        with torch.device("meta"):
            memory.append(kv_cache_bytes(MoRForCausalLM(config), LONG))
    official = np.array(list(OFFICIAL_STEPS.values()))
    arrays = {"exact": np.array(exact), "paper": np.array(paper), "steps": np.array(steps), "official_steps": official}
    scalars = {
        "largest_step_error": float(np.abs(arrays["steps"] - official).max()),
        "sharing_exact": exact[4] / exact[2],
        "sharing_paper": paper[4] / paper[2],
        "mor3_over_vanilla": exact[2] / exact[0],
        "cache_mor3_over_vanilla": memory[2] / memory[0],
        "cache_shared_over_vanilla": memory[4] / memory[0],
    }
    return Found(arrays, scalars, {"sequence_length": LONG})


def _calls(setting: Setting) -> Found:
    """Count the calls of a tiny network: they depend on the queue alone."""
    network = _network("mor", Sizes("", 32, 2, 8, 64, 0, 0, 0), setting)
    serving = {"n_slots": 8, "n_requests": 48, "new_tokens": 12, "repeats": 1}
    found = serving_benchmark(network, device=setting.device, random_state=setting.seed, **serving)
    share = found.scalars["calls_ratio"] / found.scalars["calls_limit"]
    return Found(found.arrays, {**found.scalars, "share_of_limit": share}, found.params)


def _serving(setting: Setting) -> Found:
    model = _wide_network(setting) if setting.scale == "paper" else None
    options = SERVING[setting.scale]
    found = serving_benchmark(model, device=setting.device, random_state=setting.seed, **options)
    return Found(found.arrays, found.scalars, found.params)


def _wide_network(setting: Setting) -> Any:
    """Return a network with random weights, made where it is to run."""
    from natwise.lm.mixture_of_recursions import MoRConfig, MoRForCausalLM

    config = MoRConfig(**WIDE, vocab_size=N_BYTES, sharing="cycle", max_position_embeddings=512)
    with torch.device(setting.device), setting.streams.torch_global("weights", setting.device):
        return MoRForCausalLM(config).to(torch.float32 if setting.device == "cpu" else torch.bfloat16)


def _step_time(setting: Setting) -> Found:
    """Time training steps of equal batches, in turn."""
    width, layers, rounds, batch = STEP_TIME[setting.scale]
    sizes = Sizes("", width, width // 32, layers, 512, batch, 0, 0)
    models = {name: _network(name, sizes, setting).train() for name in ("vanilla", "mor")}
    ids = torch.from_numpy(_streams(setting).numpy("ids").integers(N_BYTES, size=(batch, 512))).to(setting.device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    on_cpu = setting.device == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter  # the processor's time: others may run too
    for turn in range(rounds + 1):
        for name, model in models.items():
            model.zero_grad()
            begin = clock()
            model(input_ids=ids, labels=ids).loss.backward()
            if not on_cpu:
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                seconds[name].append(clock() - begin)
    arrays = {name: np.array(values) for name, values in seconds.items()}
    ratio = float(np.median(arrays["mor"] / arrays["vanilla"]))
    flops = count_flops(models["mor"], 512) / count_flops(models["vanilla"], 512)
    medians = {f"{name}_seconds": float(np.median(values)) for name, values in arrays.items()}
    scalars = {"step_time_ratio": ratio, "flops_ratio": flops, **medians}
    return Found(arrays, scalars, {"width": width, "layers": layers})


def _quality(setting: Setting) -> Found:
    """Return what `_compare` found; every claim that reads it notes the same text."""
    local.find(SIZES[setting.scale].corpus, setting.data_dir)
    return _compare(setting)


@functools.lru_cache(maxsize=1)
def _compare(setting: Setting) -> Found:
    """Train the networks of one seed with equal operations; two claims read the same runs."""
    from natwise.lm.mixture_of_recursions import router_diagnostics

    sizes = SIZES[setting.scale]
    corpus = load_corpus(sizes.corpus, setting.data_dir)
    held_out = _spread_windows(corpus.validation, sizes).to(setting.device)
    models = {name: _network(name, sizes, setting) for name in ("vanilla", "recursive", "mor")}
    flops = {name: count_flops(model, sizes.context) for name, model in models.items()}
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, float] = {}
    for name, model in models.items():
        steps = round(sizes.steps * flops["recursive"] / flops[name])
        arrays[f"loss_{name}"] = _train(model, corpus.train, steps, sizes, setting)
        scalars[f"{name}_steps"] = float(steps)
        if name != "mor":
            scalars[f"{name}_loss"] = _loss(model, held_out)
    scalars["mor_loss"] = _loss(models["mor"], held_out, selection="top_k")
    scalars["mor_causal_loss"] = _loss(models["mor"], held_out, selection="causal")
    health = router_diagnostics(models["mor"], held_out.split(32))
    arrays["active"] = health.arrays["active"]
    scalars |= {name: health.scalars[name] for name in ("sampling_accuracy", "dead")}
    scalars["recursive_minus_mor"] = scalars["recursive_loss"] - scalars["mor_causal_loss"]
    scalars["vanilla_minus_mor"] = scalars["vanilla_loss"] - scalars["mor_causal_loss"]
    scalars["causal_gap"] = abs(scalars["mor_causal_loss"] - scalars["mor_loss"])
    scalars["mor_over_recursive_flops"] = flops["mor"] / flops["recursive"]
    params = {"width": sizes.width, "context": sizes.context, "batch_size": sizes.batch_size}
    return Found(arrays, scalars, params)


def _network(name: str, sizes: Sizes, setting: Setting) -> Any:
    """Return a fresh network: unrolled layers of their own, shared ones, or shared and routed ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from natwise.lm.mixture_of_recursions import MoRConfig, MoRForCausalLM

    positions = max(sizes.context, 512)
    fields = byte_sizes(sizes.width, sizes.layers, sizes.heads, positions, tie_word_embeddings=False)
    with _streams(setting).torch_global("weights"):
        if name == "mor":
            model: Any = MoRForCausalLM(MoRConfig(**fields, num_recursions=3, sampling_coef=0.016))
        else:
            model = LlamaForCausalLM(LlamaConfig(**fields))
    if name == "recursive":
        _share(model.model.layers, 3)
    return model.to(setting.device)


def _streams(setting: Setting) -> Streams:
    return setting.streams.child("mixture_of_recursions")


def _share(layers: Any, n_loops: int) -> None:
    """Tie the layers between the first and the last in a cycle, in place."""
    length = (len(layers) - 2) // n_loops
    for depth in range(1 + length, len(layers) - 1):
        source = layers[1 + (depth - 1) % length]
        for name, parameter in source.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(layers[depth].get_submodule(owner), leaf, parameter)


def _train(model: Any, text: np.ndarray, steps: int, sizes: Sizes, setting: Setting) -> np.ndarray:
    """Train a network in place on a text (bytes,); return its training losses at ten times (10,)."""
    epochs = 10
    trainer = Trainer(
        max_epochs=epochs,
        batch_size=sizes.batch_size,
        steps_per_epoch=max(steps // epochs, 1),
        learning_rate=3e-3 if sizes.width <= 128 else 1e-3,
        optimizer=functools.partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.1),
        schedule=_trapezoid,
        max_grad_norm=1.0,
        device=setting.device,
        mixed_precision="no" if setting.device == "cpu" else "bf16",
        random_state=_streams(setting).child("data"),
    )
    data = draw_windows(text, sizes.context)
    history = trainer.fit(model, lambda net, ids, step: net(input_ids=ids, labels=ids).loss, data)
    model.eval()
    return np.array(history.losses)


def _trapezoid(step: int, n_steps: int) -> float:
    """Return the factor on the learning rate: warm-up in 5 %, constant, down to zero in the last 20 %."""
    return min(1.0, (step + 1) / (0.05 * n_steps), (n_steps - step) / (0.2 * n_steps))


def _spread_windows(text: np.ndarray, sizes: Sizes) -> torch.Tensor:
    """Return windows (n, context) at equal distances in a text."""
    every = windows(text, sizes.context)
    spread = np.linspace(0, len(every) - 1, min(sizes.validation_windows, len(every))).astype(int)
    return every[torch.from_numpy(spread)]


def _loss(model: Any, held_out: torch.Tensor, **options: Any) -> float:
    """Return the validation loss in nats per byte on windows (n, context)."""
    with torch.no_grad():
        parts = [model(input_ids=ids, labels=ids, **options).loss for ids in held_out.split(32)]
    return float(np.mean([float(part) for part in parts]))


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6.4, 4.0), layout="constrained")
    DRAWINGS[claim](canvas.add_subplot(), result)
    return canvas


def _draw_flops(axes: Any, result: Result) -> None:
    names = ["vanilla", "MoR-2", "MoR-3", "MoR-4", "MoR-3 shared KV"]
    place = np.arange(len(names))
    axes.bar(place - 0.2, result.arrays["paper"] / 1e8, 0.4, label="paper's convention", color="#999999")
    axes.bar(
        place + 0.2, result.arrays["exact"] / 1e8, 0.4, label="exact (grouped heads, output matrix)", color="#0072b2"
    )
    axes.set_xticks(place, names)
    axes.set(ylabel="forward pass (100 million operations per token)")
    axes.set_ylim(0, result.arrays["exact"].max() / 1e8 * 1.25)
    axes.legend()


def _draw_serving(axes: Any, result: Result) -> None:
    names = list(WAYS)
    speeds = [result.arrays[name] for name in names]
    colours = ["#0072b2" if name == "depthwise_exits" else "#999999" for name in names]
    axes.bar(range(len(names)), [np.median(one) for one in speeds], color=colours)
    for place, one in enumerate(speeds):
        axes.plot([place] * len(one), one, "k.", ms=4)
    axes.set_xticks(range(len(names)), [name.replace("_", "\nwith ") for name in names])
    axes.set(ylabel="tokens per second (dots: repeats)")


def _draw_calls(axes: Any, result: Result) -> None:
    calls = [result.scalars[f"calls_{name}"] for name in WAYS]
    axes.bar(range(len(calls)), calls, color="#0072b2")
    axes.set_xticks(range(len(calls)), [name.replace("_", "\nwith ") for name in WAYS])
    axes.set(ylabel="calls of the block")


def _draw_times(axes: Any, result: Result) -> None:
    for name in ("vanilla", "mor"):
        axes.plot(1 + np.arange(len(result.arrays[name])), result.arrays[name], "o-", label=name, color=COLOURS[name])
    axes.set_xticks(1 + np.arange(len(result.arrays["mor"])))
    axes.set(xlabel="repeat", ylabel="training step (seconds)")
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_quality(axes: Any, result: Result) -> None:
    for name in ("vanilla", "recursive", "mor"):
        curve = result.arrays[f"loss_{name}"]
        share = np.linspace(1 / len(curve), 1, len(curve))
        label = f"{name}: {result.scalars[f'{name}_loss']:.3f} on validation"
        axes.plot(share, curve, color=COLOURS[name], label=label)
    causal = result.scalars["mor_causal_loss"]
    axes.axhline(causal, ls=":", color=COLOURS["mor_causal"], label=f"mor, causal: {causal:.3f} on validation")
    axes.set(xlabel="share of the floating-point operations", ylabel="training loss (nats per byte)")
    axes.legend()


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "published-steps": _flops,
    "shared-kv-flops": _flops,
    "block-calls": _calls,
    "serving-speed": _serving,
    "wide-serving-speed": _serving,
    "step-time": _step_time,
    "equal-flops": _quality,
    "causal-gap": _quality,
}
DRAWINGS: dict[str, Callable[[Any, Result], None]] = {
    "published-steps": _draw_flops,
    "shared-kv-flops": _draw_flops,
    "block-calls": _draw_calls,
    "serving-speed": _draw_serving,
    "wide-serving-speed": _draw_serving,
    "step-time": _draw_times,
    "equal-flops": _draw_quality,
    "causal-gap": _draw_quality,
}
STUDY = Study("lm.mixture_of_recursions", MEASUREMENTS, scales=tuple(SIZES), gpu=True)
run = STUDY.run
