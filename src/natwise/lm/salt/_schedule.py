"""How much the teacher counts at each step."""

from __future__ import annotations

from dataclasses import dataclass

from natwise.core.validation import check_integer, check_option, check_real

KINDS = ("step", "linear", "linear_ratio")


@dataclass(frozen=True)
class SaltSchedule:
    """The teacher's weight at each optimiser step; from `kd_steps` on it is 0 and the teacher is not asked any more.

    Parameters
    ----------
    total_steps : int
        All steps of the run.
    kd_steps : int
        Steps with a teacher. 0 is plain training (the baseline), `total_steps` is reverse knowledge distillation
        (RKD: the small teacher all the way). The paper takes 36,000 of 208,000.
    weight : float
        w at the start, in [0, 1].
    kind : {"step", "linear", "linear_ratio"}
        ``step`` keeps the weight; ``linear`` lowers it to 0 at `kd_steps`; ``linear_ratio`` keeps it for the first
        half of `kd_steps` and lowers it to 0 in the second (where the decline starts is our choice).

    Raises
    ------
    ValueError, TypeError
        For a weight outside [0, 1], or `kd_steps` outside [0, total_steps].

    Examples
    --------
    >>> schedule = SaltSchedule(total_steps=100, kd_steps=20, weight=0.5, kind="linear")
    >>> [schedule(step) for step in (0, 10, 20)]
    [0.5, 0.25, 0.0]
    """

    total_steps: int
    kd_steps: int
    weight: float = 0.667
    kind: str = "step"

    def __post_init__(self) -> None:
        check_integer("total_steps", self.total_steps, minimum=1)
        if check_integer("kd_steps", self.kd_steps, minimum=0) > self.total_steps:
            raise ValueError(f"kd_steps must be at most total_steps={self.total_steps}, got {self.kd_steps}")
        check_real("weight", self.weight, minimum=0.0, maximum=1.0)
        check_option("kind", self.kind, KINDS)

    def __call__(self, step: int) -> float:
        """Return the weight at a step, counted from 0."""
        step = check_integer("step", step, minimum=0)
        if step >= self.kd_steps:
            return 0.0
        left = 1.0 if self.kind == "step" else 1 - step / self.kd_steps
        return self.weight * (min(1.0, 2 * left) if self.kind == "linear_ratio" else left)
