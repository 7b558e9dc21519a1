"""A comparison as one HTML file that opens without a network."""

from compiler.report.page import write_report

__all__ = ["write_report"]
