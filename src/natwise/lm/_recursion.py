"""What looped models share: which stored layer stands at which depth, and which checkpoints may be read."""

from __future__ import annotations

from typing import Any

SHARINGS = ("cycle", "sequence", "middle_cycle", "middle_sequence")


def n_outer(sharing: str) -> int:
    """Return how many layers at either end are not looped."""
    return int(sharing.startswith("middle"))


def layer_map(depth: int, n_loops: int, sharing: str) -> list[int]:
    """Return which stored layer is applied at each of `depth` places; the loops must divide those that are looped.

    ``cycle`` loops over the whole block, ``sequence`` repeats each layer at once; the ``middle`` forms leave the first
    and the last layer alone.
    """
    outer = n_outer(sharing)
    looped = depth - 2 * outer
    length = looped // n_loops
    block = [outer + (i % length if sharing.endswith("cycle") else i // n_loops) for i in range(looped)]
    return [0, *block, length + 1] if outer else block


def check_checkpoint(kind: Any, path: Any, config: Any, options: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model, or one made with other layers than are asked for.

    Parameters
    ----------
    kind : configuration class
        Its `fixed` names what a checkpoint decides.
    path, config, options
        What ``from_pretrained`` was given; without a configuration the options change that of the checkpoint.
    """
    if path is None:
        return
    stored, _ = kind.get_config_dict(path, **options)
    if stored.get("model_type") != kind.model_type:
        raise ValueError(f"{path} must hold a model of type {kind.model_type!r}, got {stored.get('model_type')!r}")
    made, asked = kind.from_dict(stored), options if config is None else vars(config)
    for name in kind.fixed:
        ours, theirs = getattr(made, name), asked.get(name, getattr(made, name))
        if ours != theirs:
            raise ValueError(f"{name} is {ours!r} in the checkpoint and cannot be another on loading, got {theirs!r}")
