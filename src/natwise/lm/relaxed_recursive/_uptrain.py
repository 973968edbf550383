"""A whole uptraining run from files: what the command line calls."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainingArguments

from natwise.core.distillation import KINDS
from natwise.core.io import check_folder, write_text
from natwise.core.random import Streams, global_generators_kept
from natwise.core.validation import check_integer, check_option, check_real, shorten
from natwise.datasets.language import N_BYTES, windows
from natwise.lm.relaxed_recursive._config import RecursiveConfig
from natwise.lm.relaxed_recursive._convert import to_recursive
from natwise.lm.relaxed_recursive._exits import EarlyExitLoss, evaluate_exits
from natwise.lm.relaxed_recursive._trainer import UptrainTrainer
from natwise.result import Result

N_EVALUATED = 256  # sequences of the held-out text
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; see ``natwise lm uptrain --help``."""

    loops: int | None
    init: str
    rank: int | None
    distill: str | None
    early_exit: float | None
    steps: int
    batch: str
    learning_rate: float
    seed: int

    def check(self) -> None:
        """Refuse settings that cannot work before anything is read."""
        for name, least in (("loops", 1), ("rank", 1), ("steps", 1), ("seed", 0)):
            if (value := asdict(self)[name]) is not None:
                check_integer(name, value, minimum=least)
        if not re.fullmatch(r"[1-9]\d*x\d*[1-9]\d*", self.batch) or self.context < 2:
            raise ValueError(f"batch must be like 16x512, sequences x tokens, got {shorten(self.batch)}")
        check_real("learning_rate", self.learning_rate, minimum=0.0, exclusive=True)
        if self.distill is not None:
            check_option("distill", self.distill, KINDS)
        if self.early_exit is not None:
            check_real("early_exit", self.early_exit, minimum=0.0)

    @property
    def batch_size(self) -> int:
        """Sequences per step and process."""
        return int(self.batch.split("x")[0])

    @property
    def context(self) -> int:
        """Tokens per sequence."""
        return int(self.batch.split("x")[1])


class _Drawn(Dataset):
    """Windows (length,) of a stream as examples to train on; only where they start is kept."""

    def __init__(self, stream: np.ndarray, length: int, n: int, rng: np.random.Generator):
        self.stream, self.length = stream, length
        self.starts = rng.integers(len(stream) - length + 1, size=n)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = self.starts[index]
        ids = torch.from_numpy(self.stream[start : start + self.length].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


def uptrain_folder(model: Path, text: Path, out: Path, recipe: Recipe) -> tuple[Result, Result]:
    """Convert the checkpoint in a folder, train it on a text file, and save it.

    Parameters
    ----------
    model, text, out : Path
        A checkpoint, a text file, and the folder for the result. A run that is interrupted leaves ``checkpoints`` in
        it, from which the same call goes on.
    recipe : Recipe

    Returns
    -------
    before, after : Result
        Of `evaluate_exits` on the held-out end of the text.
    """
    recipe.check()
    check_folder(out)
    if not (model / "config.json").is_file():
        raise ValueError(f"model must be the folder of a checkpoint, but there is no {model / 'config.json'}")
    source: Any = AutoModelForCausalLM.from_pretrained(model, local_files_only=True)
    stream = _tokens(text, model, source.config.vocab_size)
    _check_length(stream, recipe.context, source.config.max_position_embeddings)
    streams = Streams.of(recipe.seed)
    recursive = _recursive(source, recipe, streams)
    arguments = _arguments(out, recipe, streams)
    interrupted = _was_interrupted(out, recipe, arguments.world_size)
    cut = len(stream) * 9 // 10
    held_out = windows(stream[cut:], recipe.context)[:N_EVALUATED]
    n = recipe.steps * recipe.batch_size * arguments.world_size
    drawn = _Drawn(stream[:cut], recipe.context, n, streams.numpy("data"))
    trainer = _trainer(source, recursive, arguments, drawn, recipe)
    before = evaluate_exits(recursive, held_out)
    with global_generators_kept():
        trainer.train(resume_from_checkpoint=interrupted)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        recursive.save_pretrained(out)
        shutil.rmtree(out / CHECKPOINTS)
        if _has_tokenizer(model):
            AutoTokenizer.from_pretrained(model, local_files_only=True).save_pretrained(out)
    return before, evaluate_exits(recursive, held_out)


def _recursive(source: Any, recipe: Recipe, streams: Streams) -> Any:
    """Return the source converted, or the source where it is recursive already."""
    if not isinstance(source.config, RecursiveConfig):
        return to_recursive(source, recipe.loops or 2, recipe.init, recipe.rank, random_state=streams)
    for name, ours, theirs in (
        ("loops", recipe.loops, source.config.num_loops),
        ("rank", recipe.rank, source.config.lora_rank),
    ):
        if ours is not None and ours != theirs:
            raise ValueError(f"{name} is {theirs} in the recursive checkpoint and cannot be another, got {ours}")
    if recipe.distill is not None:
        raise ValueError(f"distill needs a source that is not recursive yet, got {recipe.distill!r}")
    return source


def _trainer(
    source: Any, recursive: Any, arguments: TrainingArguments, drawn: _Drawn, recipe: Recipe
) -> UptrainTrainer:
    trainer = UptrainTrainer(
        recursive,
        arguments,
        drawn,
        teacher=None if recipe.distill is None else source,
        distillation=recipe.distill or KINDS[0],
        early_exit=None if recipe.early_exit is None else EarlyExitLoss(coef=recipe.early_exit),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _was_interrupted(out: Path, recipe: Recipe, n_processes: int) -> bool:
    """Say whether there are checkpoints of this very run; refuse those of another, else note what this one is."""
    note, ours = out / CHECKPOINTS / "recipe.json", json.dumps({**asdict(recipe), "processes": n_processes})
    if not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, ours)
    elif note.read_text("utf-8") != ours:
        raise ValueError(f"out must be another folder: {note.parent} holds an interrupted run with other settings")
    return any(note.parent.glob("checkpoint-*"))


def _arguments(out: Path, recipe: Recipe, streams: Streams) -> TrainingArguments:
    return TrainingArguments(
        str(out / CHECKPOINTS),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(recipe.steps / 20),
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        seed=streams.seed("trainer"),
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        save_steps=max(recipe.steps // 4, 1),
        save_total_limit=1,
        train_sampling_strategy="sequential",  # the windows are drawn at random
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        logging_strategy="no",
    )


def _tokens(text: Path, model: Path, vocab_size: int) -> np.ndarray:
    """Return the tokens (n,) of a text, by the checkpoint's tokenizer; without one, its bytes."""
    if not text.is_file():
        raise ValueError(f"text must be a file, got {text}")
    if not _has_tokenizer(model):
        if vocab_size < N_BYTES:
            raise ValueError(f"model must have a tokenizer or a vocabulary of {N_BYTES} bytes, got {vocab_size}")
        return np.fromfile(text, dtype=np.uint8)
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    return np.array(tokenizer(text.read_text("utf-8"), add_special_tokens=False, verbose=False)["input_ids"])


def _has_tokenizer(model: Path) -> bool:
    return any((model / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))


def _check_length(stream: np.ndarray, context: int, longest: int) -> None:
    if context > longest:
        raise ValueError(
            f"batch must have at most {longest} tokens per sequence, the positions of the model, got {context}"
        )
    if len(stream) < 10 * context:
        raise ValueError(f"text must hold at least ten times {context} tokens, got {len(stream)}")
