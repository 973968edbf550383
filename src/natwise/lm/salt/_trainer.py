"""transformers' Trainer with a small teacher in its first stage."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from natwise.core.validation import check_flag, check_integer, check_real
from natwise.lm._checks import IGNORED, check_training
from natwise.lm.salt._cache import TeacherCache
from natwise.lm.salt._loss import linear_salt_loss, mixed_cross_entropy, salt_loss
from natwise.lm.salt._schedule import SaltSchedule

STOPPED = "teacher_stopped_at"


class SaltTrainer(Trainer):
    """Train a large language model with the help of a smaller one, for the first steps only.

    While the schedule gives the teacher a weight, the loss is `salt_loss`; after that it is the model's own, bit for
    bit, and the teacher is not asked any more. Optimiser, learning rate and order of the data go on undisturbed.
    Evaluation always measures plain cross-entropy.

    Parameters
    ----------
    model : module
        The student, a causal language model.
    teacher : module, TeacherCache or None
        A causal language model with the same vocabulary; it is put into evaluation mode (with a warning when it was
        not) and moved to the device of the training, and no gradient is computed for it. Or its stored predictions:
        then every example of the data needs its number in the cache under ``index``. None when the schedule gives no
        step a teacher.
    schedule : SaltSchedule
        ``kd_steps=0`` is plain training, ``kd_steps=total_steps`` reverse distillation (RKD).
    args : transformers.TrainingArguments
    train_dataset : dataset
        Examples with ``input_ids`` and ``labels`` (the same tokens; the shift by one happens here), -100 for tokens
        that do not count.
    inverse_temperature : float
        rho of `salt_loss`; a cache has its own.
    chunk_size : int
        Tokens per chunk of the loss.
    from_hidden : bool
        Compute the loss from last hidden states and output matrices (`linear_salt_loss`), so that the logits of a
        batch are never held. For models whose logits are just that product; the first batch is checked.
    switch_when_overtaken : bool
        Stop asking the teacher at the first evaluation where the student's loss is lower (our extension). Needs
        evaluations and a teacher that is a module. Without it, such an evaluation gives a warning.
    **others
        Everything else that `transformers.Trainer` takes.

    Raises
    ------
    TypeError, ValueError
        For a missing teacher, another vocabulary, or a schedule of another length than the run; in training, for
        logits that are not finite, and examples without ``labels`` (or ``index``, with a cache).
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | TeacherCache | None,
        schedule: SaltSchedule,
        args: TrainingArguments,
        train_dataset: Any = None,
        *,
        inverse_temperature: float = 1.0,
        chunk_size: int = 1024,
        from_hidden: bool = False,
        switch_when_overtaken: bool = False,
        **others: Any,
    ):
        check_training(model, args)
        self.schedule = schedule
        self.inverse_temperature = check_real("inverse_temperature", inverse_temperature, minimum=0.0)
        self._chunk_size = check_integer("chunk_size", chunk_size, minimum=1)
        self._from_hidden, self._hidden_checked = check_flag("from_hidden", from_hidden), False
        self._switches = check_flag("switch_when_overtaken", switch_when_overtaken)
        self._teacher_loss: float | None = None
        _check_schedule(schedule, teacher, args)
        if isinstance(teacher, nn.Module):
            _check_vocabulary(model, teacher)
            if teacher.training:
                warnings.warn("teacher was in training mode; it is used in evaluation mode", UserWarning, stacklevel=2)
                teacher.eval()
        elif self._switches or self._from_hidden:
            raise ValueError("switch_when_overtaken and from_hidden need a teacher that is a module")
        super().__init__(model=model, args=args, train_dataset=train_dataset, **others)
        if from_hidden and self.args.world_size > 1:
            raise ValueError("from_hidden needs a single process: it calls parts of the model, which DDP does not see")
        self.teacher: Any = teacher.to(self.args.device) if isinstance(teacher, nn.Module) else teacher

    def teacher_weight(self) -> float:
        """Return the weight of the teacher at the current step."""
        step = self.state.global_step
        return 0.0 if any(STOPPED in entry for entry in self.state.log_history) else self.schedule(step)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, a scalar in nats per token that counts; see the class.

        ``inputs`` holds ``input_ids`` and ``labels``, int64 tensors (batch, length), with a `TeacherCache` also
        ``index`` (batch,). With `return_outputs` also return the model's outputs.
        """
        index = inputs.pop("index", None)
        weight = self.teacher_weight() if model.training else 0.0
        if model.training and 0 < self.state.max_steps != self.schedule.total_steps:
            steps = self.state.max_steps
            raise ValueError(f"schedule must have the run's {steps} steps, got {self.schedule.total_steps}")
        if weight == 0.0:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "labels" not in inputs:
            raise ValueError(f"train_dataset must give labels, got {', '.join(inputs)}")
        labels = inputs["labels"][:, 1:].long().contiguous()
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        outputs, total = self._mixed_loss(model, inputs, labels, weight, index)
        counted = (labels != IGNORED).sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
        loss = total / counted
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _set_signature_columns_if_needed(self) -> None:
        """Keep ``index`` in the batches, which is no argument of the model."""
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns  # type: ignore[assignment]
        self._signature_columns = [*dict.fromkeys([*columns, "index"])]  # type: ignore[assignment]

    def _mixed_loss(
        self, model: nn.Module, inputs: dict[str, Any], labels: torch.Tensor, weight: float, index: torch.Tensor | None
    ) -> tuple[Any, torch.Tensor]:
        """Return the student's outputs, and the sum of the loss over the labels (batch, length - 1) of a batch."""
        counts = bool((labels != IGNORED).any())
        if self._from_hidden and counts:
            return None, self._hidden_loss(model, inputs, labels, weight)
        outputs = model(**inputs)
        student = outputs.logits[:, :-1]
        if not counts:  # a part of an accumulated batch may be all padding
            return outputs, 0.0 * student.sum()
        if isinstance(self.teacher, TeacherCache):
            if index is None:
                raise ValueError("train_dataset must give the number of each sequence in the cache as index, got none")
            targets = self.teacher.targets(index)
            flat = student.flatten(0, 1), targets, labels.flatten()
            total = mixed_cross_entropy(*flat, weight, "sum", self._chunk_size)
        else:
            with torch.no_grad():
                teacher = self.teacher(**inputs).logits[:, :-1]
            rho, size = self.inverse_temperature, self._chunk_size
            total = salt_loss(student, teacher, labels, weight, rho, reduction="sum", chunk_size=size)
        self._report(student, labels, weight, total)
        return outputs, total

    def _hidden_loss(
        self, model: nn.Module, inputs: dict[str, Any], labels: torch.Tensor, weight: float
    ) -> torch.Tensor:
        """Return the sum of the loss over labels (batch, length - 1), without the logits of a batch."""
        student, matrix = _last_hidden(model, inputs)
        with torch.no_grad():
            teacher, teacher_matrix = _last_hidden(self.teacher, inputs)
            if not self._hidden_checked:
                for name, network in (("model", model), ("teacher", self.teacher)):
                    _check_head(name, network, inputs)
                self._hidden_checked = True
        return linear_salt_loss(
            student[:, :-1], matrix, teacher[:, :-1], teacher_matrix, labels, weight, self.inverse_temperature,
            reduction="sum", chunk_size=self._chunk_size,
        )  # fmt: skip

    def _report(self, student: torch.Tensor, labels: torch.Tensor, weight: float, total: torch.Tensor) -> None:
        """Log both parts of the loss (nats per token), at steps that are logged; logits (b, t, V), labels (b, t)."""
        if self.args.logging_strategy != "steps" or (self.state.global_step + 1) % self.state.logging_steps:
            return
        with torch.no_grad():
            truth = cross_entropy(student.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
            mean = total.detach() / (labels != IGNORED).sum()
        taught = (mean - (1 - weight) * truth) / weight
        self.log({"teacher_weight": weight, "cross_entropy": truth.item(), "teacher_cross_entropy": taught.item()})

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Evaluate, and compare with the teacher while it has a weight."""
        metrics = super().evaluate(*arguments, **options)
        loss = metrics.get("eval_loss")
        if loss is None or not isinstance(self.teacher, nn.Module) or self.teacher_weight() == 0.0:
            return metrics
        if self._teacher_loss is None:
            self._teacher_loss = self._evaluate_teacher()
        if loss < self._teacher_loss and self._switches:
            self.log({STOPPED: self.state.global_step})
        elif loss < self._teacher_loss:
            text = (
                f"the student (loss {loss:.3f}) has overtaken its teacher ({self._teacher_loss:.3f}), which still has"
            )
            warnings.warn(f"{text} weight {self.teacher_weight():g}", UserWarning, stacklevel=2)
        return metrics

    def _evaluate_teacher(self) -> float:
        total, count = 0.0, 0
        for inputs in self.get_eval_dataloader():
            prepared = self._prepare_inputs({name: value for name, value in inputs.items() if name != "index"})
            labels = prepared.pop("labels")[:, 1:]
            with torch.no_grad():
                logits = self.teacher(**prepared).logits[:, :-1]
            flat = logits.flatten(0, 1).float(), labels.flatten()
            total += cross_entropy(*flat, ignore_index=IGNORED, reduction="sum").item()
            count += int((labels != IGNORED).sum())
        return total / max(count, 1)


def _last_hidden(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last hidden states (b, t, d) and the output matrix (V, d) of a causal language model."""
    hidden = model.base_model(**inputs)[0]
    return hidden, model.get_output_embeddings().weight


def _check_head(name: str, model: nn.Module, inputs: dict[str, Any]) -> None:
    mode = model.training
    model.eval()  # two passes that are to agree: without dropout
    hidden, matrix = _last_hidden(model, inputs)
    agree = torch.allclose(hidden @ matrix.T, model(**inputs).logits, rtol=1e-3, atol=1e-3)
    model.train(mode)
    if not agree:
        raise ValueError(f"from_hidden needs a {name} whose logits are hidden states times output matrix, got others")


def _check_schedule(schedule: Any, teacher: Any, args: TrainingArguments) -> None:
    if not isinstance(schedule, SaltSchedule):
        raise TypeError(f"schedule must be a SaltSchedule, got {type(schedule).__name__}")
    if args.max_steps > 0 and args.max_steps != schedule.total_steps:
        raise ValueError(f"schedule must have args.max_steps={args.max_steps} steps, got {schedule.total_steps}")
    if teacher is None and schedule.kd_steps and schedule.weight:
        raise ValueError(f"teacher must be given for the schedule's {schedule.kd_steps} steps with a teacher, got None")
    if teacher is not None and not isinstance(teacher, nn.Module | TeacherCache):
        raise TypeError(f"teacher must be a module, a TeacherCache or None, got {type(teacher).__name__}")


def _check_vocabulary(model: nn.Module, teacher: nn.Module) -> None:
    ours, theirs = (getattr(getattr(m, "config", None), "vocab_size", None) for m in (model, teacher))
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(f"teacher must share the student's vocabulary of {ours} tokens, got {theirs}")
