"""Forecasting events from time-stamped text, and naming the documents that announced them."""

from natwise.timeseries.event_precursors._baselines import CountRegression, Persistence, RollingMean
from natwise.timeseries.event_precursors._dataset import EventDataset
from natwise.timeseries.event_precursors._encoders import BagOfWords
from natwise.timeseries.event_precursors._forecaster import EventForecaster
from natwise.timeseries.event_precursors._metrics import compare_forecasts, event_metrics
from natwise.timeseries.event_precursors._model import HierarchicalAttentionLSTM
from natwise.timeseries.event_precursors._nested import NestedMIL, nmil_objective
from natwise.timeseries.event_precursors._planted import planted_precursors

__all__ = [
    "BagOfWords",
    "CountRegression",
    "EventDataset",
    "EventForecaster",
    "HierarchicalAttentionLSTM",
    "NestedMIL",
    "Persistence",
    "RollingMean",
    "compare_forecasts",
    "event_metrics",
    "nmil_objective",
    "planted_precursors",
]
