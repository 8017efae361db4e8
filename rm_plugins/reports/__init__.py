"""Report pages, each a single HTML file."""

from rm_plugins.reports.comparison_page import comparison_page
from rm_plugins.reports.evaluation_page import evaluation_page
from rm_plugins.reports.training_page import training_page

__all__ = ["comparison_page", "evaluation_page", "training_page"]
