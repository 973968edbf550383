"""MixHop: graph convolutions that mix neighbourhoods of several distances, and learn which ones matter."""

from natwise.graphs.mixhop._architecture import LearnedArchitecture, learn_architecture
from natwise.graphs.mixhop._classifier import MixHopClassifier
from natwise.graphs.mixhop._conv import MixHopConv
from natwise.graphs.mixhop._data import GraphData, homophily_graph, load_planetoid
from natwise.graphs.mixhop._graph import normalized_adjacency
from natwise.graphs.mixhop._model import NGCN, MixHop, WeightedBlockOutput
from natwise.graphs.mixhop._planetoid import convert_planetoid
from natwise.graphs.mixhop._prune import group_lasso, prune_columns, shrink_columns_

__all__ = [
    "NGCN",
    "GraphData",
    "LearnedArchitecture",
    "MixHop",
    "MixHopClassifier",
    "MixHopConv",
    "WeightedBlockOutput",
    "convert_planetoid",
    "group_lasso",
    "homophily_graph",
    "learn_architecture",
    "load_planetoid",
    "normalized_adjacency",
    "prune_columns",
    "shrink_columns_",
]
