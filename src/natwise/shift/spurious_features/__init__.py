"""Spurious features: find the directions of an embedding that carry a shortcut, remove them, retrain the last layer."""

from natwise.shift.spurious_features._disentangler import LinearDisentangler
from natwise.shift.spurious_features._last_layer import LastLayerRetrainer, infer_attribute
from natwise.shift.spurious_features._leace import LEACE
from natwise.shift.spurious_features._metrics import group_metrics
from natwise.shift.spurious_features._projections import INLP, CounterfactualProjection, DropDimensions
from natwise.shift.spurious_features._report import SpuriousFeatureReport

__all__ = [
    "INLP",
    "LEACE",
    "CounterfactualProjection",
    "DropDimensions",
    "LastLayerRetrainer",
    "LinearDisentangler",
    "SpuriousFeatureReport",
    "group_metrics",
    "infer_attribute",
]
