"""What the studies of this room share: small byte-level networks and how transformers' Trainer trains them."""

from __future__ import annotations

from typing import Any

import torch

from natwise.datasets.language import N_BYTES


def byte_llama(width: int, layers: int, heads: int, context: int, **options: Any) -> Any:
    """Return a fresh Llama over bytes with tied embeddings; weights come from torch's global generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

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
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **options}))


def training_arguments(folder: str, device: str, **options: Any) -> Any:
    """Return arguments for a quiet run that takes its examples in their order and writes nothing."""
    from transformers import TrainingArguments

    return TrainingArguments(
        folder,
        weight_decay=0.1,
        bf16=device != "cpu",
        use_cpu=device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        train_sampling_strategy="sequential",  # the windows are drawn at random
        disable_tqdm=True,
        **options,
    )


def validation_loss(model: Any, windows: torch.Tensor, batch_size: int = 64) -> float:
    """Return the mean loss in nats per byte on windows (n, tokens); the model is left in evaluation mode."""
    model.eval()
    with torch.no_grad():
        parts = [model(input_ids=ids, labels=ids).loss for ids in windows.to(model.device).split(batch_size)]
    return float(torch.stack(parts).mean())
