"""How Sphinx builds these pages: Markdown and notebooks, with the API's docstrings."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # TRL warns whoever imports its experimental trainers, as autodoc does
sys.path.insert(0, str(Path(__file__).parent / "_site"))

project = "rm-plugins"
copyright = "the rm-plugins authors"
version = release = installed_version("rm-plugins")

extensions = [
    "from_code",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "_site"]

html_theme = "furo"
html_title = f"rm-plugins {release}"
html_static_path = ["_site/static"]
templates_path = ["_site/templates"]
html_css_files = ["site.css"]
html_js_files = ["versions.js"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/versions.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
smartquotes_action = "q"  # quotes alone: two hyphens begin an option
nb_execution_mode = "off"  # the tests run notebooks; the site shows the outputs that are stored in them

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = False  # a command may continue on lines without a prompt
copybutton_exclude = ".linenos, .gp"

linkcheck_timeout = 20
linkcheck_anchors = False  # pages that are made by scripts have theirs later

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
nitpicky = False
suppress_warnings = ["misc.highlighting_failure"]  # a quotation over several lines, which no lexer of consoles follows
