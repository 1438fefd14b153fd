"""Model folders that somebody else wrote: the only door to their configs, tokenizers, processors and weights.

find.py          where a model is: a folder, a run's export, a hub repository
files.py         which files a folder has, what may be in them, limits
settings.py      the values of config.json
listing.py       which files hold the weights, and whether all are there
weight_files.py  names, shapes and types of the weights from the headers of their files, tensors one at a time
pickled_weights.py, torch_files.py   the same of *.bin and *.pth, for conversion
load.py          config, tokenizer, processor, network, through transformers; no other file calls its `from_pretrained`
checksums.py     whether a folder is still what was written

Nothing here runs code that a folder brings, asks a question, or calls what a pickle names. What cannot be used is a
WeightsError that names the file. Nothing is allocated for a model before its config was compared with the headers of
its weights.
"""
