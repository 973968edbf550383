"""Uptraining: transformers' Trainer with a teacher's soft labels and losses at early exits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from natwise.core.distillation import KINDS, soft_label_loss
from natwise.core.validation import check_option, check_real
from natwise.lm._checks import IGNORED, check_training
from natwise.lm.relaxed_recursive._exits import EarlyExitLoss
from natwise.lm.relaxed_recursive._model import RecursiveForCausalLM


class UptrainTrainer(Trainer):
    """Train a converted model on text, so that it recovers what sharing its layers has cost.

    All weights are trained, shared ones and deltas. Evaluation measures plain cross-entropy of the final loop.

    Parameters
    ----------
    model : RecursiveForCausalLM
        Or any causal language model, for a comparison; then without `early_exit`.
    args : transformers.TrainingArguments
        The paper: AdamW, learning rate 2e-4 with cosine annealing, 200 steps of warm-up, 2 M tokens per step.
    train_dataset : dataset
        Examples with ``input_ids`` and ``labels`` (the same tokens; the shift by one happens here), -100 for tokens
        that do not count.
    teacher : PreTrainedModel, optional
        A causal language model with the same vocabulary, such as the full-size model; used in evaluation mode.
    distillation : {"forward_kl", "reverse_kl", "jsd", "tvd"}
        What is added to the cross-entropy, per token (the paper: KL(teacher || student)).
    distillation_weight, temperature : float
        Of that term. The paper states neither; 1 and 1.
    early_exit : EarlyExitLoss, optional
        Train the exits after every loop, too. The paper does so after uptraining, not during it, which cost accuracy.
    **others
        Everything else that `transformers.Trainer` takes.

    Raises
    ------
    TypeError, ValueError
        For a model or arguments that are none, another vocabulary, an unknown distillation, or early exits of a model
        without them.

    Notes
    -----
    Bae et al., Relaxed Recursive Transformers (ICLR 2025), sections 2.2, 2.4 and 3.1.
    """

    loss_is_scaled_for_ga = None

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Any = None,
        *,
        teacher: PreTrainedModel | None = None,
        distillation: str = "forward_kl",
        distillation_weight: float = 1.0,
        temperature: float = 1.0,
        early_exit: EarlyExitLoss | None = None,
        **others: Any,
    ):
        self._kind = check_option("distillation", distillation, KINDS)
        self._weight = check_real("distillation_weight", distillation_weight, minimum=0.0)
        self._temperature = check_real("temperature", temperature, minimum=0.0, exclusive=True)
        check_training(model, args)
        self._early_exit = _check_early_exit(early_exit, model)
        _check_teacher(teacher, model)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **others)
        self.teacher = None if teacher is None else teacher.eval().to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, a scalar in nats per token that counts; see the class.

        ``inputs`` holds ``input_ids`` and ``labels``, int64 tensors (batch, length). With `return_outputs` also return
        the model's outputs.
        """
        if not model.training or (self.teacher is None and self._early_exit is None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "labels" not in inputs:
            raise ValueError(f"train_dataset must have labels, got only {', '.join(inputs)}")
        labels = inputs["labels"][:, 1:].contiguous()
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**inputs, **({} if self._early_exit is None else {"output_exits": True}))
        counted = labels != IGNORED
        if not counted.any():  # what accumulation or another process may give
            loss = outputs.logits.sum() * 0.0
        else:
            loss = self._mean_loss(inputs, outputs, labels, counted)
        if num_items_in_batch is not None:
            loss = loss * counted.sum() / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _mean_loss(
        self, inputs: dict[str, Any], outputs: Any, labels: torch.Tensor, counted: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean over labels (batch, length - 1) that count, for outputs on (batch, length)."""
        exits = outputs.exit_logits if self._early_exit is not None else [outputs.logits]
        loss = (self._early_exit or EarlyExitLoss())([logits[:, :-1] for logits in exits], labels)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(**inputs).logits[:, :-1]
        options: dict[str, Any] = {"kind": self._kind, "temperature": self._temperature, "mask": counted}
        return loss + self._weight * soft_label_loss(outputs.logits[:, :-1], taught, **options)


def _check_early_exit(early_exit: Any, model: Any) -> EarlyExitLoss | None:
    if early_exit is not None:
        if not isinstance(early_exit, EarlyExitLoss):
            raise TypeError(f"early_exit must be an EarlyExitLoss or None, got {type(early_exit).__name__}")
        if not isinstance(model, RecursiveForCausalLM):
            raise TypeError(f"early_exit needs a RecursiveForCausalLM as model, got {type(model).__name__}")
        model.check_exits()
    return early_exit


def _check_teacher(teacher: Any, model: Any) -> None:
    if teacher is None:
        return
    if not isinstance(teacher, PreTrainedModel):
        raise TypeError(f"teacher must be a transformers PreTrainedModel or None, got {type(teacher).__name__}")
    ours, theirs = model.config.vocab_size, teacher.config.vocab_size
    if ours != theirs:
        raise ValueError(f"teacher must share the model's vocabulary of {ours} tokens, got {theirs}")
