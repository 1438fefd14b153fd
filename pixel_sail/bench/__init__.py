"""Speed and memory, measured (tools/bench.py) or predicted before a run (tools/train.py --plan).

A way through the room:

step.py        forward and backward of one step, beside the plain implementation of reference.py
blocks.py      the mask blocks, uncompiled and compiled in both forms
throughput.py  samples per second from files and shards; expressions per second with and without a shared image
distill.py     a training step without experts, with cached features, and with experts online
gpu/           everything that only a GPU can prove, in one run (tools/gpu_check.py)
plan.py        the report of --plan; memory.py its formulas
"""
