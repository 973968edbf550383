"""Randomness by name: one `random_state`, independent streams, the global generators untouched.

A stream depends only on the seed and its name, so adding a new consumer of random numbers never changes the
numbers that existing consumers see.
"""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from natwise.core.validation import NOT_NUMBERS, shorten

if TYPE_CHECKING:
    from torch import Generator, device as Device

RandomState: TypeAlias = "int | np.random.Generator | np.random.RandomState | Streams | None"


class Streams:
    """Independent random generators that are derived from one `random_state` by name.

    Parameters
    ----------
    random_state : int, Generator, RandomState, Streams or None
        An int gives the same streams every time. A generator is advanced once (two draws from the same
        generator differ). None takes fresh entropy from the operating system. `Streams` is returned as it is
        by `Streams.of`.

    Examples
    --------
    >>> streams = Streams(0)
    >>> float(streams.numpy("init").random()) == float(Streams(0).numpy("init").random())
    True
    >>> float(streams.numpy("init").random()) == float(streams.numpy("noise").random())
    False
    """

    def __init__(self, random_state: RandomState = None):
        self.entropy: tuple[int, ...] = _entropy(random_state)

    @classmethod
    def of(cls, random_state: RandomState) -> Streams:
        """Return `random_state` itself when it already is `Streams`, else new ones made from it."""
        return random_state if isinstance(random_state, Streams) else cls(random_state)

    def child(self, name: str | int) -> Streams:
        """Return streams of their own for a part (a fold, a run, a layer) called `name`."""
        return Streams._from_entropy((*self.entropy, _number(name)))

    def numpy(self, name: str | int) -> np.random.Generator:
        """Return a fresh NumPy generator for `name`; asking again starts it anew."""
        return np.random.default_rng(self._sequence(name))

    def torch(self, name: str | int, device: Device | str = "cpu") -> Generator:
        """Return a fresh torch generator for `name` on `device`; asking again starts it anew."""
        import torch

        return torch.Generator(device=device).manual_seed(self.seed(name))

    def seed(self, name: str | int) -> int:
        """Return a 32-bit seed for `name`, for libraries that take an int."""
        return int(self._sequence(name).generate_state(1)[0])

    @contextmanager
    def torch_global(self, name: str | int, device: Device | str = "cpu") -> Iterator[None]:
        """Seed torch's global generators for `name` inside the block; put them back as they were after it.

        For code that can draw from nothing else: the initialisation of a module, dropout.
        """
        import torch

        device = torch.device(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_torch_global(self.seed(name), device)
            yield

    @classmethod
    def _from_entropy(cls, entropy: tuple[int, ...]) -> Streams:
        streams = cls.__new__(cls)
        streams.entropy = entropy
        return streams

    def _sequence(self, name: str | int) -> np.random.SeedSequence:
        return np.random.SeedSequence([*self.entropy, _number(name)])


def seed_torch_global(seed: int, device: Device) -> None:
    """Seed torch's global generators of the CPU and of `device`; only inside a block that restores them."""
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _number(name: str | int) -> int:
    """Map a name to 64 bits that do not depend on the process (`hash` is salted)."""
    name = int(name) if isinstance(name, numbers.Integral) else name
    return int.from_bytes(hashlib.sha256(f"{type(name).__name__}:{name}".encode()).digest()[:8], "big")


def _entropy(random_state: RandomState) -> tuple[int, ...]:
    if random_state is None:
        return (int(np.random.SeedSequence().generate_state(1, np.uint64)[0]),)
    if isinstance(random_state, Streams):
        return random_state.entropy
    if isinstance(random_state, numbers.Integral) and not isinstance(random_state, NOT_NUMBERS):
        if random_state < 0:
            raise ValueError(f"random_state must be >= 0, got {random_state}")
        return (int(random_state),)
    if isinstance(random_state, np.random.Generator):
        return (int(random_state.integers(2**63)),)
    if isinstance(random_state, np.random.RandomState):
        return (int(random_state.randint(2**31)),)
    raise TypeError(
        "random_state must be an int, a numpy Generator, a RandomState or None, "
        f"got {shorten(random_state)} ({type(random_state).__name__})"
    )


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Put the global generators of Python, NumPy and torch back as they were, after code that seeds them.

    transformers' Trainer does, whatever it is told.
    """
    import random

    import torch

    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
