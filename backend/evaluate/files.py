"""Names of the files in the folder of a run and of a stored result."""

JSON, HTML, LATEX, ROWS = "report.json", "report.html", "tables.tex", "rows.csv"
PLOTS = "plots"  # folder: one SVG and one PNG a plot
PACKED_PLOT, PACKED_ROWS = ".svg.gz", f"{ROWS}.gz"  # in a stored result
