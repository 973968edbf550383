"""A teacher asked once: its k most likely tokens at every position, on disk, for all students and seeds."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from natwise.core.io import atomic_path, check_folder, write_text
from natwise.core.progress import progress
from natwise.core.validation import check_integer, check_path, check_real, shorten
from natwise.lm._checks import check_integers, check_module, check_tokens
from natwise.lm.salt._loss import TopKTargets

SEQUENCES_PER_FILE = 1024
SETTINGS = "settings.json"


class TeacherCache:
    """The top-k predictions of a teacher on fixed sequences.

    Parameters
    ----------
    folder : path
        Where `build` wrote them.

    Raises
    ------
    TypeError, ValueError
        For what is no path, or a folder without a cache.

    Attributes
    ----------
    k : int
    inverse_temperature : float
        rho, which is part of what is stored.
    shape : tuple of int
        (sequences, tokens).

    Notes
    -----
    6 k bytes per token: float16 probabilities and int32 tokens. The probability of all other tokens is one bucket:
    the student is taught its total, not how it is divided, which is exact as far as it goes. Renormalising over the
    top k would teach that everything else is impossible.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = Path(check_path("folder", folder))
        try:
            settings = json.loads((self._folder / SETTINGS).read_text("utf-8"))
            self.shape = tuple(int(n) for n in settings["shape"])
            self.k, self.inverse_temperature = int(settings["k"]), float(settings["inverse_temperature"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"folder must hold a teacher cache, got {self._folder} ({error})") from error
        self._parts: dict[int, dict[str, torch.Tensor]] = {}

    @classmethod
    def build(
        cls,
        teacher: nn.Module,
        input_ids: torch.Tensor,
        folder: str | os.PathLike[str],
        *,
        k: int = 64,
        inverse_temperature: float = 1.0,
        batch_size: int = 16,
        verbose: int = 0,
    ) -> TeacherCache:
        """Ask a causal language model about every position, and keep its k most likely next tokens.

        Parameters
        ----------
        teacher : module
            Called as ``teacher(input_ids=...)``; its output has ``logits`` (n, t, V). It runs in evaluation mode on its
            own device and is left in the mode it came in.
        input_ids : int tensor (n, t)
        folder : path
            An interrupted build goes on after the last whole file; files of other sequences or settings are refused.
        k : int
        inverse_temperature : float
            rho of the predictions.
        batch_size : int
            Sequences per forward pass.
        verbose : int
            Show a progress bar when standard error is a terminal.

        Raises
        ------
        TypeError, ValueError
            For a wrong argument, k larger than the vocabulary, logits that are not finite, or a folder of another
            build.
        """
        check_integer("k", k, minimum=1)
        check_real("inverse_temperature", inverse_temperature, minimum=0.0)
        check_integer("batch_size", batch_size, minimum=1)
        check_module("teacher", teacher)
        vocabulary = getattr(getattr(teacher, "config", None), "vocab_size", None)
        input_ids = check_tokens("input_ids", input_ids, vocabulary)
        path = Path(check_path("folder", folder))
        check_folder(path)
        content = hashlib.sha256(input_ids.cpu().numpy().astype(np.int64).tobytes()).hexdigest()
        settings = {"shape": list(input_ids.shape), "k": k, "inverse_temperature": float(inverse_temperature)}
        settings_text = _checked_settings(path, {**settings, "input_ids": content})
        mode = teacher.training
        teacher.eval()
        try:
            with progress(len(input_ids), wanted=bool(verbose)) as report:
                for part, sequences in enumerate(input_ids.split(SEQUENCES_PER_FILE)):
                    if not _part(path, part).exists():
                        batches = [_ask(teacher, ids, k, inverse_temperature) for ids in sequences.split(batch_size)]
                        write_text(path / SETTINGS, settings_text)  # now that the teacher is known to answer
                        _save(_part(path, part), batches)
                    report(min((part + 1) * SEQUENCES_PER_FILE, len(input_ids)), "teacher")
        finally:
            teacher.train(mode)
        return cls(path)

    def targets(self, sequences: torch.Tensor) -> TopKTargets:
        """Return the predictions for some sequences, at all but their last position: rows (n * (t - 1), k).

        Parameters
        ----------
        sequences : int tensor (n,)
            Their numbers in the cache.

        Raises
        ------
        TypeError, ValueError
            For other tensors, numbers that the cache does not have, or a part of it that cannot be read.
        """
        if not isinstance(sequences, torch.Tensor) or sequences.ndim != 1 or not len(sequences):
            raise TypeError(f"sequences must be a tensor of numbers (n,), got {shorten(sequences)}")
        check_integers("sequences", sequences)
        found = [self._sequence(i) for i in sequences.tolist()]
        probabilities, tokens = (
            torch.stack([one[name] for one in found])[:, :-1].flatten(0, 1) for name in ("p", "token")
        )
        return TopKTargets(probabilities.to(sequences.device), tokens.to(sequences.device))

    def _sequence(self, index: int) -> dict[str, torch.Tensor]:
        """Return probabilities ``p`` and tokens ``token`` of one sequence, each (t, k)."""
        if not 0 <= index < self.shape[0]:
            raise ValueError(f"index must lie in [0, {self.shape[0]}), got {index}")
        part, row = divmod(index, SEQUENCES_PER_FILE)
        if part not in self._parts:
            path = _part(self._folder, part)
            try:
                self._parts[part] = load_file(path)
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path} is no readable part of a teacher cache: {error}") from error
        return {name: values[row] for name, values in self._parts[part].items()}


def _checked_settings(folder: Path, settings: dict[str, Any]) -> str:
    """Return the settings as text; refuse a folder that has others."""
    path, text = folder / SETTINGS, json.dumps(settings, sort_keys=True)
    if path.exists() and path.read_text("utf-8") != text:
        raise ValueError(f"folder must be empty or hold the same build, got other sequences or settings in {folder}")
    return text


def _ask(teacher: nn.Module, input_ids: torch.Tensor, k: int, rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest probabilities, float16, and their tokens, int32, each (n, t, k) for input_ids (n, t)."""
    with torch.no_grad():
        logits = teacher(input_ids=input_ids.to(next(teacher.parameters()).device)).logits.float()
    if k > logits.shape[-1]:
        raise ValueError(f"k must be at most the vocabulary of {logits.shape[-1]}, got {k}")
    if not torch.isfinite(logits).all():
        raise ValueError("teacher must give finite logits, got NaN or infinity")
    top = torch.softmax(rho * logits, dim=-1).topk(k, dim=-1)
    return top.values.half().cpu(), top.indices.int().cpu()


def _save(path: Path, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    probabilities, tokens = (torch.cat(parts).contiguous() for parts in zip(*batches, strict=True))
    with atomic_path(path) as temporary:
        save_file({"p": probabilities, "token": tokens}, temporary)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"
