"""``natwise lm uptrain``: a trained model in, a recursive one that was trained on out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def uptrain(
    model: Annotated[Path, typer.Argument(help="Folder of a Hugging Face checkpoint; a recursive one is trained on.")],
    text: Annotated[Path, typer.Argument(help="A UTF-8 text file; its last tenth measures, the rest trains.")],
    out: Annotated[Path, typer.Argument(help="The folder for the recursive model.")],
    loops: Annotated[int | None, typer.Option(help="How often the shared layers are applied. Default: 2.")] = None,
    init: Annotated[str, typer.Option(help="stepwise, average, lower, upper or random.")] = "stepwise",
    rank: Annotated[int | None, typer.Option(help="Rank of the deltas of every depth. Default: none.")] = None,
    distill: Annotated[
        str | None, typer.Option(help="Learn from the source, too: forward_kl, reverse_kl, jsd or tvd.")
    ] = None,
    early_exit: Annotated[
        float | None, typer.Option(help="Weight of the losses of exits after earlier loops, such as 0.1.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch: Annotated[str, typer.Option(help="Sequences per step and process x tokens per sequence.")] = "16x512",
    learning_rate: Annotated[float, typer.Option(help="Highest; it falls along a cosine.")] = 2e-4,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.")] = 0,
) -> None:
    """Convert a language model into a recursive one and train it on text, on a GPU where there is one.

    The same command goes on with a run that was interrupted. For several processes: accelerate launch -m natwise lm
    uptrain ...
    """
    from accelerate import PartialState
    from transformers.utils import logging

    from natwise.lm.relaxed_recursive._uptrain import Recipe, uptrain_folder

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    recipe = Recipe(loops, init, rank, distill, early_exit, steps, batch, learning_rate, seed)
    before, after = uptrain_folder(model, text, out, recipe)
    if not PartialState().is_main_process:
        return
    for exit_name, old, new in zip(after.rows, before.arrays["loss"], after.arrays["loss"], strict=True):
        print(f"{exit_name}: {old:.4f} -> {new:.4f} nats per token")
    print(f"saved: {out}")
