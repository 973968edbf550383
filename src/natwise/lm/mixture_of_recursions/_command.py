"""`natwise lm serve-bench`: the ways to serve a looped model, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def serve_bench(
    model: Annotated[
        Path | None, typer.Argument(help="A saved RecursiveForCausalLM or MoRForCausalLM.", show_default=False)
    ] = None,
    slots: Annotated[int, typer.Option(help="Requests in work at the same time.")] = 16,
    requests: Annotated[int, typer.Option(help="Requests in the queue.")] = 64,
    tokens: Annotated[int, typer.Option(help="New tokens per request, on average.")] = 16,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 1,
    repeats: Annotated[int, typer.Option(help="Turns of each way; medians are printed.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Draws weights, prompts, lengths and exits.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also save the result here (.safetensors).")] = None,
) -> None:
    """Serve the same random requests static, sequence-wise and depth-wise, without and with early exits."""
    from natwise.lm.mixture_of_recursions._serving import WAYS, serving_benchmark

    result = serving_benchmark(
        None if model is None else _load(model),
        n_slots=slots, n_requests=requests, new_tokens=tokens, prompt_length=prompt, repeats=repeats, device=device,
        random_state=seed, verbose=1,
    )  # fmt: skip
    found = result.scalars
    print(f"{'way':16} {'tokens/s':>9} {'calls':>6} {'ratio':>6}")
    for name in WAYS:
        ratio = found[name] / found["sequence"]
        print(f"{name:16} {found[name]:9.1f} {found[f'calls_{name}']:6.0f} {ratio:6.2f}")
    print(f"mean exit {found['mean_exit']:.2f} of {result.params['loops']} loops: at most {found['calls_limit']:.2f}")
    print(f"depth-wise with exits over sequence-wise, median of {repeats}: {found['speedup']:.2f}")
    print(f"scheduling takes {found['overhead']:.1%} of the block's time; same tokens: {bool(found['identical'])}")
    if out is not None:
        result.save(out)


def _load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    import natwise.lm as room

    if not (path / "config.json").is_file():
        raise ValueError(f"MODEL must be a folder with a saved model, got {str(path)!r}")
    assert room.MoRForCausalLM, room.RecursiveForCausalLM  # both are then known to the Auto classes
    return AutoModelForCausalLM.from_pretrained(path)
