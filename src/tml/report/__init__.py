"""Pictures, and the one-page report of a run."""

from tml.report.page import write_report

__all__ = ["write_report"]
