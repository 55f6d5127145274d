"""How Sphinx makes a site of these pages; `make site`.

The pages are written to be read where they lie, links to files of the repository included: on the
site these lead to the repository's files as downloads.
"""

project = "torchrec-serve"
author = "The authors of torchrec-serve"
extensions = ["myst_parser"]
myst_heading_anchors = 4
root_doc = "index"
exclude_patterns = ["kubernetes", "monitoring"]
html_theme = "furo"
html_title = project
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
