"""The main job: what is wrong with a labelled data set, on one page; one file per question."""

from natwise.audit.result import AuditResult, run

__all__ = ["AuditResult", "run"]
