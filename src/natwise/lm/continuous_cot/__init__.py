"""Continuous chain of thought (CoT2): a language model that follows many traces at once in superposed tokens."""

from natwise.lm.continuous_cot._baselines import coconut_loss
from natwise.lm.continuous_cot._construction import subset_sum_transformer
from natwise.lm.continuous_cot._distributions import trace_loss
from natwise.lm.continuous_cot._graphs import GraphQuestions, load_prosqa, prontoqa_graphs, prosqa_graphs
from natwise.lm.continuous_cot._grpo import GRPO
from natwise.lm.continuous_cot._mnns import MNNS, mnns_dataset, mnns_targets
from natwise.lm.continuous_cot._model import ContinuousCoT
from natwise.lm.continuous_cot._objectives import (
    answer_reward,
    dirichlet_log_ratio,
    grpo_loss,
    pass_at_k,
    process_reward,
)

__all__ = [
    "GRPO",
    "MNNS",
    "ContinuousCoT",
    "GraphQuestions",
    "answer_reward",
    "coconut_loss",
    "dirichlet_log_ratio",
    "grpo_loss",
    "load_prosqa",
    "mnns_dataset",
    "mnns_targets",
    "pass_at_k",
    "process_reward",
    "prontoqa_graphs",
    "prosqa_graphs",
    "subset_sum_transformer",
    "trace_loss",
]
