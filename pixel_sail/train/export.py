"""Write the folder that `from_pretrained` and tools/test.py read: float32 weights, config, tokenizer."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from pixel_sail.durable import replaced_folder, rust_errors
from pixel_sail.folders.checksums import write_sums
from pixel_sail.train import distributed
from pixel_sail.train.engine import Engine


def export_model(engine: Engine, tokenizer: PreTrainedTokenizerBase, folder: Path, sums: bool = True) -> None:
    """Gather the weights (the master weights if there are any) and write them on rank 0. All ranks must call it.

    `folder` appears only when it is complete. `sums`: with checksums, which whoever loads it compares.
    """
    state = engine.full_state_dict()

    def write() -> None:
        disable_progress_bar()  # one shard of weights needs no bar
        with replaced_folder(folder) as partial, rust_errors(partial):
            engine.model.save_pretrained(partial, state_dict=state)
            tokenizer.save_pretrained(partial)
            if sums:
                write_sums(partial)

    distributed.on_rank_0(write)
