"""Everything that only a GPU can prove, in one run of minutes (tools/gpu_check.py).

A way through the room:

runner.py      starts a process for each stage, watches its time, and never lets one stop the next
child.py       that process: imports one stage and runs it
checks.py      what a stage says: a JSON line for each check, written at once
page.py        the table at the end, and the Markdown page with the numbers

The stages, in their order: machine, kernels, parity, speed, scenes, training, generation, scratch. Each is a file
with a function `run`. They may take half a minute of imports, so that what they import is a matter of the stage alone.
"""
