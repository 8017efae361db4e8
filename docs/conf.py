"""How Sphinx builds these pages: Markdown, with the API's docstrings."""

from importlib.metadata import version as installed_version

project = "rm-plugins"
copyright = "the rm-plugins authors"
version = release = installed_version("rm-plugins")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"rm-plugins {release}"

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
nitpicky = False
suppress_warnings = ["misc.highlighting_failure"]  # a quotation over several lines, which no lexer of consoles follows
