"""What is in a dataset, and what is wrong with it, before a model is trained on it.

Rows are looked at once, in order, and forgotten: what is remembered of a text is a digest of 16 bytes.
"""

from rm_plugins.data_check.check import DataCheck
from rm_plugins.data_check.report import AttributeSummary, DataReport, Example, LengthBias, Problem, SourceCounts

__all__ = ["AttributeSummary", "DataCheck", "DataReport", "Example", "LengthBias", "Problem", "SourceCounts"]
