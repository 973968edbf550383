"""Training and testing the baselines on a built benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from natwise.core.random import RandomState, Streams
from natwise.core.training import Trainer
from natwise.core.validation import check_array, check_device, check_flag, check_integer, check_option, check_real
from natwise.result import Result, provenance

from ._benchmark import TASKS
from ._discretizer import Discretizer
from ._metrics import BUCKET_EDGES, BUCKET_MEANS, binary_metrics, length_of_stay_metrics, multilabel_metrics
from ._models import MORTALITY_STEP, N_BUCKETS, ChannelWiseLSTM, LSTMClassifier, MultitaskLSTM, channel_columns
from ._recurrent import inside_mask
from ._samples import HOURLY, PrefixData, TaskData, load_task, normalize

MODELS = ("lstm", "channel_wise", "logistic_regression")
Batch: TypeAlias = dict[str, torch.Tensor]
Predictions: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]
_N_OUTPUTS = {"in_hospital_mortality": 1, "decompensation": 1, "length_of_stay": N_BUCKETS, "phenotyping": 25}
_EDGES = torch.tensor(BUCKET_EDGES, dtype=torch.float32)


@dataclass(frozen=True)
class BaselineSettings:
    """Size of a network and length of its training; the defaults of `published_settings` are those of the paper's code.

    Parameters
    ----------
    hidden, depth, size_coef : int
        As for `LSTMClassifier` and `ChannelWiseLSTM`.
    dropout : float
        As for `LSTMClassifier`.
    deep_supervision : bool
        For the hourly tasks: one pass per stay with the loss at every hour, instead of a pass per sample. For the
        others: target replication, `replication` times the mean loss over all steps and the rest at the last.
    replication : float
        Used only with `deep_supervision`.
    task_weights : tuple of four floats
        Of in-hospital mortality, decompensation, length of stay and phenotyping in the multitask loss.
    max_epochs, batch_size : int
        Passes over the training stays, and stays per step.
    learning_rate : float
        Of Adam.
    """

    hidden: int = 16
    depth: int = 1
    size_coef: int = 4
    dropout: float = 0.3
    deep_supervision: bool = False
    replication: float = 0.5
    task_weights: tuple[float, float, float, float] = (0.2, 1.0, 1.5, 1.0)
    max_epochs: int = 20
    batch_size: int = 8
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("hidden", "depth", "size_coef", "max_epochs", "batch_size"):
            check_integer(name, getattr(self, name), minimum=1)
        for name in ("dropout", "replication"):
            check_real(name, getattr(self, name), minimum=0.0, maximum=1.0)
        check_flag("deep_supervision", self.deep_supervision)
        check_real("learning_rate", self.learning_rate, minimum=0.0, exclusive=True)
        if check_array("task_weights", self.task_weights, shape=(4,)).min() < 0:
            raise ValueError(f"task_weights must be >= 0, got {self.task_weights}")


def published_settings(task: str, model: str) -> BaselineSettings:
    """Return the best settings of the paper's code for a task and a network ("lstm" or "channel_wise")."""
    check_option("task", task, TASKS)
    check_option("model", model, MODELS[:2])
    hourly = task in HOURLY
    if model == "lstm":
        hidden = {"in_hospital_mortality": 16, "phenotyping": 256, "multitask": 512}.get(task, 128)
        epochs = {"in_hospital_mortality": 27, "phenotyping": 19}.get(task, 20)
        depth = 2 if task == "in_hospital_mortality" else 1
        return BaselineSettings(hidden, depth, deep_supervision=hourly, max_epochs=epochs)
    hidden, coef = (8, 4) if task == "in_hospital_mortality" else (16, 8)
    return BaselineSettings(hidden, 1, coef, deep_supervision=hourly, batch_size=16 if task == "multitask" else 8)


def train_task(
    folder: str | os.PathLike[str],
    task: str,
    *,
    model: str = "lstm",
    settings: BaselineSettings | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    random_state: RandomState = 0,
    verbose: int = 0,
) -> Result:
    """Train a baseline on a built task and measure it on the test patients.

    Parameters
    ----------
    folder : path
        What `MimicBenchmark.build` wrote.
    task : str
        One of the five tasks.
    model : {"lstm", "channel_wise", "logistic_regression"}
        The baseline; logistic regression is not published for the multitask data.
    settings : BaselineSettings, optional
        Of the networks. Default: `published_settings`.
    checkpoint : path, optional
        File of the training's state: written while it runs, resumed from when it exists.
    device : str
        Where the networks are trained.
    random_state : int, Generator, RandomState, Streams or None
        Weights, order of the stays, dropout.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Returns
    -------
    Result
        Scalars: the metrics on the test patients, as ``test/<metric>`` and, of validation patients, ``val/<metric>``
        (for the multitask data with the task between); NaN where the part holds one class only. Arrays
        ``<task>/y_true`` and ``<task>/y_score`` of the test samples.
    """
    check_option("task", task, TASKS)
    check_option("model", model, MODELS)
    check_device("device", device)
    if model == "logistic_regression":
        from ._logistic import train_logistic_regression

        return train_logistic_regression(folder, task, random_state=random_state)
    settings = published_settings(task, model) if settings is None else _check_settings(settings)
    streams, discretizer = Streams.of(random_state), Discretizer()
    with provenance(device=device) as record:
        data = load_task(folder, task, discretizer)
        normalize(data, discretizer)
        network = build_network(task, model, settings, streams)
        seen = fit_network(
            network, task, data, settings, streams, checkpoint=checkpoint, device=device, verbose=verbose
        )
        outputs = {part: predict(network, task, data[part]) for part in ("val", "test") if len(data[part])}
    scalars = {f"{part}/{name}": value for part, found in outputs.items() for name, value in measure(found).items()}
    return Result(
        "timeseries.mimic/train",
        arrays={
            f"{name}/{key}": array
            for name, pair in outputs.get("test", {}).items()
            for key, array in zip(("y_true", "y_score"), pair, strict=True)
        },
        scalars={**scalars, **seen},
        params={"task": task, "model": model, **asdict(settings)},
        provenance=record,
    )


def _check_settings(settings: Any) -> BaselineSettings:
    if not isinstance(settings, BaselineSettings):
        raise TypeError(f"settings must be BaselineSettings, got {type(settings).__name__}")
    return settings


def build_network(task: str, model: str, settings: BaselineSettings, random_state: RandomState = None) -> nn.Module:
    """Return an untrained network for a task."""
    channels = channel_columns() if model == "channel_wise" else None
    size = {"hidden": settings.hidden, "depth": settings.depth, "dropout": settings.dropout}
    with Streams.of(random_state).torch_global("init"):
        if task == "multitask":
            return MultitaskLSTM(**size, channels=channels, size_coef=settings.size_coef)  # type: ignore[arg-type]
        size |= {"n_outputs": _N_OUTPUTS[task], "every_step": settings.deep_supervision}
        if channels is None:
            return LSTMClassifier(**size)  # type: ignore[arg-type]
        return ChannelWiseLSTM(channels, **size, size_coef=settings.size_coef)  # type: ignore[arg-type]


def fit_network(
    network: nn.Module,
    task: str,
    data: Mapping[str, TaskData],
    settings: BaselineSettings,
    streams: Streams,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    verbose: int = 0,
) -> dict[str, float]:
    """Train a network in place; the weights with the lowest validation loss are kept where there are such patients."""
    per_sample = task in HOURLY and not settings.deep_supervision
    train: Any = PrefixData(data["train"]) if per_sample else data["train"]
    if not len(train):
        raise ValueError(f"folder must hold training samples of {task}, got none")
    trainer = Trainer(
        max_epochs=settings.max_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        device=device,
        random_state=streams.child("training"),
        verbose=verbose,
    )
    loss = partial(_training_loss, task, settings)
    validate = partial(_validation_loss, task, settings, data["val"]) if len(data["val"]) else None
    history = trainer.fit(network, loss, train, validate=validate, collate=collate, checkpoint=checkpoint)
    return {"epochs": float(len(history.losses)), "train/loss": history.losses[-1]}


def collate(samples: list[dict[str, np.ndarray]]) -> Batch:
    """Return a batch: x and what is hourly padded with zeros to the longest stay; "lengths" says how long each is."""
    batch: Batch = {"lengths": torch.tensor([len(sample["x"]) for sample in samples])}
    for name in samples[0]:
        tensors = [torch.as_tensor(sample[name]) for sample in samples]
        padded = name == "x" or "hourly" in name
        batch[name] = nn.utils.rnn.pad_sequence(tensors, batch_first=True) if padded else torch.stack(tensors)
    return batch


def _training_loss(task: str, settings: BaselineSettings, network: nn.Module, batch: Batch, step: int) -> torch.Tensor:
    """Return the loss of a batch; of the multitask data the weighted sum over the tasks."""
    logits = network(batch["x"], batch["lengths"])
    if task != "multitask":
        return _task_loss(task, logits, batch, settings)
    total = torch.zeros((), device=batch["x"].device)
    for name, weight in zip(_N_OUTPUTS, settings.task_weights, strict=True):
        loss = _task_loss(name, _read_out(name, logits[name]), _of_task(name, batch), settings)
        total = total + weight * loss
    return total


def _of_task(task: str, batch: Batch) -> Batch:
    """Return the targets of one task of a multitask batch."""
    return {name.removeprefix(f"{task}/"): value for name, value in batch.items() if name.startswith(f"{task}/")}


def _read_out(task: str, logits: torch.Tensor) -> torch.Tensor:
    """Return the multitask logits that answer a task: of mortality after 48 hours, of phenotypes at the end."""
    if task == "in_hospital_mortality":
        return logits[:, min(MORTALITY_STEP, logits.shape[1] - 1)]
    return logits[:, -1] if task == "phenotyping" else logits


def _task_loss(task: str, logits: torch.Tensor, batch: Batch, settings: BaselineSettings) -> torch.Tensor:
    if "hourly_y" in batch:
        return _masked_mean(_losses(task, logits, batch["hourly_y"]), batch["hourly_mask"])
    y = batch["y"]
    if logits.ndim == 2:
        losses = _losses(task, logits, y)
        return _masked_mean(losses, batch["mask"][:, 0]) if "mask" in batch else losses.mean()
    steps = logits.shape[1]
    replicated = _losses(task, logits, y[:, None].expand(-1, steps, *y.shape[1:]))
    everywhere = _masked_mean(replicated, inside_mask(batch["lengths"], steps).to(replicated.dtype))
    return (1 - settings.replication) * replicated[:, -1].mean() + settings.replication * everywhere


def _losses(task: str, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the loss of each sample: cross-entropy of the bucket, or of labels, their mean."""
    if task == "length_of_stay":
        buckets = torch.bucketize(y, _EDGES.to(y.device), right=True)
        return cross_entropy(logits.flatten(0, -2), buckets.flatten(), reduction="none").view(y.shape)
    return binary_cross_entropy_with_logits(logits, y.view(logits.shape), reduction="none").mean(dim=-1)


def _masked_mean(losses: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (losses * mask).sum() / mask.sum().clamp(min=1.0)


def _validation_loss(task: str, settings: BaselineSettings, data: TaskData, network: nn.Module) -> float:
    per_sample = task in HOURLY and not settings.deep_supervision
    batches = _batches(PrefixData(data) if per_sample else data, _device(network))
    losses = [(len(batch["lengths"]), _training_loss(task, settings, network, batch, 0).item()) for batch in batches]
    return sum(n * loss for n, loss in losses) / sum(n for n, _ in losses)


def _batches(data: TaskData | PrefixData, device: torch.device, size: int = 64) -> Iterator[Batch]:
    """Yield all samples in order; what is not shuffled need not fit the memory of training."""
    for first in range(0, len(data), size):
        batch = collate([data[i] for i in range(first, min(first + size, len(data)))])
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


@torch.no_grad()
def predict(network: nn.Module, task: str, data: TaskData | PrefixData) -> Predictions:
    """Return y_true and y_score of every sample, by task: probabilities, or hours for the length of stay.

    Of hourly tasks a causal network answers all samples of a stay in one pass; `PrefixData` asks them one by one.
    """
    network.eval()
    every_step = task == "multitask" or network.head.every_step  # type: ignore[union-attr]
    if isinstance(data, TaskData) and task in HOURLY and not every_step:
        data = PrefixData(data)
    collected: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch in _batches(data, _device(network)):
        logits = network(batch["x"], batch["lengths"])
        if task != "multitask":
            last = logits.ndim == 3 and "y" in batch
            collected.setdefault(task, []).append(_answers(task, logits[:, -1] if last else logits, batch))
        else:
            for name in _N_OUTPUTS:
                answers = _answers(name, _read_out(name, logits[name]), _of_task(name, batch))
                collected.setdefault(name, []).append(answers)
    return {
        name: (np.concatenate([y for y, _ in pairs]), np.concatenate([score for _, score in pairs]))
        for name, pairs in collected.items()
    }


def _answers(task: str, logits: torch.Tensor, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores of the samples that count."""
    y = batch["hourly_y"] if "hourly_y" in batch else batch["y"]
    if task == "length_of_stay":
        scores = torch.as_tensor(BUCKET_MEANS, device=y.device)[logits.argmax(dim=-1)]
    else:
        scores = torch.sigmoid(logits).view(y.shape)
    mask = batch.get("hourly_mask", batch.get("mask"))
    if mask is not None:
        y, scores = y[mask > 0], scores[mask > 0]
    if task != "phenotyping":
        y, scores = y.flatten(), scores.flatten()
    return y.double().cpu().numpy(), scores.double().cpu().numpy()


def measure(predictions: Predictions) -> dict[str, float]:
    """Return the metrics of predictions; with the task before the name when there are several."""
    found: dict[str, float] = {}
    for task, (y_true, y_score) in predictions.items():
        prefix = f"{task}/" if len(predictions) > 1 else ""
        found |= {f"{prefix}{name}": value for name, value in _metrics(task, y_true, y_score).items()}
    return found


def _metrics(task: str, y_true: np.ndarray, y_score: np.ndarray) -> dict[str, float]:
    """Return the metrics of one task; NaN for those that need both classes where there is one."""
    if task == "length_of_stay":
        return length_of_stay_metrics(y_true, y_score) if len(y_true) else {"kappa": np.nan, "mad": np.nan}
    if task == "phenotyping":
        both = (y_true.max(axis=0, initial=0) > 0) & (y_true.min(axis=0, initial=1) < 1)
        if not both.any():
            return {"ave_auc_macro": np.nan, "ave_auc_micro": np.nan, "n_labels": 0.0}
        areas = multilabel_metrics(y_true[:, both], y_score[:, both])
        del areas["auc_scores"]
        return {**areas, "n_labels": float(both.sum())}
    if not 0 < y_true.sum() < len(y_true):
        return {"auroc": np.nan, "auprc": np.nan}
    return binary_metrics(y_true, y_score)
