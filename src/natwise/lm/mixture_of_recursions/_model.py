"""The transformer: layers before the loop, the routed loop, layers after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from natwise.lm.mixture_of_recursions._cache import EMPTY, MoRCache, RaggedStore
from natwise.lm.mixture_of_recursions._config import MoRConfig
from natwise.lm.mixture_of_recursions._layers import Memory, Rope, decoder_layer, project_keys
from natwise.lm.mixture_of_recursions._routing import (
    Losses,
    Router,
    Tokens,
    capacity_counts,
    every,
    gates,
    mean_over,
    top_k,
    warmed_up,
    where,
)

SELECTIONS = ("top_k", "causal")


@dataclass
class Pass:
    """What the layers of one forward pass share; columns of padding are left out of everything here.

    Attributes
    ----------
    tokens : Tokens
        The batch's tokens (batch, n), at the start of their rows.
    columns : Tensor
        Where each came from (batch, n).
    ordinals : Tensor
        Tokens before each in its sequence, cached ones counted (batch, n).
    rope : pair of Tensor
    cache : MoRCache
        A passing one when nothing is to be kept.
    selection : {"top_k", "causal"}
    losses : Losses
    chosen : list of Tokens
        Of each recursion.
    """

    tokens: Tokens
    columns: Tensor
    ordinals: Tensor
    rope: Rope
    cache: MoRCache
    selection: str
    losses: Losses
    chosen: list[Tokens] = field(default_factory=list)


class MoRPreTrainedModel(LlamaPreTrainedModel):
    """What model classes of a mixture of recursions share."""

    config: MoRConfig
    config_class = MoRConfig
    base_model_prefix = "model"
    _no_split_modules = ["LlamaDecoderLayer"]  # noqa: RUF012
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False
    _can_compile_fullgraph = False
    _can_record_outputs: dict[str, Any] = {}  # noqa: RUF012


class MoRModel(MoRPreTrainedModel):
    """Embedding, layers and final norm, without a head; `MoRForCausalLM` describes its arguments."""

    training_steps: Tensor
    router_bias: Tensor

    def __init__(self, config: MoRConfig):
        if not isinstance(config, MoRConfig):
            raise TypeError(f"config must be a MoRConfig, got {type(config).__name__}")
        config.check()  # its fields may have been changed
        super().__init__(config)
        n, length = config.num_recursions, config.block_length
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self._serves = config.layer_map  # a configuration's attributes are slow
        self._before_later = config.n_outer + length
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, index) for index in range(max(self._serves) + 1)])
        self.attentions = nn.ModuleList()  # of the loop's depths after the first pass, when they are not tied
        if not config.tie_attention:
            later = range(config.n_outer + length, config.num_hidden_layers - config.n_outer)
            self.attentions.extend([LlamaAttention(config, index) for index in later])
        kind, width = config.router, config.hidden_size
        expert = config.routing == "expert_choice"
        sizes = [1] * n if expert else [n]
        self.routers = nn.ModuleList([Router(kind, width, size, config.temperature) for size in sizes])
        aux = expert and config.sampling == "aux_router"
        self.aux_routers = nn.ModuleList([Router(kind, width, 1, config.temperature) for _ in range(n * aux)])
        self.norm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.register_buffer("training_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("router_bias", torch.zeros(n))
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: MoRCache | None,
        inputs_embeds: Tensor | None,
        selection: str | None,
    ) -> tuple[Tensor, Pass]:
        """Return hidden states (batch, columns, d), 0 at padding, and what the pass has found."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        shape = (inputs_embeds.shape[0], inputs_embeds.shape[1])
        tokens = _present(attention_mask, shape, inputs_embeds.device)
        cache = MoRCache(self.config) if past_key_values is None else past_key_values
        here = self._begin(tokens, inputs_embeds, position_ids, cache, self._selection(selection, past_key_values))
        x = tokens.take(inputs_embeds)
        for depth, store in enumerate(cache.first):
            x = self.run([depth], x, here.tokens, here, store)
        x = self._expert_choice(x, here) if self.config.routing == "expert_choice" else self._token_choice(x, here)
        for index, store in enumerate(cache.last):
            x = self.run([self.config.num_hidden_layers - len(cache.last) + index], x, here.tokens, here, store)
        if self.training:
            self.training_steps += 1
        blank = x.new_zeros(*shape, x.shape[-1])
        return tokens.add(blank, self.norm(x)), here

    def run(
        self,
        depths: list[int],
        x: Tensor,
        tokens: Tokens,
        here: Pass,
        store: RaggedStore,
        base: RaggedStore | None = None,
    ) -> Tensor:
        """Pass tokens through layers of one store and return their output (batch, n, d).

        Parameters
        ----------
        depths : list of int
            Unrolled depths.
        x : Tensor
            Hidden states (batch, n, d) of these tokens.
        tokens : Tokens
            Their places among `here.tokens`.
        here : Pass
        store : RaggedStore
            Where their keys and values go.
        base : RaggedStore, optional
            The first recursion's, when it serves this one too.
        """
        ordinals, cos, sin = tokens.take(here.ordinals), *map(tokens.take, here.rope)
        alone = store.ordinals is None
        shared = base is not None and self.config.kv == "share"
        own = None if shared else store.reserve(ordinals, tokens.valid)
        met = own if base is None else base.view_ordinals()
        assert met is not None
        mask = None if tokens.full and alone and base is None else _mask(ordinals, tokens.valid, met)
        memories = [_memory(i, (cos, sin), store, base, own) for i in range(len(depths))]

        def block(x: Tensor) -> Tensor:
            for depth, memory in zip(depths, memories, strict=True):
                x = decoder_layer(self.layer(depth), self.attention(depth), x, (cos, sin), mask, memory)
            return x

        if self.gradient_checkpointing and self.training:
            # not the reentrant kind: it would cut the gradient of keys and values that later recursions read
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def layer(self, depth: int) -> Any:
        """Return the stored layer that serves an unrolled depth."""
        return self.layers[self._serves[depth]]

    def attention(self, depth: int) -> Any:
        """Return the attention of an unrolled depth."""
        later = depth - self._before_later
        if 0 <= later < len(self.attentions):
            return self.attentions[later]
        return self.layer(depth).self_attn

    def loop_depths(self, recursion: int) -> list[int]:
        """Return the unrolled depths of a recursion."""
        start = self.config.n_outer + recursion * self.config.block_length
        return list(range(start, start + self.config.block_length))

    def goes_on(self, recursion: int, x: Tensor, logits: Tensor) -> Tensor:
        """Return which tokens (batch, n) enter a recursion, said without the future (expert choice)."""
        if recursion == 0 and self.config.capacity[0] == 1:
            return torch.ones_like(logits, dtype=torch.bool)
        guess = self.aux_routers[recursion](x) if len(self.aux_routers) else logits
        return guess.sigmoid() >= self.config.threshold

    def _begin(
        self, tokens: Tokens, embeds: Tensor, position_ids: Tensor | None, cache: MoRCache, selection: str
    ) -> Pass:
        """Return what the layers share, for embeddings (batch, columns, d) and positions (1 or batch, columns)."""
        past = cache.see(torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device).scatter(
            1, tokens.index, tokens.valid
        ))  # fmt: skip
        n = tokens.index.shape[1]
        compact = Tokens(torch.arange(n, device=embeds.device).expand(len(embeds), n), tokens.valid, tokens.full)
        ordinals = past[:, None] + compact.index
        positions = ordinals if position_ids is None else tokens.take(position_ids.expand(embeds.shape[:2]))
        rope = self.rotary_emb(embeds, position_ids=positions)
        losses = Losses.zeros(embeds, self.config.num_recursions if self.config.routing == "token_choice" else 1)
        return Pass(compact, tokens.index, ordinals, rope, cache, selection, losses)

    def _selection(self, given: str | None, past: MoRCache | None) -> str:
        if self.config.routing == "token_choice":
            return "causal"
        selection = ("top_k" if self.training else "causal") if given is None else given
        if selection == "top_k" and past is not None:
            raise ValueError(
                "selection must be 'causal' with a cache, got 'top_k': it looks at tokens that are yet to come; "
                "call model.eval() before generation"
            )
        return str(selection)

    def _expert_choice(self, x: Tensor, here: Pass) -> Tensor:
        """Pass states (batch, n, d) through the recursions, each of which picks its tokens."""
        config, active = self.config, here.tokens
        for r, router in enumerate(self.routers):
            inputs = active.take(x)
            logits = router(inputs)
            gate = gates(logits, config.router_activation, config.alpha)
            if here.selection == "top_k":
                # by logits, which rank like gates but do not saturate: equal gates would leave the choice to chance
                chosen = top_k(logits.detach(), active, self._count(r, here))
                guess = self.aux_routers[r](inputs.detach()) if len(self.aux_routers) else logits
                here.losses.add_choice(logits, guess, chosen, active, float(r > 0 or config.sampling_first))
            else:
                chosen = where(self.goes_on(r, inputs, logits) & active.valid)
            tokens = active.among(chosen)
            here.chosen.append(tokens)
            if not chosen.index.shape[1]:
                break
            base = here.cache.loops[0] if r and config.kv != "cache" else None
            update = self.run(self.loop_depths(r), chosen.take(inputs), tokens, here, here.cache.loops[r], base)
            x = tokens.add(x, update if config.gating == "additive" else chosen.take(gate)[..., None] * update)
            active = tokens
        here.losses.accuracy = here.losses.accuracy / (config.num_recursions - 1 + config.sampling_first or 1)
        return x

    def _count(self, recursion: int, here: Pass) -> Tensor | int:
        """Return how many tokens a recursion takes of each row: an int, or a tensor (batch,)."""
        share = self.config.capacity[recursion]
        if self.training and self.config.capacity_warmup_steps:
            share = warmed_up(share, int(self.training_steps), self.config.capacity_warmup_steps)
        return capacity_counts(share, here.tokens.counts, here.tokens.full, here.tokens.index.shape[1])

    def _token_choice(self, x: Tensor, here: Pass) -> Tensor:
        """Pass states (batch, n, d) through the recursions, to the depth that each token picks first."""
        config = self.config
        logits = self.routers[0](x).view(*x.shape[:2], config.num_recursions)
        gate = gates(logits, config.router_activation, config.alpha)
        last = (gate.detach() + self.router_bias.to(gate.dtype)).argmax(dim=-1)
        if self.training:
            self._report_balance(logits, gate, last, here)
            if int(self.training_steps) < config.balancing_warmup_steps:
                last = torch.full_like(last, config.num_recursions - 1)
        current = x
        for r in range(config.num_recursions):
            tokens = here.tokens if r == 0 else where((last >= r) & here.tokens.valid)
            here.chosen.append(tokens)
            if not tokens.index.shape[1]:
                break
            base = here.cache.loops[0] if r and config.kv != "cache" else None
            update = self.run(self.loop_depths(r), tokens.take(current), tokens, here, here.cache.loops[r], base)
            current = tokens.put(current, update)
        if config.gating == "additive":
            return x + current
        return x + gate.gather(-1, last[..., None]) * current

    def _report_balance(self, logits: Tensor, gate: Tensor, last: Tensor, here: Pass) -> None:
        """Fill in the losses of token choice: logits and gates (batch, n, recursions), depths (batch, n).

        Where a bias takes the place of the balancing loss, move it.
        """
        n, losses, tokens = self.config.num_recursions, here.losses, here.tokens
        dtype = losses.z.dtype
        assigned = torch.nn.functional.one_hot(last, n).to(dtype) * tokens.valid[..., None]
        counts = _over_processes(assigned.sum((0, 1)))
        losses.ratio = counts / counts.sum().clamp(min=1)
        losses.z = mean_over(logits.to(dtype).logsumexp(-1) ** 2, tokens)
        if self.config.balancing == "loss":
            mean_gate = torch.stack([mean_over(part, tokens) for part in gate.to(dtype).unbind(-1)])
            losses.balancing = n * (losses.ratio * mean_gate).sum()
        else:
            with torch.no_grad():
                lack = counts.mean() - counts
                self.router_bias += self.config.balancing_step * lack.sign().to(self.router_bias.dtype)


def _over_processes(counts: Tensor) -> Tensor:
    """Return counts (recursions,) summed over the processes that train together, so that they balance like one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
    return counts


def _present(mask: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tokens:
    """Return the tokens that are not padding; the mask (batch, past + columns) may cover cached columns too."""
    if mask is None:
        return every(shape, device)
    valid = mask[:, -shape[1] :].to(device).bool()
    if bool(valid.all()):
        return every(shape, device)
    if not bool(valid.any()):
        raise ValueError("attention_mask must keep at least one token of the input, got only zeros")
    return where(valid)


def _mask(ordinals: Tensor, valid: Tensor, met: Tensor) -> Tensor:
    """Return bool (batch, 1, n, length): what each query may attend to; queries of no token see something, not NaN."""
    return ((met[:, None, :] <= ordinals[:, :, None]) | ~valid[:, :, None])[:, None]


def _memory(index: int, rope: Rope, store: RaggedStore, base: RaggedStore | None, own: Tensor | None) -> Memory:
    """Return what gives layer `index` of a store its keys and values; `own`: the ordinals in the store, if used."""

    def memory(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if own is None:
            assert base is not None
            return base.read(index)
        fresh = store.write(index, *project_keys(attention, x, rope))
        if base is None:
            return fresh
        row, place = (own != EMPTY).nonzero(as_tuple=True)
        at = (row, own[row, place])  # the first recursion holds every token: a token's place is its ordinal
        keys, values = (old.index_put(at, new[row, place]) for old, new in zip(base.read(index), fresh, strict=True))
        return keys, values

    return memory
