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
from .spurious_features import (
    INLP as INLP,
    LEACE as LEACE,
    CounterfactualProjection as CounterfactualProjection,
    DropDimensions as DropDimensions,
    LastLayerRetrainer as LastLayerRetrainer,
    LinearDisentangler as LinearDisentangler,
    SpuriousFeatureReport as SpuriousFeatureReport,
    group_metrics as group_metrics,
    infer_attribute as infer_attribute,
)
