"""SALT: a small language model helps to train a large one, for the first part of the way."""

from typing import Any

from natwise.lm.salt._cache import TeacherCache
from natwise.lm.salt._loss import linear_salt_loss, salt_loss
from natwise.lm.salt._schedule import SaltSchedule
from natwise.lm.salt._scores import select_sequences, sequence_scores

__all__ = [
    "SaltSchedule",
    "SaltTrainer",
    "TeacherCache",
    "linear_salt_loss",
    "salt_loss",
    "select_sequences",
    "sequence_scores",
]


def __getattr__(name: str) -> Any:
    if name == "SaltTrainer":  # imports transformers
        from natwise.lm.salt._trainer import SaltTrainer

        return SaltTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
