"""Pages that show what was measured: HTML files that need nothing beside them."""

from rm_plugins.reports.training_page import training_page

__all__ = ["training_page"]
