"""A scikit-learn classifier of the nodes of a graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from natwise.core.random import RandomState, Streams
from natwise.core.training import Trainer, TrainingHistory
from natwise.core.validation import check_device, check_integer, check_option, check_real, shorten
from natwise.graphs.mixhop._features import Features, recall_features
from natwise.graphs.mixhop._graph import Graph, Memory, recall_graph
from natwise.graphs.mixhop._inputs import encoded, readable, split_nodes, to_dense
from natwise.graphs.mixhop._model import MixHop, keep_batch_statistics_, kernels
from natwise.graphs.mixhop._prune import shrink_columns_

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
SCALINGS = ("auto", "rows", "standardize", None)
NO_EDGES = np.empty((2, 0), dtype=np.int64)


class MixHopClassifier(ClassifierMixin, BaseEstimator):
    """Classify the nodes of a graph, of which a few have labels, by a `MixHop` network.

    All nodes take part in every step (full batch); only labels of training nodes enter the loss. The weights of the
    step with the best accuracy on the validation nodes are kept, the earliest of equals. No other label is looked at.

    Parameters
    ----------
    hidden : sequence of int or dict
        Columns per power of every hidden layer: a number for all `powers`, or ``{power: columns}``.
    powers : sequence of int
        Distances that are mixed.
    output : {"weighted", "linear"}
        Output layer, see `MixHop`.
    output_widths : int or dict, optional
        Columns per power of the last mixing layer. Default: one per class and power.
    activation : {"relu", "tanh", "elu"}
        After hidden layers.
    batch_norm : {"batch", "running", None}
        See `MixHop`. After the training, "batch" keeps the statistics of the graph of `fit` for other graphs.
    input_dropout, dropout : float
        Rates on features and on hidden layers.
    scaling : {"auto", "rows", "standardize", None}
        Features: every row of length 1 (after its dropout), or every column of mean 0 and variance 1, which makes
        sparse features dense. Auto: rows when no feature is negative, such as word counts.
    binarize : bool
        Replace features by whether they are nonzero, as the released code does.
    network : torch.nn.Module, optional
        Network to train, a copy of it, in the place of the one that the options above describe: an `NGCN`, or any
        module that maps (features, graph) to logits and has the method ``loss(features, graph, labels, nodes)``.
    optimizer : {"adam", "sgd"}
        Adam, or plain gradient descent as published; both with the proximal step of the group lasso.
    learning_rate : float
        Its learning rate.
    decrement_every : int, optional
        Lower the learning rate by a hundredth of what it was at first after so many steps each. None keeps it.
    l2 : float
        Coefficient of the squared weights.
    lasso : float
        Coefficient of `group_lasso`; columns that it takes to zero stay there.
    max_epochs : int
        Largest number of steps.
    patience : int, optional
        Stop after so many steps without better validation accuracy.
    device : str or torch.device
        Where to train and predict.
    random_state : int, Generator, RandomState, Streams or None
        Seeds weights and dropout.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels of the training nodes.
    network_ : torch.nn.Module
        The trained network in float64, in evaluation mode.
    architecture_ : list of dict
        Columns per power of every mixing layer that are not zero; empty for another kind of network.
    validation_accuracy_ : ndarray of shape (n_iter,)
        After every step; empty without validation nodes.
    best_step_ : int
        The step (from 0) whose weights are kept.
    loss_ : ndarray of shape (n_iter,)
        Training loss, penalties included but for the group lasso.
    n_iter_ : int
        Steps taken.
    scaling_ : str or None
        How features are scaled.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    The published setting for Cora is ``hidden=[{0: 24, 1: 18, 2: 18}], output_widths={1: 7, 2: 7}, optimizer="sgd",
    learning_rate=1.0, decrement_every=40, lasso=5e-3``; with a learning rate of 1 some data diverge. The released
    trainer broke ties in validation accuracy by test accuracy, and added the lasso to the loss instead of taking the
    proximal step.

    Examples
    --------
    >>> from natwise.graphs import homophily_graph
    >>> g = homophily_graph(0.9, n_nodes=500, n_classes=3, random_state=0)
    >>> model = MixHopClassifier(max_epochs=100, random_state=0)
    >>> model.fit(g.X, g.y, g.edge_index, g.train_idx, g.val_idx) is model
    True
    >>> bool((model.predict() == g.y)[g.test_idx].mean() > 0.9)
    True
    """

    def __init__(
        self,
        hidden: Sequence[int | Mapping[int, int]] = (20,),
        *,
        powers: Sequence[int] = (0, 1, 2),
        output: str = "weighted",
        output_widths: int | Mapping[int, int] | None = None,
        activation: str = "relu",
        batch_norm: str | None = "batch",
        input_dropout: float = 0.5,
        dropout: float = 0.9,
        scaling: str | None = "auto",
        binarize: bool = False,
        network: nn.Module | None = None,
        optimizer: str = "adam",
        learning_rate: float = 0.01,
        decrement_every: int | None = None,
        l2: float = 5e-3,
        lasso: float = 0.0,
        max_epochs: int = 400,
        patience: int | None = 200,
        device: str | torch.device = "cpu",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.hidden = hidden
        self.powers = powers
        self.output = output
        self.output_widths = output_widths
        self.activation = activation
        self.batch_norm = batch_norm
        self.input_dropout = input_dropout
        self.dropout = dropout
        self.scaling = scaling
        self.binarize = binarize
        self.network = network
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.decrement_every = decrement_every
        self.l2 = l2
        self.lasso = lasso
        self.max_epochs = max_epochs
        self.patience = patience
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: Any,
        edge_index: Any = None,
        train_idx: Any = None,
        val_idx: Any = None,
        *,
        adjacency: Any = None,
    ) -> MixHopClassifier:
        """Train on the labelled nodes of one graph.

        Parameters
        ----------
        X : array-like, tensor or sparse matrix of shape (n_nodes, n_features)
            Features of all nodes.
        y : array-like of shape (n_nodes,)
            Classes; -1 where hidden, once a graph or nodes are given.
        edge_index, adjacency : array, tensor, sparse matrix or object with ``edge_index``, optional
            The graph under one of both names, in any form that `normalized_adjacency` takes. Default: no edges.
        train_idx : array-like, optional
            Training nodes, as numbers or as a mask of shape (n_nodes,). Default: all that are neither hidden
            nor validation nodes.
        val_idx : array-like, optional
            Validation nodes. Default: none, the last step's weights are kept.

        Raises
        ------
        TypeError, ValueError
            For wrong data or options; for a hidden label among training or validation nodes; when the loss
            diverges.
        """
        X, y = validate_data(
            self, readable("X", X), readable("y", y), accept_sparse="csr", dtype=np.float64, ensure_min_samples=2
        )
        check_classification_targets(y)
        graph = self._one_graph(edge_index, adjacency)
        train, val = split_nodes(y, train_idx, val_idx, marked=graph is not None)
        self.classes_, codes = encoded(y, train)
        self._options()
        self._fit_scaling(X)
        like = torch.empty(0, device=check_device("device", self.device))
        name = "edge_index" if adjacency is None else "adjacency"
        self._has_graph = graph is not None
        prepared = recall_graph(Memory(), NO_EDGES if graph is None else graph, X.shape[0], like, name)
        features = self._prepared(X, like)
        streams = Streams.of(self.random_state)
        with streams.torch_global("weights"):
            network = self._new_network()
        history = self._trainer(network, train, val, streams).fit(
            network,
            self._loss(features, prepared, codes),
            torch.from_numpy(train),
            validate=None if val is None else _error(features, prepared, codes, val),
        )
        return self._keep(network, history, X, graph if self._has_graph else NO_EDGES, name)

    def predict_proba(self, X: Any = None, adjacency: Any = None) -> np.ndarray:
        """Return class probabilities (n_nodes, n_classes).

        Parameters
        ----------
        X : array-like, tensor or sparse matrix of shape (n_nodes, n_features), optional
            Features. Default: those of `fit`.
        adjacency : array, tensor, sparse matrix or object with ``edge_index``, optional
            Graph of these nodes. Default: that of `fit`, which must then have as many nodes; no edges when `fit` had
            none.

        Returns
        -------
        ndarray of shape (n_nodes, n_classes)
            Of all nodes, in the order of `X`.

        Raises
        ------
        NotFittedError
            Before `fit`.
        TypeError, ValueError
            For wrong features or a wrong graph; for another number of nodes than that of the graph of `fit`.
        """
        check_is_fitted(self)
        like = next(self.network_.parameters())
        features = self._features
        if X is not None:
            X = validate_data(self, readable("X", X), accept_sparse="csr", dtype=np.float64, reset=False)
            features = self._prepared(X, like)
        graph = self._graph
        if adjacency is not None or not self._has_graph:
            graph = recall_graph(Memory(), NO_EDGES if adjacency is None else adjacency, features.shape[0], like)
        elif graph.matrix.shape[0] != features.shape[0]:
            n_nodes = graph.matrix.shape[0]
            raise ValueError(f"X must have the {n_nodes} nodes of fit without adjacency, got {features.shape[0]}")
        with torch.no_grad():
            return self.network_(features, graph).softmax(1).cpu().numpy()

    def predict(self, X: Any = None, adjacency: Any = None) -> np.ndarray:
        """Return the most probable class of every node (n_nodes,); arguments as in `predict_proba`."""
        probabilities = self.predict_proba(X, adjacency)
        return self.classes_[probabilities.argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        """Say that sparse features are taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _options(self) -> None:
        check_option("optimizer", self.optimizer, tuple(OPTIMIZERS))
        check_option("scaling", self.scaling, SCALINGS)
        check_real("l2", self.l2, minimum=0.0)
        check_real("lasso", self.lasso, minimum=0.0)
        check_real("learning_rate", self.learning_rate, minimum=0.0)
        if self.decrement_every is not None:
            check_integer("decrement_every", self.decrement_every, minimum=1)
        if self.network is not None and not callable(getattr(self.network, "loss", None)):
            raise TypeError(f"network must be a module with a method loss, got {shorten(self.network)}")

    def _one_graph(self, edge_index: Any, adjacency: Any) -> Any:
        if edge_index is not None and adjacency is not None:
            raise ValueError("adjacency must be None when edge_index is given, got both")
        return adjacency if edge_index is None else edge_index

    def _fit_scaling(self, X: Any) -> None:
        self.scaling_ = self.scaling
        if self.scaling == "auto":
            entries = X.data if sparse.issparse(X) else X
            self.scaling_ = "standardize" if entries.min(initial=0.0) < 0 else "rows"
        self._mean, self._scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if self.scaling_ == "standardize":
            dense = to_dense(X)
            with np.errstate(over="ignore"):
                self._mean, spread = dense.mean(axis=0), dense.std(axis=0)
            if not np.isfinite(spread).all():
                raise ValueError(
                    f"X must have columns of finite variance, got {dense[:, ~np.isfinite(spread)][0, 0]:g}"
                )
            self._scale = np.where(spread > 1e-12 * np.maximum(np.abs(self._mean), 1e-300), spread, 1.0)

    def _prepared(self, X: Any, like: torch.Tensor) -> Features:
        if self.scaling_ == "standardize":
            X = (to_dense(X) - self._mean) / self._scale
        return recall_features(Memory(), X, like, self.n_features_in_)

    def _new_network(self) -> nn.Module:
        if self.network is not None:
            return copy.deepcopy(self.network).float()
        return MixHop(
            self.n_features_in_,
            self.hidden,
            len(self.classes_),
            self.powers,
            output=self.output,
            output_widths=self.output_widths,
            activation=self.activation,
            batch_norm=self.batch_norm,
            input_dropout=self.input_dropout,
            dropout=self.dropout,
            normalize_rows=self.scaling_ == "rows",
            binarize=self.binarize,
        )

    def _loss(self, features: Features, graph: Graph, codes: torch.Tensor) -> Any:
        labels = codes.to(graph.matrix.device)

        def loss(network: Any, nodes: torch.Tensor, step: int) -> torch.Tensor:
            value = network.loss(features, graph, labels, nodes)
            value = value + self.l2 * sum(weight.square().sum() for weight in kernels(network))
            if not torch.isfinite(value):
                raise ValueError(
                    f"learning_rate={self.learning_rate} lets the loss diverge at step {step}; "
                    "try a lower one, or optimizer='adam' with learning_rate=0.01"
                )
            return value

        return loss

    def _trainer(self, network: nn.Module, train: np.ndarray, val: np.ndarray | None, streams: Streams) -> Trainer:
        def optimizer(parameters: Any, lr: float) -> torch.optim.Optimizer:
            made = OPTIMIZERS[self.optimizer](parameters, lr=lr)
            if self.lasso:  # the proximal step after each step of the optimiser
                made.register_step_post_hook(
                    lambda done, args, kwargs: shrink_columns_(network, done.param_groups[0]["lr"] * self.lasso)
                )
            return made

        every = self.decrement_every
        return Trainer(
            max_epochs=self.max_epochs,
            batch_size=len(train),
            learning_rate=self.learning_rate,
            optimizer=optimizer,
            schedule=None if every is None else lambda step, n_steps: max(0.0, 1 - 0.01 * (step // every)),
            patience=None if val is None else self.patience,
            device=self.device,
            random_state=streams,
            verbose=self.verbose,
        )

    def _keep(self, network: nn.Module, history: TrainingHistory, X: Any, graph: Any, name: str) -> MixHopClassifier:
        # predictions in float64, so that what is said of a node does not depend on how many others are asked about
        self.network_ = network.double()
        like = next(network.parameters())
        self._features = self._prepared(X, like)
        self._graph = recall_graph(Memory(), graph, X.shape[0], like, name)
        if isinstance(network, MixHop):
            keep_batch_statistics_(network, self._features, self._graph)
        self.loss_ = np.array(history.losses)
        self.validation_accuracy_ = 1 - np.array(history.scores)
        self.n_iter_ = history.n_steps
        self.best_step_ = self.n_iter_ - 1 if history.best_epoch is None else history.best_epoch
        self.architecture_ = living_architecture(network) if isinstance(network, MixHop) else []
        return self


def living_architecture(network: MixHop) -> list[dict[int, int]]:
    """Return, per mixing layer, how many columns of every power are not zero."""
    return [{p: int((w != 0).any(dim=0).sum()) for p, w in conv.weights.items()} for conv in network.layers]


def _error(features: Features, graph: Graph, codes: torch.Tensor, val: np.ndarray) -> Any:
    nodes = torch.from_numpy(val)
    expected = codes[nodes]
    return lambda network: (network(features, graph).argmax(1).cpu()[nodes] != expected).double().mean().item()
