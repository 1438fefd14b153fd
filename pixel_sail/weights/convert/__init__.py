"""Models to start from. A way through the room:

streaming.py        a conversion: how each weight is derived from the files; check it, write it shard by shard
released.py         what released checkpoints share: config.json, tokenizer, renaming
new_parts.py        weights and sizes that a base lacks: new tokens, prompt fusion, mask head
research.py         the research code's Pixel-SAIL
mistral.py          what solo.py and sail.py share
solo.py, sail.py, evev2.py, neo.py   released encoder-free models
language_model.py   any Hugging Face decoder
scratch.py          random weights and a tokenizer trained on the data
"""
