"""The configuration of a recursive model: that of the vanilla model it comes from, and how the layers are shared."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from natwise.core.validation import check_flag, check_integer, check_option
from natwise.lm._checks import check_sizes
from natwise.lm.relaxed_recursive._layers import checked_layer_map

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt_neox")
_FUSED = "query_key_value"


@strict
class RecursiveConfig(PreTrainedConfig):
    """Configuration of `RecursiveForCausalLM`.

    Takes all fields of the vanilla configuration (Llama's, unless `base_model_type` says otherwise) and these:

    Parameters
    ----------
    base_model_type : {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt_neox"}
        Whose layers are looped. Its ``num_hidden_layers`` is the *unrolled* depth, so caches get the right size.
    num_loops : int
        How often the shared layers are applied; 1 is the vanilla model.
    sharing : {"cycle", "sequence", "middle_cycle", "middle_sequence"}
        Which depths share a layer. ``cycle`` is the paper's.
    lora_rank : int or None
        Rank of the low-rank delta that every linear map has at every depth, at most its smaller side; a fused
        query-key-value matrix has 3/2 of it, which costs as much as that rank on each of the three. None: no deltas.
    tie_vectors : bool
        Whether norm gains and biases are shared, too (the paper: yes).
    transformers_version, architectures, output_hidden_states, return_dict, dtype, chunk_size_feed_forward
        As in `transformers.PreTrainedConfig`, like the next line.
    is_encoder_decoder, id2label, label2id, problem_type, kwargs
        The last are the fields of the vanilla configuration.

    Raises
    ------
    TypeError, ValueError
        For loops that do not divide the depth, a rank below 1, an unknown option, or layers of different kinds that
        would be shared.
    """

    model_type = "natwise_recursive"
    fixed = ("base_model_type", "num_hidden_layers", "num_loops", "sharing", "lora_rank", "tie_vectors")
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    base_model_type: str = "llama"
    num_loops: int = 1
    sharing: str = "cycle"
    lora_rank: int | None = None
    tie_vectors: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        check_option("base_model_type", self.base_model_type, FAMILIES)
        kwargs.pop("model_type", None)
        check_sizes(kwargs)
        try:
            vanilla = AutoConfig.for_model(self.base_model_type, **kwargs)
        except StrictDataclassError as error:  # its text takes several lines
            raise ValueError(" ".join(str(error).split())) from None
        own = {one.name for one in fields(PreTrainedConfig)}
        for name, value in vars(vanilla).items():
            if name not in own and not name.startswith("_"):
                setattr(self, name, value)
        super().__post_init__(**{name: value for name, value in kwargs.items() if not hasattr(self, name)})
        self.check()

    def check(self) -> None:
        """Refuse sharing that is impossible."""
        check_flag("tie_vectors", self.tie_vectors)
        if self.lora_rank is not None:
            check_integer("lora_rank", self.lora_rank, minimum=1)
        kinds: dict[int, str] = {}
        for unique, kind in zip(self.layer_map, getattr(self, "layer_types", None) or [], strict=False):
            if kinds.setdefault(unique, kind) != kind:
                both = f"{kinds[unique]} and {kind}"
                raise ValueError(f"num_loops={self.num_loops} would share layers of unequal layer_types: {both}")

    @property
    def layer_map(self) -> list[int]:
        """Which unique layer stands at each depth."""
        return checked_layer_map(self.num_hidden_layers, self.num_loops, self.sharing)

    @property
    def n_unique(self) -> int:
        """Number of layers that are stored."""
        return max(self.layer_map) + 1

    def rank_of(self, name: str, shape: tuple[int, int]) -> int:
        """Return the rank of the delta of a matrix (out, in); 0 without deltas."""
        if self.lora_rank is None:
            return 0
        wanted = (3 * self.lora_rank + 1) // 2 if name.endswith(_FUSED) else self.lora_rank
        return min(wanted, *shape)

    def vanilla(self) -> PreTrainedConfig:
        """Return the configuration of the unrolled model."""
        own = {one.name for one in fields(RecursiveConfig)} - {one.name for one in fields(PreTrainedConfig)}
        shared = {name: value for name, value in self.to_dict().items() if name not in own | {"architectures"}}
        del shared["model_type"]
        return AutoConfig.for_model(self.base_model_type, **shared)
