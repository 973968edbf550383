"""Losses after every loop, so that a token may leave early: the training objective and the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from natwise.core.distillation import soft_label_loss
from natwise.core.validation import check_flag, check_integer, check_option, check_real
from natwise.lm._checks import IGNORED, check_length, check_tokens
from natwise.result import Result, provenance

if TYPE_CHECKING:
    from natwise.lm.relaxed_recursive._model import RecursiveForCausalLM

KINDS = ("aggressive", "weighted")


class EarlyExitLoss(nn.Module):
    """Cross-entropy of the final loop and, with less weight, of the loops before it.

    Parameters
    ----------
    kind : {"aggressive", "weighted"}
        L_N + coef * (L_1 + … + L_{N-1}), or the sum of i / (1 + … + N) L_i, which costs the final loop more.
    coef : float
        Weight of the early exits in ``aggressive``; the paper takes 0.1 and tried 0.3 to 0.01.
    self_distill : bool
        Add KL(final || early), the final loop's probabilities without gradient, to the loss of every early exit.
    hard_labels : bool
        Whether early exits also learn from the labels. The paper does not say how it mixes the two; both, by default.

    Notes
    -----
    Bae et al., Relaxed Recursive Transformers (ICLR 2025), section 2.4 and appendix J.
    """

    def __init__(
        self, kind: str = "aggressive", coef: float = 0.1, self_distill: bool = True, *, hard_labels: bool = True
    ):
        super().__init__()
        self.kind = check_option("kind", kind, KINDS)
        self.coef = check_real("coef", coef, minimum=0.0)
        self.self_distill = check_flag("self_distill", self_distill)
        self.hard_labels = check_flag("hard_labels", hard_labels)
        if not (self_distill or hard_labels):
            raise ValueError("self_distill must be True when hard_labels is False: early exits need something to learn")

    def forward(self, exit_logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Return the loss in nats per token.

        Parameters
        ----------
        exit_logits : sequence of tensor (..., n_classes)
            Of every loop, in order; the last one is final.
        labels : int64 tensor (...)
            Aligned with the logits: nothing is shifted. -100 does not count.

        Returns
        -------
        tensor
            Scalar; half precision is computed in float32.

        Raises
        ------
        TypeError, ValueError
            For logits that are no finite floats of one shape, or labels that are no classes or nowhere count.
        """
        counted = _check_exits(exit_logits, labels)
        *early, final = exit_logits
        losses = [self._early(one, final, labels, counted) for one in early]
        losses.append(_cross_entropy(final, labels))
        weights = [self.coef] * len(early) + [1.0]
        if self.kind == "weighted":
            weights = [2 * (i + 1) / (len(losses) * (len(losses) + 1)) for i in range(len(losses))]
        return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()

    def _early(
        self, logits: torch.Tensor, final: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of one early exit, logits (..., n_classes)."""
        loss = _cross_entropy(logits, labels) if self.hard_labels else torch.zeros((), device=logits.device)
        return loss + soft_label_loss(logits, final.detach(), mask=counted) if self.self_distill else loss


@torch.no_grad()
def evaluate_exits(model: RecursiveForCausalLM, sequences: torch.Tensor, *, batch_size: int = 32) -> Result:
    """Measure what every exit predicts on sequences of tokens.

    Parameters
    ----------
    model : RecursiveForCausalLM
        Evaluated in evaluation mode, and left in the mode it was in.
    sequences : int64 tensor (n, length)
        Tokens without padding; each is predicted from those before it.
    batch_size : int
        Sequences per forward pass.

    Raises
    ------
    TypeError, ValueError
        For a model of another kind, or what are no sequences of two tokens and more of its vocabulary.

    Returns
    -------
    Result
        A row per exit, after every loop for ``sharing="cycle"`` and else after the last: ``loss`` (nats per token),
        ``accuracy``, ``agreement`` (how often it predicts the final loop's token), ``oracle_share`` (share of tokens
        for which it is the first to do so). Scalars: ``mean_exit``, the mean number of loops if every token left there,
        an upper limit of what early exits save, and ``loss`` of the final.
    """
    if not hasattr(model, "has_exits"):
        raise TypeError(f"model must be a RecursiveForCausalLM, got {type(model).__name__}")
    sequences = check_tokens("sequences", sequences, model.config.vocab_size)
    check_length("sequences", sequences.shape[1], model.config)
    if sequences.shape[1] < 2:
        raise ValueError(f"sequences must hold two tokens at least, got shape {tuple(sequences.shape)}")
    batch_size = check_integer("batch_size", batch_size, minimum=1)
    loops = np.arange(1, model.config.num_loops + 1)[slice(None) if model.has_exits else slice(-1, None)]
    was_training, totals = model.training, np.zeros((4, len(loops)))
    model.eval()
    with provenance(device=str(model.device)) as record:
        for ids in sequences.split(batch_size):
            output = model(ids.to(model.device), output_exits=model.has_exits, use_cache=False)
            exits = output.exit_logits or (output.logits,)
            totals += _sums([logits[:, :-1].flatten(0, 1) for logits in exits], ids[:, 1:].flatten().to(model.device))
    model.train(was_training)
    loss, accuracy, agreement, share = totals / sequences[:, 1:].numel()
    arrays = {"loss": loss, "accuracy": accuracy, "agreement": agreement, "oracle_share": share}
    rows = [f"loop {i}" for i in loops]
    scalars = {"loss": float(loss[-1]), "mean_exit": float(share @ loops)}
    return Result("lm.relaxed_recursive/exits", arrays=arrays, scalars=scalars, rows=rows, provenance=record)


def _sums(exits: list[torch.Tensor], labels: torch.Tensor) -> np.ndarray:
    """Return sums (4, n_exits) over tokens: loss, correct, as the final exit, the first to be so.

    Logits are (tokens, vocabulary) per exit, labels (tokens,).
    """
    guesses = torch.stack([logits.argmax(-1) for logits in exits])
    agrees = guesses == guesses[-1]
    first = torch.nn.functional.one_hot(agrees.int().argmax(0), len(exits)).sum(0)
    loss = torch.stack([_cross_entropy(logits, labels, "sum") for logits in exits])
    sums = torch.stack([loss, (guesses == labels).sum(1), agrees.sum(1), first])
    return sums.double().cpu().numpy()


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the mean or sum over labels (...) that count, in float32 at least, for logits (..., n_classes)."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(wide.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction=reduction)


def _check_exits(exit_logits: Any, labels: Any) -> torch.Tensor:
    """Return which labels (...) count."""
    if not isinstance(exit_logits, (list, tuple)) or not all(isinstance(one, torch.Tensor) for one in exit_logits):
        raise TypeError(f"exit_logits must be a list of tensors, got {type(exit_logits).__name__}")
    if not all(one.is_floating_point() for one in exit_logits):
        raise TypeError(f"exit_logits must hold floats, got {', '.join(str(one.dtype) for one in exit_logits)}")
    if not exit_logits or exit_logits[0].ndim < 2 or len({one.shape for one in exit_logits}) > 1:
        shapes = [tuple(one.shape) for one in exit_logits]
        raise ValueError(f"exit_logits must be tensors (..., n_classes) of one shape, got {shapes}")
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64:
        raise TypeError(f"labels must be an int64 tensor, got {getattr(labels, 'dtype', type(labels).__name__)}")
    if labels.shape != exit_logits[0].shape[:-1]:
        expected = tuple(exit_logits[0].shape[:-1])
        raise ValueError(f"labels must have the shape of the logits {expected}, got {tuple(labels.shape)}")
    counted = labels != IGNORED
    inside = (labels >= 0) & (labels < exit_logits[0].shape[-1])
    if not counted.any() or not (inside | ~counted).all():
        raise ValueError("labels must be classes, or -100 where they do not count but not everywhere")
    if not all(torch.isfinite(one.detach()).all() for one in exit_logits):
        raise ValueError("exit_logits must be finite, got NaN or infinity")
    return counted
