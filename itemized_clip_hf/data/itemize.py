"""Public name of `data.reports.itemize`."""

from .reports.itemize import ItemizedReport, itemize_report

__all__ = ["ItemizedReport", "itemize_report"]
