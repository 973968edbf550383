"""Serving a looped model: rows at different loops and positions in one call of its block."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natwise.core.validation import check_array, check_integer, check_option, check_real, shorten
from natwise.lm.mixture_of_recursions._loops import looped
from natwise.lm.mixture_of_recursions._slots import Rows

SCHEDULES = ("depthwise", "sequence", "static")
POLICIES = ("recursion_wise", "share_first", "copy_hidden", "recompute")


class _Board:
    """Who sits in which slot, and how far each is.

    What decides who goes where is NumPy's, one entry per slot unless said otherwise; what the model made stays on its
    device, so that the host need not wait for it.
    """

    def __init__(self, requests: list[dict[str, Any]], n_slots: int, keep: int, like: Tensor, n_loops: int):
        limits = np.array([one["max_new_tokens"] for one in requests])
        n = len(requests)
        self.keep, self.limits = keep, limits
        self.last = np.array([one["input_ids"][-1] for one in requests])  # (requests,) last token of the prompt
        self.exits = np.full((n, limits.max()), n_loops)  # loops asked for
        self.asks = np.array([one["exits"] is not None for one in requests])  # (requests,) whether there are any
        for i, one in enumerate(requests):
            if one["exits"] is not None:
                self.exits[i, : len(one["exits"])] = one["exits"]
        self.lengths = np.zeros(n, dtype=np.int64)  # (requests,) new tokens so far
        self.request = np.full(n_slots, -1)  # -1 when free
        self.loop = np.zeros(n_slots, dtype=np.int64)
        self.ordinal = np.zeros(n_slots, dtype=np.int64)  # of the token that is in the loop
        self.begins = np.zeros(n_slots, dtype=bool)  # whether the token has yet to be embedded
        self.waits = np.zeros(n_slots, dtype=bool)  # whether it has left the loop and waits for others (not depth-wise)
        self.reached = np.full((n_slots, keep), -1)  # loops that each token has passed, -1 where there is none
        self.token = torch.zeros(n_slots, dtype=torch.int64, device=like.device)
        self.hidden = like.new_zeros(n_slots * keep, like.shape[-1])  # one place per slot, or one for each token
        self.emitted: list[tuple[np.ndarray, Tensor]] = []  # requests, and a new token of each

    @property
    def busy(self) -> np.ndarray:
        """Whether each slot is taken, bool (n_slots,)."""
        return self.request >= 0

    def current(self, slots: np.ndarray) -> Rows:
        """Return the tokens that are in the loop, of slots (b,)."""
        valid = np.ones((len(slots), 1), dtype=bool)
        return Rows(slots, self.loop[slots], self.ordinal[slots, None], valid, self.hidden.device)

    def due(self, slots: np.ndarray) -> Rows:
        """Return the tokens of slots (b,) that take part: the current ones, and those left behind at their loop."""
        if self.keep == 1:
            return self.current(slots)
        due = self.reached[slots] == self.loop[slots, None]
        counts = due.sum(1)
        ordinals = np.argsort(~due, axis=1, kind="stable")[:, : counts.max()]
        valid = np.arange(ordinals.shape[1]) < counts[:, None]
        return Rows(slots, self.loop[slots], ordinals, valid, self.hidden.device)

    def places(self, rows: Rows) -> Tensor:
        """Return where the states of tokens stand, (b,) when each slot has one place, else (b, n)."""
        if self.keep == 1:
            return rows.slot_index
        return rows.tensor(rows.slots[:, None] * self.keep + rows.ordinals)

    def states(self, rows: Rows) -> Tensor:
        """Return the states (b, n, d) of tokens."""
        return self.hidden[self.places(rows)].view(*rows.ordinals.shape, -1)

    def keep_states(self, rows: Rows, states: Tensor, loops: np.ndarray) -> None:
        """Keep the states (b, n, d) of tokens that have passed so many loops (b,)."""
        places, states = self.places(rows), states.flatten(0, 1)
        if self.keep > 1:
            row, column = rows.valid.nonzero()
            self.reached[rows.slots[row], rows.ordinals[row, column]] = loops[row]
            here = rows.tensor(np.flatnonzero(rows.valid))
            places, states = places.flatten()[here], states[here]
        self.hidden[places] = states

    def tokens(self) -> list[list[int]]:
        """Return the new tokens of each request."""
        order = np.concatenate([requests for requests, _ in self.emitted]).argsort(kind="stable")
        made = torch.cat([tokens for _, tokens in self.emitted]).cpu().numpy()[order]
        return [one.tolist() for one in np.split(made, self.lengths.cumsum()[:-1])]


class DepthwiseBatchingEngine:
    """Greedy decoding of many requests with continuous depth-wise batching.

    Each call of the block takes every occupied slot one loop further, whatever loop it is at. What leaves the loop
    emits a token and starts its next one at once; what is finished makes place for the next request, in order of
    arrival. The tokens are those of decoding one request at a time, and the calls of the block those of the paper's
    scheduler.

    Parameters
    ----------
    model : MoRForCausalLM or RecursiveForCausalLM
        Put into evaluation mode. A mixture of recursions exits by its router; a recursive model runs all loops unless
        `threshold` is given. A request's own `exits` (an oracle's) go first.
    max_slots : int
        Requests in work at the same time.
    schedule : {"depthwise", "sequence", "static"}
        The others are baselines: ``"sequence"`` takes all slots through a token's loops together and refills free slots
        between tokens; ``"static"`` refills when all slots are free.
    threshold : float, optional
        For a recursive model: exit once the most probable token has this probability at the end of a loop. Costs the
        head at every loop.
    missing_kv : {"recursion_wise", "share_first", "copy_hidden", "recompute"}, optional
        What deeper loops see of tokens that exited early: nothing; the first loop's keys and values, for all tokens;
        what the state they left with would give; or their true ones, computed when a later token comes to that loop
        (exact for a model that was trained without exits). Default: nothing; a mixture of recursions has one choice, by
        its `kv`.
    lora : {"gather", "grouped"}
        How low-rank deltas are applied: a copy of them for each row (small ranks), or row by row of the same loop.
    eos_token_id : int, optional
        Ends a request.

    Attributes
    ----------
    stats : dict
        After `generate`: ``block_calls`` and ``rows`` (of decoding, not of prompts), ``tokens``, ``seconds``,
        ``prefill_seconds``, ``model_seconds`` and ``block_seconds`` (calls of the block alone).

    Notes
    -----
    Bae et al., Relaxed Recursive Transformers (ICLR 2025), whose figures are simulated; Bae et al., Mixture of
    Recursions (NeurIPS 2025). Neither published code for it.

    Examples
    --------
    >>> import torch
    >>> from natwise.core.random import global_generators_kept
    >>> from natwise.lm import MoRConfig, MoRForCausalLM
    >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_attention_heads=2)
    >>> with global_generators_kept():
    ...     model = MoRForCausalLM(MoRConfig(num_hidden_layers=5, num_recursions=3, **sizes))
    >>> engine = DepthwiseBatchingEngine(model, max_slots=2)
    >>> request = {"input_ids": [1, 2, 3], "max_new_tokens": 2, "exits": [1, 3]}
    >>> [len(tokens) for tokens in engine.generate([request] * 3)], engine.stats["block_calls"]
    ([2, 2, 2], 8)
    """

    def __init__(
        self,
        model: Any,
        max_slots: int,
        *,
        schedule: str = "depthwise",
        threshold: float | None = None,
        missing_kv: str | None = None,
        lora: str = "gather",
        eos_token_id: int | None = None,
    ):
        self.max_slots = check_integer("max_slots", max_slots, minimum=1)
        self.schedule = check_option("schedule", schedule, SCHEDULES)
        self.lora = check_option("lora", lora, ("gather", "grouped"))
        self.threshold = None if threshold is None else check_real("threshold", threshold, minimum=0.0, maximum=1.0)
        self.eos_token_id = None if eos_token_id is None else check_integer("eos_token_id", eos_token_id, minimum=0)
        self.model = model
        if missing_kv is not None:
            check_option("missing_kv", missing_kv, POLICIES)
        loop = looped(model, 1, missing_kv, lora)
        self.missing_kv = (
            loop.policies[0] if missing_kv is None else check_option("missing_kv", missing_kv, loop.policies)
        )
        if threshold is not None and loop.routed:
            raise ValueError(f"threshold must be None for a model with routers, got {threshold}")
        self.stats: dict[str, float] = {}

    @torch.inference_mode()
    def generate(self, requests: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Decode requests greedily and return the new tokens of each, in the order of the requests.

        Parameters
        ----------
        requests : sequence of dict
            Each with ``input_ids`` (token ids (n,), n >= 1), ``max_new_tokens`` and, if wanted, ``exits`` (for each new
            token the loop after which it leaves, 1 ... number of loops).

        Raises
        ------
        ValueError, TypeError
            For a request that is none, before anything is decoded.
        """
        if isinstance(requests, str | Mapping) or not isinstance(requests, Iterable):
            raise TypeError(f"requests must be a sequence of dicts, got {shorten(requests)}")
        self.model.eval()
        self._loop = looped(self.model, self.max_slots, self.missing_kv, self.lora)
        checked = [self._check(i, one) for i, one in enumerate(requests)]
        self.stats = dict.fromkeys(
            ("block_calls", "rows", "tokens", "seconds", "prefill_seconds", "model_seconds", "block_seconds"), 0
        )
        if not checked:
            return []
        start = time.perf_counter()
        longest = max(len(one["input_ids"]) + one["max_new_tokens"] for one in checked)
        keep = longest if self.missing_kv == "recompute" else 1
        like = next(self.model.parameters()).new_zeros(self._loop.width)
        board = _Board(checked, self.max_slots, keep, like, self._loop.num_loops)
        queue = deque(range(len(checked)))
        while queue or board.busy.any():
            self._refill(board, queue, checked)
            self._begin(board)
            if not (self._loop.may_skip and self._let_out(board, board.busy & ~board.waits & (board.loop == 0))):
                self._step(board)
        found = board.tokens()
        self.stats["seconds"] = time.perf_counter() - start
        return found

    def _check(self, index: int, request: Mapping[str, Any]) -> dict[str, Any]:
        name, config = f"requests[{index}]", self.model.config
        if not isinstance(request, Mapping):
            raise TypeError(f"{name} must be a dict, got {shorten(request)} ({type(request).__name__})")
        known = {"input_ids", "max_new_tokens", "exits"}
        if not {"input_ids", "max_new_tokens"} <= set(request) <= known:
            raise ValueError(f"{name} must have input_ids, max_new_tokens and perhaps exits, got {sorted(request)}")
        ids = check_array(f"{name} input_ids", request["input_ids"], shape=("n",), dtype="int64")
        if not len(ids) or ids.min() < 0 or ids.max() >= config.vocab_size:
            raise ValueError(
                f"{name} input_ids must be tokens in 0..{config.vocab_size - 1}, got {shorten(ids.tolist())}"
            )
        n = check_integer(f"{name} max_new_tokens", request["max_new_tokens"], minimum=1)
        if len(ids) + n > config.max_position_embeddings:
            longest = config.max_position_embeddings
            raise ValueError(f"{name} must stay within max_position_embeddings={longest}, got {len(ids)} + {n} tokens")
        exits = request.get("exits")
        if exits is not None:
            exits = check_array(f"{name} exits", exits, shape=(n,), dtype="int64")
            if exits.min() < 1 or exits.max() > self._loop.num_loops:
                raise ValueError(f"{name} exits must be in 1..{self._loop.num_loops}, got {shorten(exits.tolist())}")
        return {"input_ids": ids, "max_new_tokens": n, "exits": exits}

    def _refill(self, board: _Board, queue: deque[int], requests: list[dict[str, Any]]) -> None:
        """Give free slots to the requests that have waited longest."""
        busy = board.busy
        if not queue or busy.all() or (self.schedule == "static" and busy.any()):
            return
        if self.schedule == "sequence" and (board.loop[busy] > 0).any():  # in the middle of a token's round
            return
        start = time.perf_counter()
        slots = (~busy).nonzero()[0][: len(queue)]
        for slot in slots.tolist():
            index = board.request[slot] = queue.popleft()
            prompt = requests[index]["input_ids"][:-1]
            self._loop.clear(slot)
            if len(prompt):
                self._loop.prefill(torch.from_numpy(prompt).to(self.model.device), slot)
            board.ordinal[slot] = len(prompt)
        board.loop[slots], board.reached[slots], board.begins[slots], board.waits[slots] = 0, -1, True, False
        rows = board.current(slots)
        board.token[rows.slot_index] = rows.tensor(board.last[board.request[slots]])
        self.stats["prefill_seconds"] += time.perf_counter() - start

    def _begin(self, board: _Board) -> None:
        """Embed the tokens that are to enter the loop."""
        slots = (board.begins & ~board.waits).nonzero()[0]
        if not len(slots):
            return
        rows = board.current(slots)
        entering = self._timed(self._loop.begin, board.token[rows.slot_index], rows)
        board.keep_states(rows, entering[:, None], rows.loops)
        board.begins[slots] = False

    def _step(self, board: _Board) -> None:
        """Take every slot that does not wait one loop further, and let out what has arrived."""
        moves = board.busy & ~board.waits
        rows = board.due(moves.nonzero()[0])
        x = self._timed(self._loop.step, board.states(rows), rows, also="block_seconds")
        self.stats["block_calls"] += 1
        self.stats["rows"] += int(rows.valid.sum())
        board.keep_states(rows, x, rows.loops + 1)
        board.loop[rows.slots] += 1
        self._let_out(board, moves)

    def _let_out(self, board: _Board, moved: np.ndarray) -> bool:
        """Let tokens out that are to leave, of the slots that have moved (bool); return whether any did."""
        slots = moved.nonzero()[0]
        loops, request = board.loop[slots], board.request[slots]
        asks = board.asks[request]
        leaves = (loops >= self._loop.num_loops) | (asks & (loops >= board.exits[request, board.lengths[request]]))
        undecided = slots[~leaves & ~asks]
        if len(undecided) and (self._loop.routed or self.threshold is not None):
            leaves[~leaves & ~asks] = self._own_exit(board, undecided)
        if leaves.any():
            self._emit(board, slots[leaves])
        if self.schedule != "depthwise":
            board.waits[slots[leaves]] = True
            board.waits &= board.busy
            if (board.waits == board.busy).all():  # the token's round is over
                board.waits[:] = False
        return bool(leaves.any())

    def _own_exit(self, board: _Board, slots: np.ndarray) -> np.ndarray:
        """Return where the model itself says to leave, bool (b,) for slots (b,)."""
        rows = board.current(slots)
        hidden = board.states(rows)[:, 0]
        if self._loop.routed:
            leaves = ~self._timed(self._loop.goes_on, hidden, rows)
        else:
            leaves = self._timed(self._loop.finish, hidden, rows).float().softmax(-1).amax(-1) >= self.threshold
        return np.asarray(leaves.cpu())

    def _emit(self, board: _Board, slots: np.ndarray) -> None:
        """Write the next token of slots (b,); start their next one, or free them."""
        rows, request = board.current(slots), board.request[slots]
        hidden = board.states(rows)[:, 0]
        if self.missing_kv == "copy_hidden":
            early = (rows.loops < self._loop.num_loops).nonzero()[0]
            self._timed(self._loop.fill, hidden[rows.tensor(early)], rows.only(early))
        tokens = self._timed(self._loop.finish, hidden, rows).argmax(-1)
        board.emitted.append((request, tokens))
        board.token[rows.slot_index] = tokens
        board.lengths[request] += 1
        board.ordinal[slots] += 1
        board.loop[slots], board.begins[slots] = 0, True
        self.stats["tokens"] += len(slots)
        done = board.lengths[request] >= board.limits[request]
        if self.eos_token_id is not None:
            done |= np.asarray(tokens.cpu()) == self.eos_token_id
        board.request[slots[done]], board.begins[slots[done]] = -1, False

    def _timed(self, function: Callable[..., Any], *args: Any, also: str | None = None) -> Any:
        """Call a part of the model and note how long it took."""
        start = time.perf_counter()
        found = function(*args)
        for name in ("model_seconds", also):
            if name:
                self.stats[name] += time.perf_counter() - start
        return found
