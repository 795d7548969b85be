"""The site: Sphinx with Furo, MyST for the pages, autodoc for the reference. See `make docs`.

MkDocs Material with mkdocstrings was tried beside it: it leaves :func: and :class: of docstrings as
text, asks hosts elsewhere for fonts and, offline, for its search, and ends in 2027.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from deepl0_kernels import __version__  # noqa: E402

project = "deepl0-kernels"
author = "the deepl0-kernels authors"
release = version = __version__
html_title = f"deepl0-kernels {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "commands",
    "docstrings",
    "figures",
    "gallery",
]
exclude_patterns = ["_ext", "_generated", "_static"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
# Kernels' pages carry formulas in code spans and begin tables with a comment.
suppress_warnings = ["myst.header"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
python_use_unqualified_type_names = True
add_module_names = False
nitpicky = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
# Excerpts would be fetched, which a browser refuses for files on the disk.
html_show_search_summary = False
html_copy_source = False
# No host is asked for anything: fonts are the reader's, the search is a file of the site.
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "native"
math_number_all = False
