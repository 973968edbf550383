"""What serving needs of a looped model, and the two models that give it."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from natwise.lm.mixture_of_recursions._cache import EMPTY, MoRCache, RaggedStore
from natwise.lm.mixture_of_recursions._causal_lm import MoRForCausalLM
from natwise.lm.mixture_of_recursions._layers import decoder_layer, project_keys
from natwise.lm.mixture_of_recursions._routing import gates
from natwise.lm.mixture_of_recursions._rows import per_row
from natwise.lm.mixture_of_recursions._slots import Rows, Slots


class Looped(Protocol):
    """A model whose block can be called with rows at different loops."""

    num_loops: int
    width: int
    policies: tuple[str, ...]  # what it can do about missing keys and values, the usual first
    routed: bool  # whether `goes_on` says when to stop
    may_skip: bool  # even before the first loop

    def prefill(self, ids: Tensor, slot: int) -> None:
        """Run prompt tokens (n,) through the whole model and keep their keys and values in a slot."""

    def clear(self, slot: int) -> None:
        """Forget a slot's keys and values."""

    def begin(self, ids: Tensor, rows: Rows) -> Tensor:
        """Return what enters the loop (b, d) for tokens (b,)."""

    def step(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Return the block's output (b, n, d) of hidden states (b, n, d), row i being at loop ``rows.loops[i]``."""

    def goes_on(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Return which rows, bool (b,), enter the loop they are before, with hidden states (b, d)."""

    def fill(self, hidden: Tensor, rows: Rows) -> None:
        """Make up keys and values of the loops from `rows.loops` on, from the state (b, d) that was left behind."""

    def finish(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Return the logits (b, vocabulary) of what left the loop (b, d)."""


class MoRLoop:
    """A mixture of recursions, for serving; what it does about missing keys and values is its own `kv`."""

    routed = True

    def __init__(self, model: MoRForCausalLM, n_slots: int):
        config, inner = model.config, model.model
        if not config.sharing.endswith("cycle") or not config.tie_attention or config.kv == "hybrid":
            raise ValueError(
                "model must loop one block: sharing 'cycle' or 'middle_cycle', tie_attention=True, kv 'cache' or "
                f"'share', got {config.sharing!r}, {config.tie_attention}, {config.kv!r}"
            )
        self.model, self.inner, self.num_loops, self.width = model, inner, config.num_recursions, config.hidden_size
        self.policies: tuple[str, ...] = ("share_first" if config.kv == "share" else "recursion_wise",)
        self.outer = [Slots(1, 1, n_slots, False) for _ in range(2 * config.n_outer)]
        self.block = Slots(config.block_length, self.num_loops, n_slots, config.kv == "share")
        self.outer_layers = [inner.layer(depth) for depth in (0, config.num_hidden_layers - 1)]
        self.block_layers = [inner.layer(depth) for depth in inner.loop_depths(0)]
        self.token_choice, self.additive = config.routing == "token_choice", config.gating == "additive"
        self.may_skip = not self.token_choice and config.capacity[0] < 1
        self.gates, self.threshold = (
            functools.partial(gates, activation=config.router_activation, alpha=config.alpha),
            config.threshold,
        )
        like = next(model.parameters())
        self.entry = like.new_zeros(n_slots, self.width)  # token choice: the state before the loop,
        self.gate = like.new_ones(n_slots, 1)  # the weight of what comes out,
        self.last = torch.zeros(n_slots, dtype=torch.int64, device=model.device)  # and the last loop

    def prefill(self, ids: Tensor, slot: int) -> None:
        """Run prompt tokens through the model by its causal rule."""
        cache = MoRCache(self.model.config)
        self.inner(ids[None], None, None, cache, None, "causal")
        for slots, store in zip(self.outer, [*cache.first, *cache.last], strict=True):
            slots.load(slot, _tokens_of(store))
        for r, store in enumerate(cache.loops):
            if store.ordinals is not None:
                self.block.load(r * self.block.n_slots + slot, _tokens_of(store))

    def clear(self, slot: int) -> None:
        """Forget a slot."""
        for slots in (*self.outer, self.block):
            slots.clear(slot)

    def begin(self, ids: Tensor, rows: Rows) -> Tensor:
        """Embed and pass the layer before the loop."""
        x = self.inner.embed_tokens(ids)[:, None]
        if self.outer:
            x = self._outside(0, x, rows)
        if self.token_choice:
            slots = rows.slot_index
            weight = self.gates(self.inner.routers[0](x)[:, 0].view(len(x), -1))
            last = (weight + self.inner.router_bias).argmax(-1)
            self.entry[slots], self.last[slots] = x[:, 0], last
            self.gate[slots] = weight.gather(-1, last[:, None])
        return x[:, 0]

    def step(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Pass the block once and add what its router weighs."""
        x = self._through(self.block_layers, hidden, rows, self.block)
        if self.token_choice:
            return x
        if not self.additive:
            x = self.gates(self._of_loop(self.inner.routers, hidden, rows))[..., None] * x
        return hidden + x

    def goes_on(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Ask the router, or what it said at the start."""
        if self.token_choice:
            return rows.loop_index <= self.last[rows.slot_index]
        guess = self._of_loop(self.inner.aux_routers or self.inner.routers, hidden[:, None], rows)[:, 0]
        return guess.sigmoid() >= self.threshold

    def fill(self, hidden: Tensor, rows: Rows) -> None:
        """Nothing: a token that stopped is not there for deeper recursions."""

    def finish(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Pass the layer after the loop, norm and head."""
        if self.token_choice:
            slots = rows.slot_index
            hidden = self.entry[slots] + (hidden if self.additive else self.gate[slots] * hidden)
        x = hidden[:, None]
        if self.outer:
            x = self._outside(1, x, rows)
        logits: Tensor = self.model.lm_head(self.inner.norm(x))[:, 0]
        return logits

    def _outside(self, index: int, x: Tensor, rows: Rows) -> Tensor:
        """Pass states (b, 1, d) through the layer before (0) or after (1) the loop."""
        return self._through([self.outer_layers[index]], x, rows.at_loop(0), self.outer[index])

    def _through(self, layers: list[Any], x: Tensor, rows: Rows, place: Slots) -> Tensor:
        """Pass states (b, n, d) through layers whose keys and values stand in one place."""
        mask, rope = place.open(rows), self.inner.rotary_emb(x, position_ids=rows.positions)
        for i, layer in enumerate(layers):
            x = decoder_layer(layer, layer.self_attn, x, rope, mask, self._memory(place, i, rope))
        return x

    def _memory(self, place: Slots, layer: int, rope: tuple[Tensor, Tensor]) -> Any:
        """Return what gives a layer its keys and values, for cosines and sines (b, n, width)."""
        return lambda attention, x: place.exchange(layer, *project_keys(attention, x, rope))

    def _of_loop(self, routers: Any, hidden: Tensor, rows: Rows) -> Tensor:
        """Return the logits (b, n) of each row's own router."""
        every = torch.stack([router(hidden) for router in routers], dim=1)
        return every[torch.arange(len(every), device=every.device), rows.loop_index]


class RecursiveLoop:
    """A model that stores a block of Hugging Face layers and loops over it, such as `RecursiveForCausalLM`.

    It needs `config.num_loops`, `base_model.layers` (one per unrolled depth), `base_model.rotary_emb`, `final_norm` and
    `lm_head`. Parameters that differ between loops, low-rank deltas above all, are taken row by row.
    """

    policies: tuple[str, ...] = ("recursion_wise", "share_first", "copy_hidden", "recompute")
    routed = may_skip = False

    def __init__(self, model: Any, n_slots: int, missing_kv: str | None, lora: str):
        config = model.config
        self.model, self.num_loops, self.width = model, config.num_loops, config.hidden_size
        if getattr(config, "sharing", "cycle") != "cycle":
            raise ValueError(f"model must loop one block: sharing 'cycle', got {config.sharing!r}")
        if "sliding_attention" in (getattr(config, "layer_types", None) or []):
            raise ValueError("model must attend to all tokens, got layer_types with 'sliding_attention'")
        layers = list(model.base_model.layers)
        length = len(layers) // self.num_loops
        self.current: dict[str, Rows] = {}
        self.layers = [per_row([layers[r * length + j] for r in range(self.num_loops)], self.current, lora)
                       for j in range(length)]  # fmt: skip
        self.gains: list[list[Any]] = [
            [one for one in layer.modules() if hasattr(one, "of_loops")] for layer in self.layers
        ]
        self.block = Slots(length, self.num_loops, n_slots, missing_kv == "share_first")

    def prefill(self, ids: Tensor, slot: int) -> None:
        """Run prompt tokens through all loops."""
        cache: Any = DynamicCache(config=self.model.config)
        self.model.base_model(input_ids=ids[None], past_key_values=cache, use_cache=True)
        length = len(self.layers)
        pairs = [(one.keys[0].transpose(0, 1), one.values[0].transpose(0, 1)) for one in cache.layers]
        for r in range(1 if self.block.first_serves_all else self.num_loops):
            self.block.load(r * self.block.n_slots + slot, pairs[r * length : (r + 1) * length])

    def clear(self, slot: int) -> None:
        """Forget a slot."""
        self.block.clear(slot)

    def begin(self, ids: Tensor, rows: Rows) -> Tensor:
        """Embed."""
        x: Tensor = self.model.get_input_embeddings()(ids)
        return x

    def step(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Pass the block once."""
        for layer, given in self._calls(hidden, rows):
            hidden = layer(hidden, **given)
        return hidden

    def goes_on(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Go on to the end."""
        return torch.ones_like(rows.loop_index, dtype=torch.bool)

    def fill(self, hidden: Tensor, rows: Rows) -> None:
        """Let the attention of the remaining loops see the state that was left behind (their output is not used)."""
        for loop in range(int(rows.loops.min(initial=self.num_loops)), self.num_loops):
            here = (rows.loops <= loop).nonzero()[0]
            x = hidden[rows.tensor(here), None]
            for layer, given in self._calls(x, rows.only(here).at_loop(loop)):
                attention = layer.attention if hasattr(layer, "attention") else layer.self_attn
                attention(layer.input_layernorm(x), **given)

    def finish(self, hidden: Tensor, rows: Rows) -> Tensor:
        """Norm and head."""
        logits: Tensor = self.model.lm_head(self.model.final_norm(hidden))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _calls(self, hidden: Tensor, rows: Rows) -> Any:
        """Yield each layer of the block with its arguments, for states (b, n, d)."""
        seen = self.block.open(rows)
        mask = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)
        rope = self.model.base_model.rotary_emb(hidden, position_ids=rows.positions)
        self.current["rows"] = rows
        for index, layer in enumerate(self.layers):
            for gain in self.gains[index]:
                gain.weight = gain.of_loops[rows.loop_index][(slice(None), *[None] * gain.extra_axes)]
            given = {
                "attention_mask": mask, "position_embeddings": rope, "position_ids": rows.positions, "use_cache": True
            }  # fmt: skip
            name = "layer_past" if hasattr(layer, "attention") else "past_key_values"
            yield layer, {**given, name: _View(self.block, index)}


class _View:
    """What a Hugging Face attention takes for its cache."""

    def __init__(self, block: Slots, index: int):
        self.block, self.index = block, index

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values (b, heads, n, width); return those to attend to."""
        found = self.block.exchange(self.index, keys.transpose(1, 2), values.transpose(1, 2))
        return found[0].transpose(1, 2), found[1].transpose(1, 2)


def looped(model: Any, n_slots: int, missing_kv: str | None, lora: str) -> Looped:
    """Return what serves a model."""
    if isinstance(model, MoRForCausalLM):
        return MoRLoop(model, n_slots)
    if isinstance(model, nn.Module) and hasattr(getattr(model, "config", None), "num_loops"):
        return RecursiveLoop(model, n_slots, missing_kv, lora)
    raise TypeError(f"model must be a MoRForCausalLM or RecursiveForCausalLM, got {type(model).__name__}")


def _tokens_of(store: RaggedStore) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values (n, heads, width) of each layer of a store with one row."""
    assert store.ordinals is not None
    n = int((store.ordinals[0] != EMPTY).sum())
    pairs = zip(store.keys, store.values, strict=True)
    return [(keys[0, :n], values[0, :n]) for keys, values in pairs if keys is not None and values is not None]
