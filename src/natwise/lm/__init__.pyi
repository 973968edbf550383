from .salt import (
    SaltSchedule as SaltSchedule,
    SaltTrainer as SaltTrainer,
    TeacherCache as TeacherCache,
    linear_salt_loss as linear_salt_loss,
    salt_loss as salt_loss,
    select_sequences as select_sequences,
    sequence_scores as sequence_scores,
)
