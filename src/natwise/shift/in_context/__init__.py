"""A transformer that learns from a few labelled examples without taking their shortcut, its tasks and baselines."""

from natwise.shift.in_context._baselines import context_baseline
from natwise.shift.in_context._learner import SpuriousInContextLearner
from natwise.shift.in_context._samplers import (
    CategoryPairSampler,
    SingleTaskSampler,
    SpuriousVectorSampler,
    SwapSampler,
    SyntheticSampler,
)
from natwise.shift.in_context._tasks import flip_labels, in_context_metrics
from natwise.shift.in_context._tokens import in_context_tokens
from natwise.shift.in_context._transformer import InContextTransformer

__all__ = [
    "CategoryPairSampler",
    "InContextTransformer",
    "SingleTaskSampler",
    "SpuriousInContextLearner",
    "SpuriousVectorSampler",
    "SwapSampler",
    "SyntheticSampler",
    "context_baseline",
    "flip_labels",
    "in_context_metrics",
    "in_context_tokens",
]
