from .failure_modes import DomainGeneralizer as DomainGeneralizer, FailureModes as FailureModes
from .in_context import (
    CategoryPairSampler as CategoryPairSampler,
    InContextTransformer as InContextTransformer,
    SingleTaskSampler as SingleTaskSampler,
    SpuriousInContextLearner as SpuriousInContextLearner,
    SpuriousVectorSampler as SpuriousVectorSampler,
    SwapSampler as SwapSampler,
    SyntheticSampler as SyntheticSampler,
    context_baseline as context_baseline,
    flip_labels as flip_labels,
    in_context_metrics as in_context_metrics,
    in_context_tokens as in_context_tokens,
)
