"""Everything that goes in or out of a model's weights. A way through the room:

convert/         models to start from: released checkpoints, a language model, random weights
run_folder.py    what a training run leaves in its folder
start.py         the model of ours that a run starts from (train.init_from)
consolidate.py   a resume checkpoint of any ZeRO stage, gathered into one model
merge.py         LoRA adapters and 4-bit weights as plain weights
files.py         safetensors files: read, compare with a model, write in shards
publish.py       tools/export.py: a self-contained folder, with the README.md of model_card.py and card_data.py
remote_code.py   its Python files for transformers' AutoModel (--hub)
adapter.py       adapters alone, in PEFT's format (--adapter); model/adapter.py merges them at load
"""
