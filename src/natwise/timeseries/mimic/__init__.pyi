from ._benchmark import MimicBenchmark as MimicBenchmark
from ._bootstrap import bootstrap_ci as bootstrap_ci
from ._discretizer import Discretizer as Discretizer, read_series as read_series
from ._features import WindowFeatures as WindowFeatures
from ._metrics import (
    binary_metrics as binary_metrics,
    length_of_stay_bucket as length_of_stay_bucket,
    length_of_stay_metrics as length_of_stay_metrics,
    multilabel_metrics as multilabel_metrics,
)
from ._models import (
    ChannelWiseLSTM as ChannelWiseLSTM,
    LSTMClassifier as LSTMClassifier,
    MultitaskLSTM as MultitaskLSTM,
)
from ._normalizer import Normalizer as Normalizer
from ._rules import CleaningRules as CleaningRules, CohortRules as CohortRules, VariableMap as VariableMap
from ._training import BaselineSettings as BaselineSettings, train_task as train_task
