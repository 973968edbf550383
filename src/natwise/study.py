"""The frame of every study: how a claim is measured, what that finds, and the call that `natwise reproduce` makes.

A method's `study.py` says per claim which function measures it and draws what was found. Such a function takes a
`Setting` and returns what it `Found`; `Study` checks the arguments, times and signs the measurement, and makes a
`Result` of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student_t

from natwise.core.random import Streams
from natwise.core.validation import check_device, check_integer, check_option, check_path
from natwise.result import Result, provenance

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Setting:
    """How a claim is measured; two equal settings find the same, so that claims can share what one of them found.

    Parameters
    ----------
    scale : {"ci", "small", "paper"}
        How much to run: about a minute per method, about ten, or as published.
    seed : int
        Seeds everything that is random.
    data_dir : str, optional
        Folder of local data. Default: ``$NATWISE_DATA``.
    device : str
        Where networks are trained.
    """

    scale: str
    seed: int
    data_dir: str | None = None
    device: str = "cpu"

    @property
    def streams(self) -> Streams:
        """The named random streams of the seed."""
        return Streams(self.seed)


class Found(NamedTuple):
    """What a measurement found: arrays to draw, scalars (the claim's metric and every baseline's), and the options."""

    arrays: Mapping[str, Any] = NOTHING
    scalars: Mapping[str, Any] = NOTHING
    params: Mapping[str, Any] = NOTHING
    rows: Sequence[str | int] = ()
    warnings: Sequence[str] = ()


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the mean of two or more values (n,), one per seed, and the half width of its 95 % t interval."""
    spread = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(student_t.ppf(0.975, len(values) - 1) * spread)


@dataclass(frozen=True)
class Study:
    """The claims of one method and how each is measured.

    Parameters
    ----------
    key : str
        The method, ``"room.method"``.
    measurements : mapping of str to callable
        Claim -> function that takes a `Setting` and returns what it `Found`.
    scales : sequence of str
        The scales at which there is something to run.
    gpu : bool
        Whether networks are trained, so that another device than the processor makes a difference.
    """

    key: str
    measurements: Mapping[str, Callable[[Setting], Found]]
    scales: Sequence[str] = ("ci", "small")
    gpu: bool = False

    def run(
        self,
        claim: str,
        *,
        scale: str,
        seed: int,
        data_dir: str | os.PathLike[str] | None = None,
        device: str = "cpu",
    ) -> Result:
        """Measure one claim of the card.

        Parameters
        ----------
        claim : str
            Its id on the card.
        scale, seed, data_dir, device
            See `Setting`.

        Returns
        -------
        Result
            Its scalars hold the claim's metric and what every baseline reaches; its arrays what `figure` draws.

        Raises
        ------
        ValueError
            If the claim, the scale or the device is not one of this study's, or `seed` is negative.
        DataNotFoundError
            If local data are needed that are not there.
        """
        check_option("claim", claim, list(self.measurements))
        check_option("scale", scale, list(self.scales))
        check_integer("seed", seed, minimum=0)
        self.check_device(device)
        setting = Setting(scale, seed, None if data_dir is None else check_path("data_dir", data_dir), device)
        with provenance(seed=seed, device=device) as record:
            arrays, scalars, params, rows, warnings = self.measurements[claim](setting)
        return Result(
            f"{self.key}/{claim}",
            arrays=arrays,
            scalars=scalars,
            rows=rows,
            params={"scale": scale, **params},
            provenance=record,
            warnings=tuple(warnings),
        )

    def check_device(self, device: str) -> None:
        """Refuse a device that this machine lacks, and any but the processor when no network is trained."""
        if device == "cpu":
            return
        check_device("device", device)
        if not self.gpu:
            raise ValueError(f"device must be 'cpu' for {self.key}, got {device!r}")
