"""report.html: the scores of a model by group, and its cases to look at, in one file that needs no server.

`breakdown.py` counts, `picks.py` chooses the cases, `section.py` writes what belongs to one benchmark, `report.py`
joins the sections, `compare.py` puts two models side by side; `html.py` has the page itself.
"""
