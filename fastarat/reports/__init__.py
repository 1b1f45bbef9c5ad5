"""A run, or several beside one another, as one page that needs nothing else: `write_report`."""

from fastarat.reports.report import write_report

__all__ = ["write_report"]
