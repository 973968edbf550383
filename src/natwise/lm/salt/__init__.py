"""SALT: a small language model helps to train a large one, for the first part of the way."""

import lazy_loader

# On first use: the modules import torch and transformers, which the command line does not want to wait for.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_cache": ["TeacherCache"],
        "_loss": ["linear_salt_loss", "salt_loss"],
        "_schedule": ["SaltSchedule"],
        "_scores": ["select_sequences", "sequence_scores"],
        "_trainer": ["SaltTrainer"],
    },
)
