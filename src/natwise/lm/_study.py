"""What the studies of this room share: small byte-level networks and how transformers' Trainer trains them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from natwise.core.random import global_generators_kept
from natwise.datasets.language import N_BYTES, draw_windows


def byte_sizes(width: int, layers: int, heads: int, context: int, **others: Any) -> dict[str, Any]:
    """Return the fields of the configuration of a Llama over bytes with tied embeddings, and `others`."""
    sizes: dict[str, Any] = {
        "vocab_size": N_BYTES,
        "hidden_size": width,
        "intermediate_size": 8 * width // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "use_cache": False,
    }
    return {**sizes, **others}


def train_with(
    trainer: Callable[..., Any],
    model: Any,
    ids: torch.Tensor,
    device: str,
    *,
    batch_size: int,
    seed: int,
    **arguments: Any,
) -> None:
    """Train a model in place and quietly on tokens (n, length), which are taken in their order.

    `trainer` makes a transformers Trainer from a model, its arguments and examples; `arguments` are of
    `transformers.TrainingArguments`. Nothing is written, and global random generators stay as they were.
    """
    from transformers import PrinterCallback, TrainingArguments

    with tempfile.TemporaryDirectory() as folder, global_generators_kept():
        options = TrainingArguments(
            folder,
            max_steps=len(ids) // batch_size,
            per_device_train_batch_size=batch_size,
            weight_decay=0.1,
            seed=seed,
            bf16=device != "cpu",
            use_cpu=device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            train_sampling_strategy="sequential",  # the tokens are drawn at random
            disable_tqdm=True,
            **arguments,
        )
        made = trainer(model.train(), args=options, train_dataset=[{"input_ids": one, "labels": one} for one in ids])
        made.remove_callback(PrinterCallback)
        made.train()


def validation_windows(text: np.ndarray, length: int, n: int) -> torch.Tensor:
    """Return windows (n, length) of a text, the same for all seeds."""
    return draw_windows(text, length)(n, np.random.default_rng(0))


def validation_loss(model: Any, windows: torch.Tensor, batch_size: int = 64) -> float:
    """Return the mean loss in nats per token on windows (n, length); the model is left in evaluation mode."""
    model.eval()
    with torch.no_grad():
        parts = [model(input_ids=ids, labels=ids).loss for ids in windows.to(model.device).split(batch_size)]
    return float(torch.stack(parts).mean())
