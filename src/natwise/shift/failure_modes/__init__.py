"""Why a classifier fails on a new domain, and how to train one that does not."""

from natwise.shift.failure_modes import penalties
from natwise.shift.failure_modes._generalizer import DomainGeneralizer
from natwise.shift.failure_modes._modes import FailureModes

__all__ = ["DomainGeneralizer", "FailureModes", "penalties"]
