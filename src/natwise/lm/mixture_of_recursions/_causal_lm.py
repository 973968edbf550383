"""The language model: head, losses, generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput

from natwise.core.random import global_generators_kept
from natwise.core.validation import check_flag, check_option
from natwise.lm._checks import IGNORED, check_inputs, check_labels, check_length
from natwise.lm._recursion import check_checkpoint
from natwise.lm.mixture_of_recursions._cache import MoRCache
from natwise.lm.mixture_of_recursions._checks import check_context
from natwise.lm.mixture_of_recursions._config import MoRConfig
from natwise.lm.mixture_of_recursions._model import SELECTIONS, MoRModel, MoRPreTrainedModel, Pass
from natwise.lm.mixture_of_recursions._official import read_official


@dataclass
class MoRCausalLMOutput(ModelOutput):
    """Output of `MoRForCausalLM`.

    Attributes
    ----------
    loss : Tensor, optional
        In training cross-entropy plus the auxiliary losses times their coefficients, else cross-entropy alone.
    logits : Tensor
        (batch, columns, vocabulary).
    past_key_values : MoRCache, optional
    lm_loss : Tensor, optional
        Cross-entropy alone, in nats per token.
    sampling_loss, router_z_loss : Tensor
        Sums over recursions of means over tokens; 0 where no top-k was taken.
    sampling_accuracy : Tensor
        How often the causal rule agrees with top-k; mean over recursions.
    balancing_loss : Tensor
        Of token choice: alpha when balanced; 0 in evaluation, or without this loss.
    balancing_ratio : Tensor
        (num_recursions,) share of the tokens at each depth, for token choice in training; else 0.
    selected_positions : list of Tensor
        int64 (batch, k) columns that passed each recursion; -1 fills rows that have fewer.
    depths : Tensor
        int64 (batch, columns): recursions that each token passed; 0 at padding.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: MoRCache | None = None
    lm_loss: Tensor | None = None
    sampling_loss: Tensor | None = None
    sampling_accuracy: Tensor | None = None
    router_z_loss: Tensor | None = None
    balancing_loss: Tensor | None = None
    balancing_ratio: Tensor | None = None
    selected_positions: list[Tensor] | None = None
    depths: Tensor | None = None


class MoRForCausalLM(MoRPreTrainedModel, GenerationMixin):
    """A language model whose router gives every token its own number of passes through one shared block.

    Training (`.train()`) selects tokens by top-k over the whole sequence, which looks ahead; evaluation and generation
    (`.eval()`) by a threshold on the router, which does not. Loads, saves and trains like any Hugging Face model, also
    through `AutoModelForCausalLM`; attention is PyTorch's scaled dot product, whatever `attn_implementation` says.

    Differences from the original code: attention is tied between recursions; caches, padding, batches and gradient
    checkpointing work; shared keys and values are computed for the chosen rows only; auxiliary losses are means, so
    that gradient accumulation does not change their weight; counters of the warm-ups are saved with the model.

    Parameters
    ----------
    config : MoRConfig

    Examples
    --------
    >>> import torch
    >>> from natwise.core.random import global_generators_kept
    >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_attention_heads=2)
    >>> with global_generators_kept():
    ...     model = MoRForCausalLM(MoRConfig(num_hidden_layers=5, num_recursions=3, **sizes)).train()
    >>> ids = torch.arange(12)[None]
    >>> [chosen.shape[1] for chosen in model(input_ids=ids, labels=ids).selected_positions]
    [12, 8, 4]
    >>> model.eval().generate(input_ids=ids, max_new_tokens=3, do_sample=False, eos_token_id=None).shape
    torch.Size([1, 15])
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MoRConfig):
        super().__init__(config)
        self.model = MoRModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_official_state_dict(cls, config_json: str, weights: dict[str, Tensor]) -> MoRForCausalLM:
        """Return a model with the weights of the original code.

        Parameters
        ----------
        config_json : str
            JSON with ``"llama"`` (fields of LlamaConfig) and ``"mor"`` (the original configuration).
        weights : dict of str to Tensor
            The original names. Where recursions hold different attentions, which is a defect of an early version, the
            model is made with ``tie_attention=False``.

        Raises
        ------
        ValueError
            For settings that do not exist here, missing or unknown names, or layers that should be tied and differ.
        """
        config, state = read_official(config_json, weights)
        with global_generators_kept():
            model = cls(config)
        if config.tie_word_embeddings and "model.embed_tokens.weight" in state:
            state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        found = model.load_state_dict(state, strict=False)
        missing = set(found.missing_keys) - {"model.training_steps", "model.router_bias"}
        if missing or found.unexpected_keys:
            raise ValueError(f"weights must have the names of the model: missing {sorted(missing)[:3]}, "
                             f"unknown {found.unexpected_keys[:3]}")  # fmt: skip
        model.tie_weights()
        return model

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what it passes on is the parent's business
        cls, path: Any, *arguments: Any, config: Any = None, **kwargs: Any
    ) -> MoRForCausalLM:
        """Load a saved model; `ValueError` for a checkpoint with other layers, recursions, sharing or routers."""
        check_checkpoint(MoRConfig, path, config, kwargs)
        return super().from_pretrained(path, *arguments, config=config, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: MoRCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        selection: str | None = None,
        **kwargs: Any,
    ) -> MoRCausalLMOutput:
        """Return logits, and what the routers did.

        Parameters
        ----------
        input_ids : Tensor
            int64 (batch, columns); or `inputs_embeds` (batch, columns, d).
        attention_mask : Tensor, optional
            (batch, cached + columns), 0 at padding, on either side; padding changes nothing.
        position_ids : Tensor, optional
            (batch, columns). Default: the number of tokens before.
        past_key_values : MoRCache, optional
        labels : Tensor, optional
            int64 (batch, columns), shifted inside; -100 is ignored.
        use_cache : bool, optional
            Whether to return a cache when none was given. Default: the configuration's, never in training.
        logits_to_keep : int or Tensor
            How many last columns, or which, get logits; 0 is all.
        selection : {"top_k", "causal"}, optional
            Default: top-k in training, causal in evaluation. Token choice is causal always.

        Raises
        ------
        ValueError, TypeError
            For input that is no batch of tokens, more tokens than `max_position_embeddings`, or top-k with a cache.
        """
        shape = check_inputs(input_ids, inputs_embeds, self.config)
        check_context(shape, attention_mask, position_ids, past_key_values, self.config)
        if labels is not None:
            alone = kwargs.get("num_items_in_batch") is None
            labels = check_labels(labels, shape, self.config.vocab_size, alone)
        check_option("selection", selection, (*SELECTIONS, None))
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        check_flag("use_cache", use_cache)
        if past_key_values is None and use_cache and self._keeps(selection):
            past_key_values = MoRCache(self.config)
        hidden, here = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, selection)
        logits = self.lm_head(slice_logits_to_keep(hidden, logits_to_keep))
        loss = lm_loss = None
        if labels is not None:
            lm_loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            loss = lm_loss + self._auxiliary(here, labels, kwargs.get("num_items_in_batch"))
        losses = here.losses
        return MoRCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            lm_loss=lm_loss,
            sampling_loss=losses.sampling,
            sampling_accuracy=losses.accuracy,
            router_z_loss=losses.z,
            balancing_loss=losses.balancing,
            balancing_ratio=losses.ratio,
            selected_positions=[here.columns.gather(1, one.index).masked_fill(~one.valid, -1) for one in here.chosen],
            depths=_depths(here, hidden),
        )

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as every Hugging Face model does; see `transformers.GenerationMixin.generate`.

        Raises
        ------
        ValueError
            In training mode, or with ``selection="top_k"``: top-k looks at tokens that are yet to come.
        """
        if self.config.routing == "expert_choice" and (self.training or kwargs.get("selection") == "top_k"):
            raise ValueError(
                "selection must be 'causal' in generation, got 'top_k', which looks at tokens that are yet to come: "
                "call model.eval() first"
            )
        return GenerationMixin.generate(self, inputs, *args, **kwargs)  # type: ignore[arg-type]

    def _keeps(self, selection: str | None) -> bool:
        top_k = selection == "top_k" or (selection is None and self.training)
        return self.config.routing == "token_choice" or not top_k

    def _auxiliary(self, here: Pass, labels: Tensor, n_items: Tensor | int | None) -> Tensor:
        """Return the auxiliary losses in training, weighted like this batch's share of an accumulated one."""
        config, losses = self.config, here.losses
        if not self.training:
            return losses.z * 0
        total = config.sampling_coef * losses.sampling + config.z_coef * losses.z
        total = total + config.balancing_coef * losses.balancing
        if n_items is None:
            return total
        return total * ((labels[:, 1:] != IGNORED).sum() / n_items)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                "cache_implementation must be None or 'dynamic' for rows of different lengths, got "
                f"{generation_config.cache_implementation!r}"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = MoRCache(self.config)

    def _validate_generated_length(self, generation_config: Any, input_ids_length: int, *others: Any) -> None:
        super()._validate_generated_length(generation_config, input_ids_length, *others)  # type: ignore[misc]
        check_length("max_new_tokens and the prompt", generation_config.max_length, self.config)


def _depths(here: Pass, hidden: Tensor) -> Tensor:
    """Return how many recursions each token passed, int64 (batch, columns)."""
    depths = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    for one in here.chosen:
        depths = depths.scatter_add(1, here.columns.gather(1, one.index), one.valid.long())
    return depths


AutoConfig.register(MoRConfig.model_type, MoRConfig, exist_ok=True)
AutoModelForCausalLM.register(MoRConfig, MoRForCausalLM, exist_ok=True)
