"""The learner: meta-training on tasks of a sampler, then queries are classified from a context without a gradient."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch.nn.functional import binary_cross_entropy_with_logits

from natwise.core.random import RandomState, Streams
from natwise.core.training import Trainer
from natwise.core.validation import check_flag, check_integer, check_option, check_real
from natwise.shift.in_context._tasks import (
    CONTEXT,
    QUERY,
    Sampler,
    Tasks,
    as_tensors,
    check_features,
    check_labels,
    check_tasks,
    draw_tasks,
    take_rows,
)
from natwise.shift.in_context._tokens import (
    CONSTRUCTIONS,
    N_MARKERS,
    examples_seen,
    in_context_tokens,
    mark_queries,
)
from natwise.shift.in_context._transformer import InContextTransformer

_QUERIES_AT_ONCE = 256


class SpuriousInContextLearner(BaseEstimator):
    """Few-shot classifier that learns from its context alone, and is trained not to take the context's shortcut.

    A transformer is trained on many small tasks, each a context of labelled examples whose label agrees with a
    spurious attribute, and queries that are drawn balanced over label and attribute. Afterwards it classifies
    queries of a new task from its context in one forward pass.

    Parameters
    ----------
    n_layer, d_model, n_head : int
        Size of the transformer.
    permute : bool
        In training, permute the features of each task at random, the same for context and queries: a single task
        becomes many, and cannot be learned by heart (the paper's +P). Off in prediction.
    group_tokens : bool
        Tell the attribute of the context's examples too (+G); it is then needed in `set_context`.
    queries : {"sampled", "context"}
        Train on the sampler's queries; or on the next example of the context, with the sampler's last query at the
        end (the paper's naive learner, which reads the other queries of the sampler nowhere).
    exchange_labels : bool
        In training, exchange 0 and 1 in the labels of a task with probability one half, and in its attributes likewise:
        what is left in a single task after permutation, such as the sum of the features, tells no label either.
    induction : float
        Probability that a query in training is replaced by one of the examples before it, whose label then only has
        to be copied (+I).
    construction : {"annotated", "compact"}
        Two tokens per example, or one; see `in_context_tokens`.
    n_steps, batch_size : int
        Steps of meta-training, and tasks per step.
    learning_rate, warmup_steps : float, int
        Adam's rate after a linear warm-up from 0; it then falls along a cosine to 0 at the last step.
    n_positions : int
        Longest context that is taken, in tokens, plus one for the query.
    mixed_precision : {"no", "bf16", "fp16"}
        Precision of the forward pass in training.
    device : str or torch.device
        Where to train and predict.
    random_state : int, Generator, RandomState, Streams or None
        Seeds initial weights, class tokens, tasks and permutations.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Attributes
    ----------
    transformer_ : InContextTransformer
        The trained model. Its tokens have three coordinates more than X, in front, which say what a token is.
    class_tokens_, group_tokens_ : tensor of shape (2, n_features + 3)
        A random direction of the mean norm of X, for label or attribute 0, and its negative for 1.
    history_ : TrainingHistory
        Loss (nats per query) of every step.
    n_features_in_ : int
        Width of X in meta-training.
    classes_ : ndarray of shape (2,)
        0 and 1.
    context_ : list of pairs of tensors
        Keys and values of the context; set by `set_context`.

    Notes
    -----
    The order of the examples matters to the transformer. Predictions from contexts longer than those of the
    meta-training are extrapolations. The original overwrites three features of the data by the markers and mixes
    them into the permutation; here markers have coordinates of their own.

    Examples
    --------
    >>> from natwise.shift import SyntheticSampler
    >>> learner = SpuriousInContextLearner(1, 16, 2, n_steps=5, warmup_steps=2, random_state=0)
    >>> learner = learner.meta_fit(SyntheticSampler(n_context=4))
    >>> X = np.random.default_rng(0).normal(size=(4, 8))
    >>> learner.set_context(X, [0, 1, 0, 1]).predict_proba(X[:3]).shape
    (3, 2)
    """

    def __init__(
        self,
        n_layer: int = 6,
        d_model: int = 256,
        n_head: int = 8,
        *,
        permute: bool = True,
        group_tokens: bool = False,
        queries: str = "sampled",
        exchange_labels: bool = False,
        induction: float = 0.0,
        construction: str = "annotated",
        n_steps: int = 20_000,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        warmup_steps: int = 1000,
        n_positions: int = 4096,
        mixed_precision: str = "no",
        device: str | torch.device = "cpu",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.n_layer = n_layer
        self.d_model = d_model
        self.n_head = n_head
        self.permute = permute
        self.group_tokens = group_tokens
        self.queries = queries
        self.exchange_labels = exchange_labels
        self.induction = induction
        self.construction = construction
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.n_positions = n_positions
        self.mixed_precision = mixed_precision
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def meta_fit(
        self, sampler: Sampler, *, checkpoint: str | os.PathLike[str] | None = None
    ) -> SpuriousInContextLearner:
        """Train the transformer on tasks.

        Parameters
        ----------
        sampler : callable
            ``sampler(n_tasks, rng)`` returns a dict of arrays or tensors: X (n_tasks, n_context, n_features),
            y and attribute (n_tasks, n_context), X_query (n_tasks, n_queries, n_features), y_query and
            attribute_query (n_tasks, n_queries); labels and attributes 0 or 1. The attributes are read with
            `group_tokens` only, and those of the queries never.
        checkpoint : path, optional
            File to resume from when it exists, and to write while training. A killed run that is started again with
            the same int for `random_state` ends with the same bits.

        Raises
        ------
        TypeError, ValueError
            For a wrong option; for a sampler whose first tasks lack an entry, do not fit together, are not finite
            or hold labels other than 0 and 1.
        """
        self._check()
        streams = Streams.of(self.random_state)
        needed = (*(CONTEXT if self.group_tokens else CONTEXT[:2]), *QUERY[:2])
        if not callable(sampler):
            raise TypeError(f"sampler must be callable, got {type(sampler).__name__}")
        drawn = sampler(self.batch_size, streams.numpy("first"))
        first = as_tensors(check_tasks("sampler's tasks", drawn, needed, self.batch_size))
        n_features = first["X"].shape[2]
        norm = float(first["X"].norm(dim=-1).mean())
        with streams.torch_global("init"):
            model = InContextTransformer(
                n_features + N_MARKERS, self.n_layer, self.d_model, self.n_head, n_positions=self.n_positions
            )
        self.class_tokens_ = _opposite(n_features + N_MARKERS, norm, streams.torch("class-tokens"))
        self.group_tokens_ = _opposite(n_features + N_MARKERS, norm, streams.torch("group-tokens"))
        trainer = Trainer(
            max_epochs=self.n_steps,
            steps_per_epoch=1,  # a loss per step
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule=partial(warmup_cosine, warmup_steps=self.warmup_steps),
            mixed_precision=self.mixed_precision,
            device=self.device,
            random_state=streams.child("training"),
            verbose=self.verbose,
        )
        self.history_ = trainer.fit(model, self._loss, partial(draw_tasks, sampler), checkpoint=checkpoint)
        self.transformer_, self.n_features_in_, self.classes_ = model, n_features, np.arange(2)
        self.__dict__.pop("context_", None)
        return self

    def set_context(self, X: Any, y: Any, attribute: Any = None) -> SpuriousInContextLearner:
        """Read the labelled examples of a task, once for all queries.

        Parameters
        ----------
        X : array-like of shape (n_context, n_features)
            Examples; cast to float32.
        y : array-like of shape (n_context,)
            Labels, 0 and 1: of both classes, as a context with one says nothing of the other.
        attribute : array-like of shape (n_context,), optional
            Spurious labels, 0 or 1. Needed with `group_tokens`, and not used without.

        Raises
        ------
        NotFittedError
            Before `meta_fit`.
        TypeError, ValueError
            For data of a wrong shape, not finite, or with labels other than 0 and 1; for a context too long, or
            without one of the classes.
        """
        tasks = self._check_context(X, y, attribute)
        present = tasks["y"].unique()
        if len(present) < 2:
            raise ValueError(f"y must hold both classes, 0 and 1, got {int(present)} alone")
        nothing = tasks["X"][:, :0]
        with torch.no_grad():
            tokens, _ = self._tokens({**tasks, "X_query": nothing})
            self.context_ = self.transformer_.encode(tokens)
        return self

    def predict_proba(self, Xq: Any) -> np.ndarray:
        """Return the probabilities of class 0 and 1 (n_queries, 2), float64, of queries Xq (n_queries, n_features).

        The context was encoded once, a query costs one token. Queries do not see each other.

        Raises
        ------
        NotFittedError
            Before `set_context`.
        TypeError, ValueError
            For queries of a wrong width or not finite.
        """
        if not hasattr(self, "context_"):
            raise NotFittedError("This SpuriousInContextLearner has no context: call meta_fit, then set_context.")
        queries = torch.from_numpy(check_features("Xq", Xq, ("n_queries", self.n_features_in_))).to(self.device)
        with torch.no_grad():
            parts = [
                self.transformer_.score(mark_queries(_pad(part))[None], self.context_)[0]
                for part in queries.split(_QUERIES_AT_ONCE)
            ]
        return _both_classes(torch.cat(parts))

    def predict(self, Xq: Any) -> np.ndarray:
        """Return the classes (n_queries,) of queries Xq (n_queries, n_features), as `predict_proba` sees them."""
        return self.predict_proba(Xq).argmax(axis=1)

    def predict_tasks(self, tasks: Mapping[str, Any]) -> np.ndarray:
        """Return the probability of class 1 of every query of a batch of tasks, behind the whole of its context.

        Parameters
        ----------
        tasks : mapping
            As a sampler gives them; y_query and attribute_query are not read.

        Returns
        -------
        ndarray of shape (n_tasks, n_queries), float64

        Raises
        ------
        NotFittedError
            Before `meta_fit`.
        TypeError, ValueError
            For an entry that is missing, of a wrong shape, not finite, or a label other than 0 and 1.
        """
        self._check_trained()
        needed = (*(CONTEXT if self.group_tokens else CONTEXT[:2]), QUERY[0])
        checked = check_tasks("tasks", tasks, needed, n_features=self.n_features_in_)
        tensors = as_tensors({name: checked[name] for name in needed}, self.device)
        logits = []
        with torch.no_grad():
            for parts in zip(*(tensor.split(_QUERIES_AT_ONCE) for tensor in tensors.values()), strict=True):
                batch = dict(zip(tensors, parts, strict=True))
                queries = batch["X_query"]
                tokens, _ = self._tokens({**batch, "X_query": queries[:, :0]})
                logits.append(self.transformer_.score(mark_queries(_pad(queries)), self.transformer_.encode(tokens)))
        return torch.cat(logits).double().sigmoid().cpu().numpy()

    def _check(self) -> None:
        for name in ("permute", "group_tokens", "exchange_labels"):
            check_flag(name, getattr(self, name))
        check_option("queries", self.queries, ("sampled", "context"))
        check_option("construction", self.construction, CONSTRUCTIONS)
        check_real("induction", self.induction, minimum=0, maximum=1)
        for name, minimum in {"n_steps": 1, "batch_size": 1, "warmup_steps": 0}.items():
            check_integer(name, getattr(self, name), minimum=minimum)

    def _check_trained(self) -> None:
        if not hasattr(self, "transformer_"):
            raise NotFittedError("This SpuriousInContextLearner is not trained yet: call meta_fit first.")

    def _check_context(self, X: Any, y: Any, attribute: Any) -> Tasks:
        """Return a context as tensors (1, n_context, ...)."""
        self._check_trained()
        features = check_features("X", X, ("n_context", self.n_features_in_))
        context = {"X": features, "y": check_labels("y", y, features.shape[:1])}
        if attribute is not None:
            context["attribute"] = check_labels("attribute", attribute, features.shape[:1])
        elif self.group_tokens:
            raise ValueError("attribute must be given to a learner with group_tokens=True, got None")
        return {name: value[None] for name, value in as_tensors(context, self.device).items()}

    def _loss(self, model: torch.nn.Module, batch: Any, step: int) -> torch.Tensor:
        tasks = self._augment(batch)
        logits = model(*self._tokens(tasks))
        return binary_cross_entropy_with_logits(logits.float(), tasks["y_query"].float())

    def _augment(self, tasks: Tasks) -> Tasks:
        """Choose what is asked, then permute and exchange. Draws from torch's generators, seeded for each step."""
        X, y, X_query, y_query = (tasks[name] for name in ("X", "y", "X_query", "y_query"))
        if self.queries == "context":
            X_query, y_query = (
                torch.cat([X[:, 1:], X_query[:, -1:]], dim=1),
                torch.cat([y[:, 1:], y_query[:, -1:]], dim=1),
            )
        if self.induction:
            seen = examples_seen(X.shape[1], X_query.shape[1], X.device)
            source = (torch.rand(y_query.shape, device=X.device) * seen).long()
            copied = torch.rand(y_query.shape, device=X.device) < self.induction
            X_query = torch.where(copied[..., None], take_rows(X, source), X_query)
            y_query = torch.where(copied, y.gather(1, source), y_query)
        if self.permute:
            order = torch.rand(len(X), 1, X.shape[2], device=X.device).argsort(dim=-1)
            X, X_query = (x.gather(2, order.expand_as(x)) for x in (X, X_query))
        found = {**tasks, "X": X, "y": y, "X_query": X_query, "y_query": y_query}
        return _exchange_labels(found) if self.exchange_labels else found

    def _tokens(self, tasks: Tasks) -> tuple[torch.Tensor, torch.Tensor]:
        X = tasks["X"]
        return in_context_tokens(
            _pad(X),
            tasks["y"],
            _pad(tasks["X_query"]),
            tasks["attribute"] if self.group_tokens else None,
            class_tokens=self.class_tokens_.to(X.device),
            group_tokens=self.group_tokens_.to(X.device),
            construction=self.construction,
        )


def warmup_cosine(step: int, n_steps: int, *, warmup_steps: int) -> float:
    """Return the factor on the learning rate: linear from 0 to 1 in the warm-up, then a cosine to 0 at `n_steps`."""
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(n_steps - warmup_steps, 1)))


def _exchange_labels(tasks: Tasks) -> Tasks:
    exchanged = dict(tasks)
    for names in (("y", "y_query"), ("attribute", "attribute_query")):
        chosen = torch.rand(len(tasks["X"]), 1, device=tasks["X"].device) < 0.5
        for name in set(names) & set(tasks):
            exchanged[name] = torch.where(chosen, 1 - tasks[name], tasks[name])
    return exchanged


def _opposite(width: int, norm: float, generator: torch.Generator) -> torch.Tensor:
    """Return a random direction of the norm and its negative, (2, width)."""
    token = torch.randn(width, generator=generator)
    token *= norm / token.norm()
    return torch.stack([token, -token])


def _pad(x: torch.Tensor) -> torch.Tensor:
    """Return x (..., n_features) with coordinates for the markers in front."""
    return torch.nn.functional.pad(x, (N_MARKERS, 0))


def _both_classes(logits: torch.Tensor) -> np.ndarray:
    """Return the probabilities (n, 2) of logits of class 1 (n,)."""
    one = logits.double().sigmoid().cpu().numpy()
    return np.stack([1 - one, one], axis=1)
