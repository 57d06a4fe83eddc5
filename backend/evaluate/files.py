"""Names of the files in the folder of a run and of a stored result, and how other files are named in them."""

import re

JSON, HTML, LATEX, ROWS = "report.json", "report.html", "tables.tex", "rows.csv"
PLOTS = "plots"  # folder: one SVG and one PNG a plot
PACKED_PLOT, PACKED_ROWS = ".svg.gz", f"{ROWS}.gz"  # in a stored result

_FOLDERS = re.compile(r"(?<![\w.])(~|\.{0,2})/([^/\s\"',\]]+/)*")  # what stands before a file's own name


def without_folders(text: str) -> str:
    """Return a text in which files are called by their last name only: reports are shown to others."""
    return _FOLDERS.sub("", text)
