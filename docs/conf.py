"""The documentation site: ``python -m sphinx -W -b html docs docs/_build``."""

import jobqueue

project = "jobqueue"
author = "the jobqueue authors"
copyright = "2026, the jobqueue authors"  # noqa: A001 - Sphinx's name for it
version = release = jobqueue.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

# Docstrings write code between single or double backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"jobqueue {release}"
html_copy_source = False
