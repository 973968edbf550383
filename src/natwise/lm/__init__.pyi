from .mimetic_init import (
    Mamba1 as Mamba1,
    Mamba2 as Mamba2,
    MambaLM as MambaLM,
    mimetic_init_ as mimetic_init_,
    parameter_groups as parameter_groups,
    safe_decay as safe_decay,
    ssd_attention_map as ssd_attention_map,
    ssd_scan as ssd_scan,
)
from .relaxed_recursive import (
    EarlyExitLoss as EarlyExitLoss,
    RecursiveConfig as RecursiveConfig,
    RecursiveForCausalLM as RecursiveForCausalLM,
    UptrainTrainer as UptrainTrainer,
    evaluate_exits as evaluate_exits,
    to_recursive as to_recursive,
)
from .salt import (
    SaltSchedule as SaltSchedule,
    SaltTrainer as SaltTrainer,
    TeacherCache as TeacherCache,
    linear_salt_loss as linear_salt_loss,
    salt_loss as salt_loss,
    select_sequences as select_sequences,
    sequence_scores as sequence_scores,
)
