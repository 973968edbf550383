"""Tokens per second of the ways to serve a looped model, measured side by side in one run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from natwise.core.progress import progress
from natwise.core.random import Streams
from natwise.core.validation import check_device, check_integer
from natwise.lm.mixture_of_recursions._engine import DepthwiseBatchingEngine
from natwise.result import Result, provenance

WAYS = {
    "static": ("static", False),
    "sequence": ("sequence", False),
    "sequence_exits": ("sequence", True),
    "depthwise": ("depthwise", False),
    "depthwise_exits": ("depthwise", True),
}


def serving_benchmark(
    model: Any = None,
    *,
    n_slots: int = 16,
    n_requests: int = 48,
    new_tokens: int = 24,
    prompt_length: int = 1,
    repeats: int = 5,
    device: str | torch.device = "cpu",
    random_state: int | None = 0,
    verbose: int = 0,
) -> Result:
    """Serve the same requests in five ways, in turn, and report tokens per second.

    Parameters
    ----------
    model : MoRForCausalLM or RecursiveForCausalLM, optional
        Default: random weights, width 256, a block of 4 layers, 3 loops.
    n_slots, n_requests : int
        All requests stand in the queue from the start.
    new_tokens : int
        Mean number per request; drawn between half and three halves of it.
    prompt_length, repeats : int
        By default there is nothing to prefill: only decoding is measured.
    device : str or torch.device
    random_state : int or None
        Draws weights, prompts, lengths, and the exits: uniform over the loops, as an oracle might say.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Raises
    ------
    ValueError, TypeError
        For a model that cannot be served, or counts below 1.

    Returns
    -------
    Result
        Arrays: tokens per second (repeats,) of ``static``, ``sequence``, ``sequence_exits``, ``depthwise``,
        ``depthwise_exits``. Scalars: their medians; ``speedup``, the median over repeats of depth-wise with exits over
        sequence-wise; ``calls_*``; ``calls_ratio`` and ``calls_limit`` (loops over mean exit); ``overhead``, the
        engine's own time over that of the block's calls, depth-wise with exits, median of repeats (on a GPU: of the
        host); ``identical``, 1 when the way of serving changed no token.
    """
    counts = {"n_requests": n_requests, "new_tokens": new_tokens, "prompt_length": prompt_length, "repeats": repeats}
    for count_name, count in {"n_slots": n_slots, **counts}.items():
        check_integer(count_name, count, minimum=1)
    streams = Streams.of(random_state)
    with provenance(seed=random_state, device=str(device)) as record:
        model = _on_device(_default_model(streams) if model is None else model, device)
        engines = {name: DepthwiseBatchingEngine(model, n_slots, schedule=way) for name, (way, _) in WAYS.items()}
        requests, exits = _requests(model, streams, n_requests, new_tokens, prompt_length)
        speeds: dict[str, list[float]] = {name: [] for name in WAYS}
        tokens: dict[bool, list[list[int]]] = {}
        overheads: list[float] = []
        identical = True
        with progress(repeats * len(WAYS), wanted=bool(verbose)) as report:
            for turn in range(repeats):
                for i, (name, (_, with_exits)) in enumerate(WAYS.items()):
                    found = engines[name].generate(exits if with_exits else requests)
                    identical &= tokens.setdefault(with_exits, found) == found
                    speeds[name].append(engines[name].stats["tokens"] / engines[name].stats["seconds"])
                    report(turn * len(WAYS) + i + 1, name)
                overheads.append(_overhead(engines["depthwise_exits"].stats))
    arrays = {name: np.array(values) for name, values in speeds.items()}
    params: dict[str, Any] = {"n_slots": n_slots, **counts}
    params |= {"width": model.config.hidden_size, "loops": _n_loops(model), "threads": torch.get_num_threads()}
    scalars = _scalars(arrays, engines, exits, _n_loops(model))
    scalars |= {"identical": float(identical), "overhead": float(np.median(overheads))}
    return Result("lm.mixture_of_recursions/serving", arrays=arrays, scalars=scalars, params=params, provenance=record)


def _scalars(
    arrays: dict[str, np.ndarray], engines: dict[str, Any], exits: list[dict[str, Any]], n_loops: int
) -> dict[str, float]:
    calls = {f"calls_{name}": float(engine.stats["block_calls"]) for name, engine in engines.items()}
    mean_exit = float(np.mean(np.concatenate([one["exits"] for one in exits])))
    return {
        **{name: float(np.median(values)) for name, values in arrays.items()},
        **calls,
        "speedup": float(np.median(arrays["depthwise_exits"] / arrays["sequence"])),
        "calls_ratio": calls["calls_sequence"] / calls["calls_depthwise_exits"],
        "calls_limit": n_loops / mean_exit,
        "mean_exit": mean_exit,
    }


def _overhead(stats: dict[str, float]) -> float:
    return (stats["seconds"] - stats["prefill_seconds"] - stats["model_seconds"]) / stats["block_seconds"]


def _on_device(model: Any, device: str | torch.device) -> Any:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a MoRForCausalLM or RecursiveForCausalLM, got {type(model).__name__}")
    return model.to(check_device("device", device)).eval()


def _default_model(streams: Streams) -> Any:
    from natwise.lm.mixture_of_recursions import MoRConfig, MoRForCausalLM

    config = MoRConfig(
        vocab_size=256, hidden_size=256, intermediate_size=688, num_attention_heads=4, num_hidden_layers=12,
        num_recursions=3, sharing="cycle", max_position_embeddings=512,
    )  # fmt: skip
    with streams.torch_global("weights"):
        return MoRForCausalLM(config)


def _requests(
    model: Any, streams: Streams, n_requests: int, new_tokens: int, prompt_length: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rng = streams.numpy("requests")
    lengths = rng.integers(max(new_tokens // 2, 1), new_tokens + new_tokens // 2 + 1, size=n_requests)
    plain, early = [], []
    for n in lengths:
        ids = rng.integers(model.config.vocab_size, size=prompt_length)
        plain.append({"input_ids": ids, "max_new_tokens": int(n)})
        n_loops = _n_loops(model)
        exits = rng.integers(1, n_loops + 1, size=n)
        early.append({**plain[-1], "exits": exits})
        plain[-1]["exits"] = np.full(n, n_loops)  # all loops, whatever a router says
    return plain, early


def _n_loops(model: Any) -> int:
    config = model.config
    return int(getattr(config, "num_recursions", None) or config.num_loops)
