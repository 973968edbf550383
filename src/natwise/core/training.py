"""One training loop for every method that trains a torch module, on Hugging Face accelerate.

Everything random in a step depends only on the seed and the number of the step, so a run that was killed at
any point and is started again with the same checkpoint file ends with the same bits as an undisturbed one (on a
GPU, as far as its kernels repeat themselves).
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import default_collate

from natwise.core.batches import Batches
from natwise.core.io import load_torch, save_torch
from natwise.core.progress import progress
from natwise.core.random import RandomState, Streams, seed_torch_global
from natwise.core.sharding import full_state, load_full_state, shard_on_cpu
from natwise.core.validation import check_device, check_integer, check_option, check_real, shorten

if TYPE_CHECKING:
    from accelerate import Accelerator

Loss: TypeAlias = Callable[[torch.nn.Module, Any, int], torch.Tensor]
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class TrainingHistory:
    """What happened in a run.

    Attributes
    ----------
    losses : tuple of float
        Mean training loss of every finished epoch, over its samples.
    scores : tuple of float
        What `validate` returned after every finished epoch; empty without validation.
    best_epoch : int or None
        The epoch (from 0) with the lowest score, whose weights the model holds; None without validation.
    n_steps : int
        Optimiser steps taken, those before a resume included.
    stopped : str
        Why the run ended: ``"max_epochs"``, ``"patience"`` or ``"max_seconds"``.
    """

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    best_epoch: int | None
    n_steps: int
    stopped: str


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How to train; `fit` does it.

    Parameters
    ----------
    max_epochs : int
        Passes over the data.
    batch_size : int
        Largest number of samples per step, over all processes together. The steps of an epoch are as equal as
        they can be: 9 samples in batches of 4 are taken by threes.
    learning_rate : float
        Handed to `optimizer` as ``lr``.
    optimizer : callable
        ``optimizer(parameters, lr=learning_rate)`` returns a torch optimiser. Default: Adam.
    schedule : callable, optional
        ``schedule(step, n_steps)`` returns the factor on the learning rate at a step.
    steps_per_epoch : int, optional
        Length of an epoch when the data are drawn by a function; needed only then.
    patience : int, optional
        Stop when the validation score has not improved for so many epochs. Needs `validate`.
    max_grad_norm : float, optional
        Clip the norm of the whole gradient.
    max_seconds : float, optional
        Stop after so many seconds of this call, after at least one step.
    checkpoint_every : float
        Seconds between two checkpoints; 0 writes one after every step.
    device : str or torch.device
        Where to train. Under a launcher of several processes, each takes its own device of this type.
    mixed_precision : {"no", "bf16", "fp16"}
        Precision of the forward pass; weights stay as they are. fp16 needs a GPU.
    random_state : int, Generator, RandomState, Streams or None
        Orders the data and seeds what the model draws in training, such as dropout.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.functional import mse_loss
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> model = torch.nn.Linear(1, 1)
    >>> trainer = Trainer(max_epochs=50, batch_size=16, learning_rate=0.1, random_state=0)
    >>> def loss(model, batch, step):
    ...     return mse_loss(model(batch[0]), batch[1])
    >>> history = trainer.fit(model, loss, (x, 3 * x))
    >>> bool(abs(model.weight.item() - 3) < 0.01), history.n_steps
    (True, 200)
    """

    max_epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    schedule: Callable[[int, int], float] | None = None
    steps_per_epoch: int | None = None
    patience: int | None = None
    max_grad_norm: float | None = None
    max_seconds: float | None = None
    checkpoint_every: float = 60.0
    device: str | torch.device = "cpu"
    mixed_precision: str = "no"
    random_state: RandomState = None
    verbose: int = 0

    def fit(
        self,
        model: torch.nn.Module,
        loss: Loss,
        data: Any,
        *,
        validate: Callable[[torch.nn.Module], float] | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> TrainingHistory:
        """Train `model` in place; it is left on the device, in evaluation mode, with the best weights.

        torch's global generators, accelerate's state and the thread settings are as before afterwards.

        Started by ``accelerate launch`` or ``torch.distributed.run``, the processes share each batch (DDP) and give
        what one process gives up to rounding, save for batch normalisation and dropout, which act per process. With
        ``accelerate launch --use_fsdp --fsdp_version 2`` they share the weights too, and the model stays sharded:
        `torch.distributed.checkpoint.state_dict.get_model_state_dict` gathers it. Its checkpoints are whole files,
        which any number of processes takes up.

        Parameters
        ----------
        model : torch.nn.Module
            The parameters that require a gradient are trained.
        loss : callable
            ``loss(model, batch, step)`` returns the mean loss over the samples of the batch. It must call the
            model it is given as a whole (not its parts), since that may be wrapped for several processes. A
            loss that is a module itself has its state kept in the checkpoint.
        data : tensor, array, tuple or dict of these, dataset, or callable
            Arrays of equal first length, from which rows are taken; or anything else with a length that gives
            a sample for an index; or ``data(batch_size, rng)`` that draws a batch of arrays.
        validate : callable, optional
            ``validate(model)`` returns the score of an epoch, lower is better; the model comes in evaluation mode
            and without gradients. The best weights are kept.
        collate : callable
            Makes a batch from a list of samples when `data` is a dataset.
        checkpoint : path, optional
            File to resume from when it exists, and to write while training. Delete it to start afresh.

        Raises
        ------
        TypeError, ValueError
            For a wrong argument; for a checkpoint that is damaged or of another run, naming the file; when
            the loss or the score is not finite.
        """
        device = self._check(model, loss, validate)
        batches = Batches(data, self.batch_size, self.steps_per_epoch, collate)
        with _private_accelerator(device, self.mixed_precision) as accelerator:
            run = _Run(self, accelerator, model, loss, batches, validate)
            with Streams(0).torch_global("run", run.device), run.prepared():  # each step seeds the generators anew
                if checkpoint is not None:
                    run.open(Path(checkpoint))
                return run.train()

    def _check(self, model: Any, loss: Any, validate: Any) -> torch.device:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("model must have a parameter that requires a gradient, got none")
        for name, value in {"loss": loss, "optimizer": self.optimizer}.items():
            if not callable(value):
                raise TypeError(f"{name} must be callable, got {shorten(value)}")
        for name in ("max_epochs", "batch_size"):
            check_integer(name, getattr(self, name), minimum=1)
        for name in ("steps_per_epoch", "patience"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        check_real("learning_rate", self.learning_rate, minimum=0.0)
        check_real("checkpoint_every", self.checkpoint_every, minimum=0.0)
        for name in ("max_grad_norm", "max_seconds"):
            if getattr(self, name) is not None:
                check_real(name, getattr(self, name), minimum=0.0, exclusive=True)
        if self.patience is not None and validate is None:
            raise ValueError(f"patience must be None without validate, got {self.patience}")
        check_option("mixed_precision", self.mixed_precision, PRECISIONS)
        device = check_device("device", self.device)
        if self.mixed_precision == "fp16" and device.type != "cuda":
            raise ValueError(f"mixed_precision='fp16' must be trained on a GPU, got device {str(device)!r}")
        return device


@dataclass
class _State:
    """What a checkpoint holds next to the tensors of model and optimiser."""

    seed: int
    batch_size: int
    n_samples: int
    steps_per_epoch: int
    optimizer: str
    step: int = 0
    epoch_loss: float = 0.0
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def best_epoch(self) -> int | None:
        return int(np.argmin(self.scores)) if self.scores else None


class _Run:
    """One call of `Trainer.fit`."""

    def __init__(
        self,
        options: Trainer,
        accelerator: Accelerator,
        model: torch.nn.Module,
        loss: Loss,
        batches: Batches,
        validate: Callable[[torch.nn.Module], float] | None,
    ):
        self.options, self.accelerator, self.batches, self.validate = options, accelerator, batches, validate
        self.model, self.loss = model, loss
        self.device, self.sharded = accelerator.device, accelerator.is_fsdp2
        self.n_steps = options.max_epochs * batches.steps_per_epoch
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer: Any = options.optimizer(trained, lr=options.learning_rate)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.state = _State(
            seed=int(self._from_main(Streams.of(options.random_state).seed("training"))),
            batch_size=options.batch_size,
            n_samples=batches.n_samples,
            steps_per_epoch=batches.steps_per_epoch,
            optimizer=type(self.optimizer).__name__,
        )
        self.best: dict[str, torch.Tensor] | None = None
        self.checkpoint: Path | None = None

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Wrap model and optimiser for device, precision and processes; unwrap the model at the end."""
        before = set(vars(self.model))
        self.wrapped, optimizer = self.accelerator.prepare(self.model, self.optimizer)
        if self.accelerator.num_processes == 1 and self.accelerator.scaler is None:
            self.backward = torch.Tensor.backward  # spares accelerate's search for packages in each step: 0.3 ms
        else:
            self.backward, self.optimizer = self.accelerator.backward, optimizer
        self.optimizer.zero_grad()
        if isinstance(self.loss, torch.nn.Module):
            self.loss.to(self.device)
        try:
            yield
        finally:
            self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
            for name in {"forward", "_is_accelerate_prepared"} - before:  # what unwrapping leaves behind
                vars(self.model).pop(name, None)
            self.model.eval()

    def train(self) -> TrainingHistory:
        state = self.state
        self.streams = Streams(state.seed)
        self.draws = self.streams.child("draws").child(self.accelerator.process_index)
        self.started = self.saved = time.monotonic()
        wanted = bool(self.options.verbose) and self.accelerator.is_main_process
        with progress(self.n_steps, wanted=wanted, done=state.step) as report:
            while (stopped := self._stopped()) is None:
                loss = self._step()
                if state.step % state.steps_per_epoch == 0:
                    self._end_epoch()
                report(state.step, self._describe(loss))
                if self._save_is_due():
                    self._save()
        self._save()
        if self.best is not None:
            self.model.load_state_dict(self.best)
        return TrainingHistory(tuple(state.losses), tuple(state.scores), state.best_epoch(), state.step, stopped)

    def _stopped(self) -> str | None:
        state, options = self.state, self.options
        best = state.best_epoch()
        if options.patience and best is not None and len(state.scores) - 1 - best >= options.patience:
            return "patience"
        if state.step >= self.n_steps:
            return "max_epochs"
        if options.max_seconds is None or state.step == 0:
            return None
        late = time.monotonic() - self.started >= options.max_seconds
        return "max_seconds" if self._from_main(late) else None

    def _step(self) -> float:
        accelerator, state, options = self.accelerator, self.state, self.options
        process, n_processes = accelerator.process_index, accelerator.num_processes
        seed_torch_global(self.draws.seed(state.step), self.device)
        batch, weight = self.batches.part(state.step, self.streams, process, n_processes)
        self.wrapped.train()
        loss = self._loss(batch, weight)
        mean = accelerator.reduce(loss.detach(), "mean").item()
        if not math.isfinite(mean):
            raise ValueError(f"the training loss is {mean} at step {state.step}; try a lower learning_rate")
        self.backward(loss)
        if options.max_grad_norm is not None:
            accelerator.clip_grad_norm_(self.wrapped.parameters(), options.max_grad_norm)
        factor = options.schedule(state.step, self.n_steps) if options.schedule else 1.0
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        state.epoch_loss += mean * self.batches.share_of_epoch(state.step)
        state.step += 1
        return mean

    def _loss(self, batch: Any, weight: float) -> torch.Tensor:
        from accelerate.utils import send_to_device

        loss = self.loss(self.wrapped, send_to_device(batch, self.device), self.state.step)
        if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.requires_grad:
            raise TypeError(f"loss must return a scalar tensor with a gradient, got {shorten(loss)}")
        return loss if weight == 1 else loss * weight

    def _end_epoch(self) -> None:
        state = self.state
        state.losses.append(state.epoch_loss)
        state.epoch_loss = 0.0
        if self.validate is None:
            return
        self.model.eval()
        with torch.no_grad():
            score = self._from_main(float(self.validate(self.model)))
        if not math.isfinite(score):
            raise ValueError(f"validate must return a finite score, got {score} after {len(state.losses)} epochs")
        state.scores.append(score)
        if state.best_epoch() == len(state.scores) - 1:
            self.best = copy.deepcopy(self.model.state_dict())

    def _from_main(self, value: Any) -> Any:
        """Return the main process's `value`, so that all processes decide alike."""
        if self.accelerator.num_processes == 1:
            return value
        from accelerate.utils import broadcast

        return broadcast(torch.tensor(value, dtype=torch.float64, device=self.device)).item()

    # checkpoints

    def open(self, path: Path) -> None:
        """Write checkpoints to `path`, and resume from the one that is there."""
        self.checkpoint = path
        if path.exists():
            content = load_torch(path)
            try:
                self._restore(content)
            except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{path} is no checkpoint of this run: {reason}") from error
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has read

    def _restore(self, content: dict[str, Any]) -> None:
        state = _State(**content["state"])
        for name in ("seed", "batch_size", "n_samples", "steps_per_epoch", "optimizer"):
            theirs, ours = getattr(state, name), getattr(self.state, name)
            if theirs != ours and not (name == "seed" and self.options.random_state is None):
                raise ValueError(f"it was written with {name} {theirs}, this run has {ours}")
        best = content["best"]
        if self.sharded:
            best = load_full_state(self.model, self.optimizer.optimizer, content)
        for name, holder in self._holders().items():
            holder.load_state_dict(content[name])
        self.state, self.best = state, best

    def _save_is_due(self) -> bool:
        due = self.checkpoint is not None and time.monotonic() - self.saved >= self.options.checkpoint_every
        return bool(self._from_main(due)) if self.sharded else due  # all processes are needed to gather the weights

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.checkpoint is None:
            return
        content: dict[str, Any] = {"best": self.best}
        if self.sharded:
            content = full_state(self.model, self.optimizer.optimizer, self.best)
        if not self.accelerator.is_main_process:
            return
        content |= {name: holder.state_dict() for name, holder in self._holders().items()}
        save_torch(self.checkpoint, {**content, "state": asdict(self.state)})

    def _holders(self) -> dict[str, Any]:
        holders = {} if self.sharded else {"model": self.model, "optimizer": self.optimizer}
        if isinstance(self.loss, torch.nn.Module):
            holders["loss"] = self.loss
        if self.accelerator.scaler is not None:
            holders["scaler"] = self.accelerator.scaler
        return holders

    def _describe(self, loss: float) -> str:
        scores, epoch = self.state.scores, math.ceil(self.state.step / self.state.steps_per_epoch)
        best = f", score {scores[-1]:.4g}, best {min(scores):.4g}" if scores else ""
        return f"epoch {epoch}/{self.options.max_epochs}, loss {loss:.4g}{best}"


@contextmanager
def _private_accelerator(device: torch.device, mixed_precision: str) -> Iterator[Accelerator]:
    """Yield an accelerator of its own; accelerate's process-wide state is put back as it was afterwards."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import patch_environment

    shared = [state._shared_state for state in (AcceleratorState, GradientState, PartialState)]
    before = [dict(state) for state in shared]
    # accelerate changes torch's threads when the first is unset; a lone process takes its device from the second
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads()))}
    if "LOCAL_RANK" not in os.environ:
        environment["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        for state in shared:
            state.clear()
        with patch_environment(**environment):
            accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed_precision)
            shard_on_cpu(accelerator, mixed_precision)
        yield accelerator
    finally:
        for state, content in zip(shared, before, strict=True):
            state.clear()
            state.update(content)
