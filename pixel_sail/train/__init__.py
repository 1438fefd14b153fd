"""Training. A way through the room:

loop.py          train(config): the loop, from its set-up (setup.py) to the exported model
step.py          one optimizer step over all ranks
build.py         the model, encoder and data that a run starts from
engine.py        DeepSpeed; zero3.py what ZeRO-3 needs of the mask head; distributed.py processes and collectives,
                 peers.py and launcher.py: what becomes of them when another process is gone
optim.py         parameter groups, learning rate, optimizer; muon.py
finetune.py      frozen weights and LoRA adapters; quantize.py frozen weights in 4 bits
distillation.py  adapters that learn the features of frozen experts
checkpoint.py    save, resume; export.py the finished model
validate.py      scores during training
log.py           console, JSON lines; banner.py before the first step, curves.py, trackers.py (wandb, TensorBoard)
"""
