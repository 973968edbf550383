"""The model: a vanilla Hugging Face decoder in which several depths hold the same weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from natwise.lm._checks import check_inputs, check_labels, check_length
from natwise.lm._recursion import check_checkpoint
from natwise.lm.relaxed_recursive._config import RecursiveConfig
from natwise.lm.relaxed_recursive._linear import RelaxedLinear, relax
from natwise.result import Result


@dataclass
class RecursiveOutput(CausalLMOutputWithPast):
    """The output of a causal language model.

    Attributes
    ----------
    exit_logits : tuple of tensor (batch, length, vocabulary), optional
        Logits after each loop, the last one being `logits`; with ``output_exits=True``.
    """

    exit_logits: tuple[torch.Tensor, ...] | None = None


class RecursiveForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder language model that applies a block of shared layers several times.

    Every depth is a layer object of its own, with its own place in the cache, but the depths that share a layer hold
    the very same parameters: caches, masks, continuous batching and gradient checkpointing work as in the vanilla
    model, and a checkpoint stores each weight once. The forward pass is that of the vanilla class.

    Parameters
    ----------
    config : RecursiveConfig
        A new model has random weights. `to_recursive` converts a trained one, and
        ``AutoModelForCausalLM.from_pretrained`` reads a saved one.

    Attributes
    ----------
    conversion : Result or None
        After `to_recursive`: how near every matrix is to its source.

    Notes
    -----
    Bae et al., Relaxed Recursive Transformers (ICLR 2025), section 2. No code was published.
    """

    config_class = RecursiveConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: RecursiveConfig):
        if not isinstance(config, RecursiveConfig):
            raise TypeError(f"config must be a RecursiveConfig, got {type(config).__name__}")
        config.check()  # its fields may have been changed
        body: Any = MODEL_MAPPING[_vanilla_class(config)]
        self._supports_sdpa, self._supports_flash_attn = body._supports_sdpa, body._supports_flash_attn
        super().__init__(config)
        self.model = body(config)
        if config.lora_rank is not None:
            for layer in self.model.layers:
                relax(layer, config.rank_of)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.conversion: Result | None = None
        self._tied_weights_keys = self._find_ties()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_exits: bool = False,
        **kwargs: Any,
    ) -> RecursiveOutput:
        """Compute logits, and with `labels` the mean cross-entropy in nats per token.

        Parameters
        ----------
        input_ids, labels : int64 tensor (batch, length)
            Labels are the same tokens, -100 where they do not count; they are shifted here.
        output_exits : bool
            Also return the logits after every loop: final norm and head applied to what the loop returns.
        attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, logits_to_keep, kwargs
            As in the vanilla model.

        Returns
        -------
        RecursiveOutput
            ``logits`` (batch, length, vocabulary), and what else was asked for.

        Raises
        ------
        TypeError, ValueError
            For input or labels that are no batch of tokens; for more tokens, together with those of a dynamic cache,
            than the model knows positions; for `output_exits` with another sharing than ``cycle``.
        """
        shape = check_inputs(input_ids, inputs_embeds, self.config)
        self._check_length(shape[1], position_ids, past_key_values)
        if output_exits:
            self.check_exits()
            kwargs["output_hidden_states"] = True
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self._head(outputs.last_hidden_state, logits_to_keep)
        loss = None
        if labels is not None:
            labels = check_labels(labels, shape, self.config.vocab_size, kwargs.get("num_items_in_batch") is None)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        exits = None
        if output_exits:
            early = outputs.hidden_states[self.config.n_unique : -1 : self.config.n_unique]
            exits = (*(self._head(self.final_norm(one), logits_to_keep) for one in early), logits)
        return RecursiveOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            exit_logits=exits,
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what it passes on is the parent's business
        cls, path: Any, *arguments: Any, config: Any = None, **kwargs: Any
    ) -> RecursiveForCausalLM:
        """Load a saved model; `ValueError` for a checkpoint that was made with other loops, ranks or sharing."""
        check_checkpoint(RecursiveConfig, path, config, kwargs)
        return super().from_pretrained(path, *arguments, config=config, **kwargs)

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the head."""
        return self.model.final_layer_norm if self.config.base_model_type == "gpt_neox" else self.model.norm

    @property
    def has_exits(self) -> bool:
        """Whether every loop ends a block, after which a token may leave."""
        return self.config.sharing == "cycle"

    def check_exits(self) -> None:
        """Refuse to exit early from layers that are not looped as a block."""
        if not self.has_exits:
            raise ValueError(
                f"output_exits needs sharing='cycle', whose loops end a block, got {self.config.sharing!r}"
            )

    @torch.no_grad()
    def unroll(self) -> PreTrainedModel:
        """Return the vanilla model (such as `LlamaForCausalLM`) with a copy of the weights at every depth.

        Its logits are the same up to rounding: low-rank deltas are added to their matrices.
        """
        config = self.config.vanilla()
        with torch.device("meta"):
            vanilla: Any = AutoModelForCausalLM.from_config(config)
        copy_outside(self, vanilla)
        for ours, theirs in zip(self.model.layers, layers_of(vanilla), strict=True):
            for name in [name for name, _ in theirs.named_parameters()]:
                owner, leaf = _owner(ours, name)
                if leaf == "weight" and isinstance(owner, RelaxedLinear):
                    set_parameter(theirs, name, owner.merged())
                else:
                    set_parameter(theirs, name, getattr(owner, leaf).detach().clone())
        vanilla.generation_config = copy.deepcopy(self.generation_config)
        return vanilla.train(self.training)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return {parameter: the one it is tied to}; layers are tied whether or not the embedding is."""
        return dict(self._tied_weights_keys)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of tokens."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of tokens."""
        self.model.set_input_embeddings(value)

    def _head(self, hidden: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """Return logits (batch, kept, vocabulary) of normed states (batch, length, width)."""
        logits = self.lm_head(slice_logits_to_keep(hidden, logits_to_keep))
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _check_length(self, columns: int, position_ids: Any, cache: Any) -> None:
        """Refuse more tokens than positions; a row of packed sequences counts its own positions."""
        if position_ids is not None and cache is None:
            return
        cached = 0 if cache is None else cache.get_seq_length()  # a static cache's length is on the device: not read
        check_length("input_ids with what is cached", columns + (cached if isinstance(cached, int) else 0), self.config)

    def _validate_generated_length(self, generation_config: Any, input_ids_length: int, *others: Any) -> None:
        super()._validate_generated_length(generation_config, input_ids_length, *others)  # type: ignore[misc]
        check_length("max_new_tokens and the prompt", generation_config.max_length, self.config)

    def _find_ties(self) -> dict[str, str]:
        """Return {name of a parameter: name of the first one that is the same}."""
        ties = {}
        first: dict[int, int] = {}
        for depth, unique in enumerate(self.config.layer_map):
            source = first.setdefault(unique, depth)
            if source == depth:
                continue
            for name, parameter in self.model.layers[depth].named_parameters():
                if is_shared(name, parameter, self.config.tie_vectors):
                    ties[f"model.layers.{depth}.{name}"] = f"model.layers.{source}.{name}"
        if self.config.tie_word_embeddings:
            embedding = "embed_in" if self.config.base_model_type == "gpt_neox" else "embed_tokens"
            ties["lm_head.weight"] = f"model.{embedding}.weight"
        return ties


def is_shared(name: str, parameter: torch.Tensor, tie_vectors: bool) -> bool:
    """Say whether a parameter of a layer, a matrix or a vector, is the same at all depths of the layer."""
    return not name.endswith(("lora_a", "lora_b")) and (tie_vectors or parameter.ndim > 1)


def set_parameter(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a tensor of the same shape in the place of a parameter."""
    owner, leaf = _owner(module, name)
    setattr(owner, leaf, nn.Parameter(value, requires_grad=value.is_floating_point()))


def layers_of(model: PreTrainedModel) -> Any:
    """Return the layers of a vanilla or a recursive model, in order of depth."""
    return model.base_model.layers


def copy_outside(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Copy what stands outside the layers from one model to another: embedding, final norm, head and buffers."""
    ours, theirs = source.base_model, target.base_model
    for name, parameter in ours.named_parameters():
        if not name.startswith("layers."):
            set_parameter(theirs, name, parameter.detach().clone())
    for name, buffer in ours.named_buffers():
        owner, leaf = _owner(theirs, name)
        owner.register_buffer(leaf, buffer.clone(), persistent=False)
    if not target.config.tie_word_embeddings:
        target.get_output_embeddings().weight = nn.Parameter(source.get_output_embeddings().weight.detach().clone())
    target.tie_weights()


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, leaf = name.rpartition(".")
    return module.get_submodule(parent), leaf


def _vanilla_class(config: RecursiveConfig) -> type:
    return type(AutoConfig.for_model(config.base_model_type))


AutoConfig.register(RecursiveConfig.model_type, RecursiveConfig)
AutoModelForCausalLM.register(RecursiveConfig, RecursiveForCausalLM)
