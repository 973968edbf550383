"""The configuration: a Llama's, and how its middle is looped and routed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from natwise.core.validation import check_flag, check_integer, check_option, check_real, shorten
from natwise.lm._checks import check_sizes
from natwise.lm._recursion import SHARINGS, layer_map, n_outer

ROUTINGS = ("expert_choice", "token_choice")
KV_KINDS = ("cache", "share", "hybrid")
ROUTERS = ("linear", "mlp", "wide_mlp")


@strict
class MoRConfig(LlamaConfig):
    """Configuration of a mixture of recursions; every field of `transformers.LlamaConfig` is one of its own too.

    Parameters
    ----------
    num_hidden_layers : int
        The unrolled depth L. It is `num_recursions` times the length of the looped block, plus 2 for ``"middle_*"``.
    num_recursions : int
        How often the block is passed at most (N).
    sharing : {"middle_cycle", "cycle", "sequence", "middle_sequence"}
        Which unrolled layers are one (spec: u(l) = l mod K for cycles, l div N for sequences); ``"middle_*"`` keeps the
        first and the last layer out of the loop.
    routing : {"expert_choice", "token_choice"}
        Each recursion picks its tokens among those of the one before; or each token picks its depth at the start.
    kv : {"cache", "share", "hybrid"}
        Tokens attend to those that reached the same recursion; or to the keys and values of the first recursion; or to
        these, replaced by fresh ones where the token reached this recursion.
    capacity : sequence of float, optional
        Share of the tokens in each recursion, for expert choice. Default: (N - r + 1) / N.
    capacity_warmup_steps : int
        Training forward passes in which the capacities sink from 1, along a cosine. They are counted in a buffer, so
        that a loaded model goes on where the saved one stopped.
    router : {"linear", "mlp", "wide_mlp"}
        The original code gives the last two the same hidden width, 2d; so do we (its paper says 4d for the wide one).
    router_activation : {"sigmoid", "tanh", "softmax"}
        What turns a router's logits into gates; expert choice has sigmoid or tanh, token choice sigmoid or softmax.
        Default: sigmoid, softmax.
    alpha : float, optional
        Factor of the gates. Default: 0.1, and 1 for softmax.
    temperature : float
        A router sees its input divided by it.
    gating : {"weighted", "additive"}
        Whether a block's output is multiplied by its gate.
    sampling : {"aux_loss", "aux_router"}
        What learns to say without the future which tokens top-k takes: the router, by an auxiliary loss; or a second
        router on detached inputs.
    sampling_first : bool
        Whether the first recursion takes part in that loss.
    sampling_coef, z_coef, balancing_coef : float
        Coefficients of the auxiliary losses, for an objective that is a mean over tokens. The published 0.001 was added
        undivided at each of 16 accumulated batches, so that its true coefficient there was about 0.016.
    balancing : {"loss", "loss_free"}
        How token choice is kept balanced: by a loss, or by a bias that moves by `balancing_step` after each training
        forward pass (with m accumulated batches, take a step m times smaller).
    balancing_step : float
    balancing_warmup_steps : int
        Training forward passes in which token choice sends every token through all recursions.
    threshold : float
        In causal inference a token goes on while sigmoid(logit) is at least this.
    tie_attention : bool
        False gives every recursion an attention of its own, as an early version of the original code did by mistake.
        Only for loading its weights.
    vocab_size, hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim, hidden_act
        As in `transformers.LlamaConfig`, like the next two lines.
    max_position_embeddings, initializer_range, rms_norm_eps, use_cache, pad_token_id, bos_token_id, eos_token_id
        Positions, initial weights, norms, cache and special tokens.
    pretraining_tp, tie_word_embeddings, rope_parameters, attention_bias, attention_dropout, mlp_bias
        Embeddings and layers.
    transformers_version, architectures, output_hidden_states, return_dict, dtype, chunk_size_feed_forward
        As in `transformers.PreTrainedConfig`, like the next line.
    is_encoder_decoder, id2label, label2id, problem_type
        Unused here.

    Raises
    ------
    ValueError, TypeError
        Before anything is allocated, for values that make no model.
    """

    model_type = "natwise_mor"
    fixed = ("num_hidden_layers", "num_recursions", "sharing", "routing", "router", "tie_attention")
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "past_key_values",
        "selected_positions",
        "depths",
        "lm_loss",
        "sampling_loss",
        "sampling_accuracy",
        "router_z_loss",
        "balancing_loss",
        "balancing_ratio",
    ]

    vocab_size: Any = LlamaConfig.vocab_size  # the sizes are checked here, in the house's words
    hidden_size: Any = LlamaConfig.hidden_size
    intermediate_size: Any = LlamaConfig.intermediate_size
    num_hidden_layers: Any = LlamaConfig.num_hidden_layers
    num_attention_heads: Any = LlamaConfig.num_attention_heads
    num_key_value_heads: Any = LlamaConfig.num_key_value_heads
    max_position_embeddings: Any = LlamaConfig.max_position_embeddings

    num_recursions: Any = 3
    sharing: Any = "middle_cycle"
    routing: Any = "expert_choice"
    kv: Any = "cache"
    capacity: Any = None
    capacity_warmup_steps: Any = 0
    router: Any = "linear"
    router_activation: Any = None
    alpha: Any = None
    temperature: Any = 1.0
    gating: Any = "weighted"
    sampling: Any = "aux_loss"
    sampling_first: Any = True
    sampling_coef: Any = 0.001
    z_coef: Any = 0.0
    balancing: Any = "loss"
    balancing_coef: Any = 0.1
    balancing_step: Any = 0.001
    balancing_warmup_steps: Any = 0
    threshold: Any = 0.5
    tie_attention: Any = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.check()
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """Refuse values that make no model."""
        self._check_sizes()
        self._check_options()
        self._check_numbers()
        self._check_depth()
        self.capacity = self._checked_capacity()
        if self.kv != "cache" and self.sharing.endswith("sequence"):
            raise ValueError(f"kv must be 'cache' with sharing={self.sharing!r}, got {self.kv!r}: its loops differ")
        if self.kv != "cache" and self.capacity[0] < 1:
            raise ValueError(f"capacity must begin with 1 with kv={self.kv!r}, got {self.capacity[0]}")

    @property
    def n_outer(self) -> int:
        """Layers before the loop, and as many after it."""
        return n_outer(self.sharing)

    @property
    def block_length(self) -> int:
        """Layers of the looped block (K)."""
        return int((self.num_hidden_layers - 2 * self.n_outer) // self.num_recursions)

    @property
    def layer_map(self) -> list[int]:
        """Which of the stored layers serves each unrolled depth."""
        return layer_map(self.num_hidden_layers, self.num_recursions, self.sharing)

    def _check_sizes(self) -> None:
        check_sizes(vars(self))
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(f"hidden_size must be a multiple of num_attention_heads={heads}, got {self.hidden_size}")
        if kv_heads is not None and heads % check_integer("num_key_value_heads", kv_heads, minimum=1):
            raise ValueError(f"num_key_value_heads must divide num_attention_heads={heads}, got {kv_heads}")

    def _check_options(self) -> None:
        check_option("sharing", self.sharing, SHARINGS)
        check_option("routing", self.routing, ROUTINGS)
        check_option("kv", self.kv, KV_KINDS)
        check_option("router", self.router, ROUTERS)
        expert = self.routing == "expert_choice"
        if self.router_activation is None:
            self.router_activation = "sigmoid" if expert else "softmax"
        kinds = ("sigmoid", "tanh") if expert else ("softmax", "sigmoid")
        check_option("router_activation", self.router_activation, kinds)
        check_option("gating", self.gating, ("weighted", "additive"))
        check_option("sampling", self.sampling, ("aux_loss", "aux_router"))
        check_option("balancing", self.balancing, ("loss", "loss_free"))
        for name in ("sampling_first", "tie_attention"):
            check_flag(name, getattr(self, name))

    def _check_numbers(self) -> None:
        for name in ("capacity_warmup_steps", "balancing_warmup_steps"):
            check_integer(name, getattr(self, name), minimum=0)
        for name in ("sampling_coef", "z_coef", "balancing_coef", "balancing_step"):
            setattr(self, name, check_real(name, getattr(self, name), minimum=0.0))
        if self.alpha is None:
            self.alpha = 1.0 if self.router_activation == "softmax" else 0.1
        self.alpha = check_real("alpha", self.alpha, minimum=0.0, maximum=None, exclusive=True)
        self.temperature = check_real("temperature", self.temperature, minimum=0.0, exclusive=True)
        self.threshold = check_real("threshold", self.threshold, minimum=0.0, maximum=1.0)

    def _check_depth(self) -> None:
        n = check_integer("num_recursions", self.num_recursions, minimum=1)
        looped = self.num_hidden_layers - 2 * self.n_outer
        if looped < n or looped % n:
            below = max(looped // n, 1) * n + 2 * self.n_outer
            raise ValueError(
                f"num_hidden_layers must be a multiple of num_recursions={n}"
                f"{' plus 2' if self.n_outer else ''} with sharing={self.sharing!r}, such as {below} or {below + n}, "
                f"got {self.num_hidden_layers}"
            )

    def _checked_capacity(self) -> list[float]:
        n, given = self.num_recursions, self.capacity
        if given is None:
            return [(n - r) / n for r in range(n)]
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(
                f"capacity must be a sequence of {n} numbers, got {shorten(given)} ({type(given).__name__})"
            )
        values = [check_real("capacity", value, minimum=0.0, maximum=1.0) for value in given]
        if len(values) != n:
            raise ValueError(f"capacity must have num_recursions={n} entries, got {len(values)}")
        if 0 in values or any(later > earlier for earlier, later in pairwise(values)):
            raise ValueError(f"capacity must be above 0 and not increase, got {values}")
        return values
