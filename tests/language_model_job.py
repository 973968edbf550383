"""A small language-model training as a command: `python language_model_job.py OUT`; writes OUT.<rank>."""

import os
import sys
import tempfile

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from natwise.core.sharding import shard_on_cpu
from natwise.lm import SaltSchedule, SaltTrainer

VOCABULARY, LENGTH, STEPS, BATCH = 11, 8, 6, 4


def llama(seed, width):
    """Return a model of one layer without randomness from outside."""
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, max_position_embeddings=32)).eval()


def train(out, processes=1):
    """Train with a teacher for half of the steps; write weights and losses."""
    ids = torch.randint(VOCABULARY, (24, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(LENGTH) < torch.arange(len(ids))[:, None] % 3, -100, ids)
    rows = [{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=BATCH // processes, learning_rate=0.5, optim="sgd",
            max_grad_norm=0.1, report_to=[], disable_tqdm=True, logging_steps=1, save_strategy="no", use_cpu=True,
            train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer = SaltTrainer(llama(0, 8), llama(1, 4), SaltSchedule(STEPS, STEPS // 2, 0.6), args, rows)
        shard_on_cpu(trainer.accelerator, "no")
        trainer.is_fsdp_enabled = trainer.accelerator.is_fsdp2
        trainer.train()
    model = trainer.model
    assert hasattr(model.lm_head.weight, "full_tensor") == (os.environ.get("ACCELERATE_USE_FSDP") == "true")
    weights = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in model.state_dict().items()}
    losses = torch.tensor([float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry])
    save_file({**{name: value.contiguous() for name, value in weights.items()}, "losses": losses}, out)


if __name__ == "__main__":
    train(f"{sys.argv[1]}.{os.environ['RANK']}", processes=2)
