"""What serving needs of a looped model, and the two models that give it.

A slot is a place for one request. The keys and values of loop r of a slot stand in row ``r * n_slots + slot`` of one
store, so that one call of the block serves rows at different loops.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from natwise.lm.mixture_of_recursions._cache import EMPTY, MoRCache, RaggedStore
from natwise.lm.mixture_of_recursions._causal_lm import MoRForCausalLM
from natwise.lm.mixture_of_recursions._layers import decoder_layer, project_keys
from natwise.lm.mixture_of_recursions._routing import gates
from natwise.lm.mixture_of_recursions._rows import per_row


class Looped(Protocol):
    """A model whose block can be called with rows at different loops; b rows of n tokens, ordinals int64 (b, n)."""

    num_loops: int
    width: int
    policies: tuple[str, ...]  # what it can do about missing keys and values
    routed: bool  # whether `goes_on` says when to stop

    def prefill(self, ids: Tensor, slot: int) -> None:
        """Run prompt tokens (n,) through the whole model and keep their keys and values in a slot."""

    def clear(self, slot: int) -> None:
        """Forget a slot's keys and values."""

    def begin(self, ids: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Return what enters the loop (b, d) for tokens (b,)."""

    def step(self, hidden: Tensor, valid: Tensor, loops: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Return the block's output (b, n, d), row i being at loop ``loops[i]``."""

    def goes_on(self, hidden: Tensor, loops: Tensor, slots: Tensor) -> Tensor:
        """Return which rows (b,) enter the loop they are before."""

    def fill(self, hidden: Tensor, loops: Tensor, ordinals: Tensor, slots: Tensor) -> None:
        """Make up keys and values of the loops from `loops` on, from the state (b, d) that was left behind."""

    def finish(self, hidden: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Return the logits (b, vocabulary) of what left the loop (b, d)."""


class Slots:
    """Stores of a looped block: a row for every loop and slot."""

    def __init__(self, n_layers: int, n_loops: int, n_slots: int, first_serves_all: bool, device: torch.device):
        self.store = RaggedStore(n_layers)
        self.store.allocate(n_loops * n_slots, device)
        self.n_loops, self.n_slots, self.first_serves_all = n_loops, n_slots, first_serves_all
        self.every_loop = torch.arange(n_loops, device=device)
        self.read_rows = self.writes = self.every_loop

    def open(self, valid: Tensor, loops: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Make place for tokens (b, n); return what each may attend to, bool (b, 1, n, length)."""
        rows = loops * self.n_slots + slots
        self.read_rows = slots if self.first_serves_all else rows
        writers = loops == 0 if self.first_serves_all else loops >= 0
        self.writes = writers.nonzero()[:, 0]
        if len(self.writes):
            self.store.reserve(ordinals[self.writes], valid[self.writes], rows[self.writes])
        met = self.store.view_ordinals(self.read_rows)
        return ((met[:, None, :] <= ordinals[:, :, None]) | ~valid[:, :, None])[:, None]

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values (b, n, heads, width) of the tokens; return those the rows attend to."""
        if len(self.writes):
            self.store.put(layer, keys[self.writes], values[self.writes])
        return self.store.read(layer, self.read_rows)

    def load(self, row: int, ordinals: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Fill an empty row with tokens (n,), given keys and values (n, heads, width) of each layer."""
        if len(ordinals):
            valid = torch.ones_like(ordinals[None], dtype=torch.bool)
            self.store.reserve(ordinals[None], valid, torch.full_like(ordinals[:1], row))
            for layer, (keys, values) in enumerate(pairs):
                self.store.put(layer, keys[None], values[None])

    def clear(self, slot: int) -> None:
        """Empty all loops of a slot."""
        rows = self.every_loop * self.n_slots + slot
        self.store.forget_from(torch.zeros_like(rows), rows)


class MoRLoop:
    """A mixture of recursions, for serving; what it does about missing keys and values is its own `kv`."""

    policies: tuple[str, ...] = ("recursion_wise",)
    routed = True

    def __init__(self, model: MoRForCausalLM, n_slots: int):
        config = model.config
        if not config.sharing.endswith("cycle") or not config.tie_attention or config.kv == "hybrid":
            raise ValueError(
                "model must loop one block: sharing 'cycle' or 'middle_cycle', tie_attention=True, kv 'cache' or "
                f"'share', got {config.sharing!r}, {config.tie_attention}, {config.kv!r}"
            )
        self.model, self.num_loops, self.width = model, config.num_recursions, config.hidden_size
        device = model.device
        self.outer = [Slots(1, 1, n_slots, False, device) for _ in range(2 * config.n_outer)]
        self.block = Slots(config.block_length, self.num_loops, n_slots, config.kv == "share", device)
        self.token_choice = config.routing == "token_choice"
        like = next(model.parameters())
        self.entry = like.new_zeros(n_slots, self.width)  # token choice: the state before the loop,
        self.gate = like.new_ones(n_slots, 1)  # the weight of what comes out,
        self.last = torch.zeros(n_slots, dtype=torch.int64, device=device)  # and the last loop

    def prefill(self, ids: Tensor, slot: int) -> None:
        """Run prompt tokens through the model by its causal rule."""
        cache = MoRCache(self.model.config)
        self.model.model(ids[None], None, None, cache, None, "causal")
        for slots, store in zip(self.outer, [*cache.first, *cache.last], strict=True):
            slots.load(slot, *_tokens_of(store))
        for r, store in enumerate(cache.loops):
            if store.ordinals is not None:
                self.block.load(r * self.block.n_slots + slot, *_tokens_of(store))

    def clear(self, slot: int) -> None:
        """Forget a slot."""
        for slots in (*self.outer, self.block):
            slots.clear(slot)

    def begin(self, ids: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Embed and pass the layer before the loop."""
        x = self.model.model.embed_tokens(ids)[:, None]
        if self.outer:
            x = self._outside(0, x, ordinals, slots)
        if self.token_choice:
            config, inner = self.model.config, self.model.model
            weight = gates(inner.routers[0](x)[:, 0].view(len(x), -1), config.router_activation, config.alpha)
            last = (weight + inner.router_bias).argmax(-1)
            self.entry[slots], self.last[slots] = x[:, 0], last
            self.gate[slots] = weight.gather(-1, last[:, None])
        return x[:, 0]

    def step(self, hidden: Tensor, valid: Tensor, loops: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Pass the block once and add what its router weighs."""
        inner, config = self.model.model, self.model.config
        mask = self.block.open(valid, loops, ordinals, slots)
        rope = inner.rotary_emb(hidden, position_ids=ordinals)
        x = hidden
        for i, depth in enumerate(inner.loop_depths(0)):
            layer = inner.layer(depth)
            x = decoder_layer(layer, layer.self_attn, x, rope, mask, self._memory(self.block, i, rope))
        if self.token_choice:
            return x
        if config.gating == "additive":
            return hidden + x
        logits = self._of_loop(inner.routers, hidden, loops)
        return hidden + gates(logits, config.router_activation, config.alpha)[..., None] * x

    def goes_on(self, hidden: Tensor, loops: Tensor, slots: Tensor) -> Tensor:
        """Ask the router, or what it said at the start."""
        if self.token_choice:
            return loops <= self.last[slots]
        inner = self.model.model
        guess = self._of_loop(inner.aux_routers or inner.routers, hidden[:, None], loops)[:, 0]
        on = guess.sigmoid() >= self.model.config.threshold
        return on | (loops == 0) if self.model.config.capacity[0] == 1 else on

    def fill(self, hidden: Tensor, loops: Tensor, ordinals: Tensor, slots: Tensor) -> None:
        """Nothing: a token that stopped is not there for deeper recursions."""

    def finish(self, hidden: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Pass the layer after the loop, norm and head."""
        if self.token_choice:
            additive = self.model.config.gating == "additive"
            hidden = self.entry[slots] + (hidden if additive else self.gate[slots] * hidden)
        x = hidden[:, None]
        if self.outer:
            x = self._outside(1, x, ordinals, slots)
        logits: Tensor = self.model.lm_head(self.model.model.norm(x))[:, 0]
        return logits

    def _outside(self, index: int, x: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        inner, place = self.model.model, self.outer[index]
        layer = inner.layer(index * (self.model.config.num_hidden_layers - 1))
        zero = torch.zeros_like(slots)
        mask = place.open(torch.ones_like(ordinals[:, None], dtype=torch.bool), zero, ordinals[:, None], slots)
        rope = inner.rotary_emb(x, position_ids=ordinals[:, None])
        return decoder_layer(layer, layer.self_attn, x, rope, mask, self._memory(place, 0, rope))

    def _memory(self, place: Slots, layer: int, rope: tuple[Tensor, Tensor]) -> Any:
        return lambda attention, x: place.exchange(layer, *project_keys(attention, x, rope))

    def _of_loop(self, routers: Any, hidden: Tensor, loops: Tensor) -> Tensor:
        """Return the logits (b, n) of each row's own router."""
        every = torch.stack([router(hidden) for router in routers])
        return every[loops.clamp(max=self.num_loops - 1), torch.arange(len(loops), device=loops.device)]


class RecursiveLoop:
    """A model that stores a block of Hugging Face layers and loops over it, such as `RecursiveForCausalLM`.

    It needs `config.num_loops`, `base_model.layers` (one per unrolled depth), `base_model.rotary_emb`, `final_norm` and
    `lm_head`. Parameters that differ between loops, low-rank deltas above all, are taken row by row.
    """

    policies: tuple[str, ...] = ("recursion_wise", "share_first", "copy_hidden", "recompute")
    routed = False

    def __init__(self, model: Any, n_slots: int, missing_kv: str, lora: str):
        config = model.config
        self.model, self.num_loops, self.width = model, config.num_loops, config.hidden_size
        if getattr(config, "sharing", "cycle") != "cycle":
            raise ValueError(f"model must loop one block: sharing 'cycle', got {config.sharing!r}")
        if "sliding_attention" in (getattr(config, "layer_types", None) or []):
            raise ValueError("model must attend to all tokens, got layer_types with 'sliding_attention'")
        layers = list(model.base_model.layers)
        length = len(layers) // self.num_loops
        self.current: dict[str, Tensor] = {}
        self.layers = [per_row([layers[r * length + j] for r in range(self.num_loops)], self.current, lora)
                       for j in range(length)]  # fmt: skip
        self.gains: list[list[Any]] = [
            [one for one in layer.modules() if hasattr(one, "of_loops")] for layer in self.layers
        ]
        self.block = Slots(length, self.num_loops, n_slots, missing_kv == "share_first", model.device)

    def prefill(self, ids: Tensor, slot: int) -> None:
        """Run prompt tokens through all loops."""
        cache: Any = DynamicCache(config=self.model.config)
        self.model.base_model(input_ids=ids[None], past_key_values=cache, use_cache=True)
        length = len(self.layers)
        pairs = [(one.keys[0].transpose(0, 1), one.values[0].transpose(0, 1)) for one in cache.layers]
        for r in range(1 if self.block.first_serves_all else self.num_loops):
            row = r * self.block.n_slots + slot
            self.block.load(row, torch.arange(len(ids), device=ids.device), pairs[r * length : (r + 1) * length])

    def clear(self, slot: int) -> None:
        """Forget a slot."""
        self.block.clear(slot)

    def begin(self, ids: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Embed."""
        x: Tensor = self.model.get_input_embeddings()(ids)
        return x

    def step(self, hidden: Tensor, valid: Tensor, loops: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Pass the block once."""
        for layer, given in self._calls(hidden, valid, loops, ordinals, slots):
            hidden = layer(hidden, **given)
        return hidden

    def goes_on(self, hidden: Tensor, loops: Tensor, slots: Tensor) -> Tensor:
        """Go on to the end."""
        return torch.ones_like(loops, dtype=torch.bool)

    def fill(self, hidden: Tensor, loops: Tensor, ordinals: Tensor, slots: Tensor) -> None:
        """Let the attention of the remaining loops see the state that was left behind (their output is not used)."""
        for loop in range(1, self.num_loops):
            here = (loops <= loop).nonzero()[:, 0]
            if not len(here):
                continue
            x, at = hidden[here, None], torch.full_like(here, loop)
            valid = torch.ones(len(here), 1, dtype=torch.bool, device=x.device)
            for layer, given in self._calls(x, valid, at, ordinals[here, None], slots[here]):
                attention = layer.attention if hasattr(layer, "attention") else layer.self_attn
                attention(layer.input_layernorm(x), **given)

    def finish(self, hidden: Tensor, ordinals: Tensor, slots: Tensor) -> Tensor:
        """Norm and head."""
        logits: Tensor = self.model.lm_head(self.model.final_norm(hidden))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _calls(self, hidden: Tensor, valid: Tensor, loops: Tensor, ordinals: Tensor, slots: Tensor) -> Any:
        """Yield each layer of the block with its arguments."""
        seen = self.block.open(valid, loops, ordinals, slots)
        mask = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)
        rope = self.model.base_model.rotary_emb(hidden, position_ids=ordinals)
        self.current["loops"] = loops
        for index, layer in enumerate(self.layers):
            for gain in self.gains[index]:
                gain.weight = gain.of_loops[loops][(slice(None), *[None] * gain.extra_axes)]
            given = {"attention_mask": mask, "position_embeddings": rope, "position_ids": ordinals, "use_cache": True}
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


def looped(model: Any, n_slots: int, missing_kv: str, lora: str) -> Looped:
    """Return what serves a model."""
    if isinstance(model, MoRForCausalLM):
        return MoRLoop(model, n_slots)
    if isinstance(model, nn.Module) and hasattr(getattr(model, "config", None), "num_loops"):
        return RecursiveLoop(model, n_slots, missing_kv, lora)
    raise TypeError(f"model must be a MoRForCausalLM or RecursiveForCausalLM, got {type(model).__name__}")


def _tokens_of(store: RaggedStore) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return ordinals (n,), and keys and values (n, heads, width) of each layer, of a store with one row."""
    assert store.ordinals is not None
    n = int((store.ordinals[0] != EMPTY).sum())
    pairs = [
        (k[0, :n], v[0, :n]) for k, v in zip(store.keys, store.values, strict=True) if k is not None and v is not None
    ]
    return store.ordinals[0, :n], pairs
