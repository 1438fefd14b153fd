"""Valid folders with everything that a tool reads, small enough that a tool takes a second. Paths in them are relative.

A tree is built once in a workshop folder, and copied for every case.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from attack import process
from conftest import write_refer_dataset
from data.source_fixtures import SIZE, box_mask, box_polygon, box_rle, messages, write_images, write_json
from PIL import Image, ImageDraw

SCRATCH = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "mlp_size": 32, "vocab_size": 400}
CONFIG = {
    "run": {"dir": "run", "log_every": 1},
    "model": {"scratch": SCRATCH},
    "architecture": {"patch_size": 16, "max_side_px": 64, "mask_dim": 16},
    "data": {"root": "root", "mixture": [{"source": "refcoco"}], "expressions_per_image": 2, "max_length": 512,
             "workers": 0},
    "loss": {"points": 64},
    "train": {"steps": 3, "batch_size": 3, "micro_batch_tokens": 4096, "lr": 1e-3, "save_every": 1,
              "keep_checkpoints": 3},
}  # fmt: skip
EXPERT = {"name": "vit", "kind": "timm", "path": "vit", "at": "patches", "size_px": 48, "fit": "short"}
JUDGE_URL = "http://127.0.0.1:9/v1"  # nobody answers there: every verdict must come from the file
EXPERT_TRAINING = {
    "dir": "expert_run", "root": "root", "size_px": 64, "widths": [8, 16, 16, 16], "blocks": [1, 1, 1, 1],
    "feature_size": 32, "encoder_layers": 1, "decoder_layers": 2, "queries": 6, "points": 64, "batch_size": 2,
    "lr": 3e-3, "steps": 3, "save_every": 1,
}  # fmt: skip


class Workshop:
    """The trees that were built so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._building = threading.RLock()  # trees are made of others

    def tree(self, name: str) -> Path:
        """The folder of a tree, which is built at the first call. Copy it before changing it."""
        tree = self._folder / name
        with self._building:
            if not tree.exists():
                partial = self._folder / f"{name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                BUILDERS[name](partial, self)
                partial.rename(tree)
        return tree

    def copy(self, name: str, folder: Path) -> Path:
        return shutil.copytree(self.tree(name), folder, symlinks=True)


def call(folder: Path, *command: object) -> None:
    """A tool in `folder` that must succeed."""
    done = process.run(command, folder, timeout_s=300)
    assert done.status == 0, f"{command} ended with {done.status}:\n{done.output}"


def write_config(path: Path, **sections: object) -> None:
    """CONFIG with changes: a dict changes single keys of a section, anything else replaces it."""
    values = dict(CONFIG)
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    path.write_text(yaml.safe_dump(values))


def scenes(folder: Path, workshop: Workshop) -> None:
    """The drawn world in all formats that it has."""
    call(folder, "tools/prepare_data.py", "scenes", "--out", "root", "--images", 12, "--long-side", 64, "--workers", 1)


def other_sources(folder: Path, workshop: Workshop) -> None:
    """The sources that the drawn world does not have, as the official files look."""
    root = folder / "root"
    names = ["000000000009.jpg", "000000000010.jpg"]
    write_images(root / "images/train2017", *names)
    write_images(root / "images/train2014", *(f"COCO_train2014_{name}" for name in names))
    talks = [{"id": n, "image": f"coco/train2017/{n}", "conversations": messages("<image>\nWhat?", "A cup.")}
             for n in names]  # fmt: skip
    talks.append({"id": "text", "conversations": messages("Write a poem.", "Roses are red.")})
    write_json(root / "llava/llava_v1_5_mix665k.json", talks)
    images = root / "ade20k/images/training"
    write_images(images, "a.jpg", "b.jpg")
    for stem, labels in (("a", {(0, 0): 1, (5, 0): 150}), ("b", {(0, 0): 13})):
        _label_map(root / f"ade20k/annotations/training/{stem}.png", labels, 0)
    for name in names:
        _label_map(root / f"stuffthingmaps_trainval2017/train2017/{Path(name).stem}.png", {(0, 0): 0, (5, 0): 156}, 255)
    classes = [{"name": "animal--bird", "readable": "Bird", "evaluate": True},
               {"name": "construction--barrier--curb", "readable": "Curb", "evaluate": True},
               {"name": "void--ego", "readable": "Ego", "evaluate": False}]  # fmt: skip
    write_json(root / "mapillary/config_v2.0.json", {"labels": classes, "version": "2.0"})
    write_images(root / "mapillary/training/images", "m.jpg")
    _label_map(root / "mapillary/training/v2.0/labels/m.png", {(0, 0): 0, (5, 0): 1}, 2)
    write_json(root / "vlpart/paco/annotations/paco_lvis_v1_train.json", _parts(f"train2017/{names[0]}"))
    write_images(root / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages", "v.jpg")
    write_json(root / "vlpart/pascal_part/train.json", _parts("v.jpg"))
    mdetr = {"images": [], "annotations": []}
    for number, name in enumerate(names):
        image = {"id": number, "file_name": f"COCO_train2014_{name}", "height": SIZE[0], "width": SIZE[1],
                 "original_id": number + 9, "caption": "the red cup", "dataset_name": "refcocog"}  # fmt: skip
        mdetr["images"].append(image)
        box = {"id": number, "image_id": number, "bbox": [0, 0, 5, 5], "segmentation": box_polygon(0, 0),
               "category_id": 1, "iscrowd": 0, "area": 25, "original_id": number}  # fmt: skip
        mdetr["annotations"].append(box)
    write_json(root / "RefCoco_Reg/mdetr_annotations/finetune_refcocog_train_with_mask.json", mdetr)


def _label_map(path: Path, boxes: dict[tuple[int, int], int], ground: int) -> None:
    labels = np.full(SIZE, ground, np.uint8)
    for (x, y), value in boxes.items():
        labels[box_mask(x, y)] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def _parts(image: str) -> dict:
    annotations = [
        {"id": 0, "image_id": 3, "category_id": 0, "segmentation": box_polygon(0, 0), "area": 25, "bbox": [0, 0, 5, 5]},
        {"id": 1, "image_id": 3, "category_id": 1, "segmentation": box_rle(10, 0), "area": 25, "bbox": [10, 0, 5, 5]},
    ]
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    images = [{"id": 3, "height": SIZE[0], "width": SIZE[1], "file_name": image} | lists]
    categories = [{"id": 0, "name": "mug"}, {"id": 1, "name": "mug:handle"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def own_lines(folder: Path, workshop: Workshop) -> None:
    """A dataset of jsonl (docs/jsonl.md): masks as polygons and files; regions; and a config that trains it."""
    root = folder / "root"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for split, count in (("train", 6), ("val", 2)):
        lines = []
        for number in range(count):
            name, x, y = f"{split}_{number}.png", 4 + 3 * number, 2 + 2 * number
            image, mask = Image.new("RGB", (64, 48), "grey"), Image.new("L", (64, 48))
            ImageDraw.Draw(image).rectangle((x, y, x + 19, y + 15), fill="red")
            ImageDraw.Draw(mask).rectangle((x, y, x + 19, y + 15), fill=255)
            image.save(root / "images" / name)
            mask.save(root / "masks" / name)
            polygon = [[x, y, x + 20, y, x + 20, y + 16, x, y + 16]]
            talks = [{"question": "Segment the box.", "answer": "It is [SEG]."},
                     {"question": "What colour is <Prompt0>?", "answer": "red."}]  # fmt: skip
            line = {"image": name, "conversations": talks, "masks": [name if number % 2 else polygon]}
            lines.append(line | {"regions": {"0": [x, y, 20, 16]}})
        (root / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_config(folder / "base.yaml")
    values = {"base": "base.yaml", "data": {"mixture": [{"source": "jsonl"}]}, "train": {"steps": 1}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))


def finished_run(folder: Path, workshop: Workshop) -> None:
    """A run of three steps with three checkpoints and an export, a photo and a mask of it, and scores."""
    write_refer_dataset(folder / "root")
    write_config(folder / "tiny.yaml", evaluate={"benchmarks": ["refcoco:val"], "every": 2})
    call(folder, "tools/train.py", "tiny.yaml")
    shutil.copy(next((folder / "root/images/train2014").iterdir()), folder / "photo.png")
    mask = Image.new("L", (64, 48))
    ImageDraw.Draw(mask).rectangle((4, 4, 30, 30), fill=255)
    mask.save(folder / "mask.png")
    call(folder, "tools/test.py", "run/export", "--benchmark", "refcoco:val", "--data-root", "root", "--out", "scores")
    (predictions,) = (folder / "scores/predictions").glob("*.jsonl")
    shutil.copy(predictions, folder / "predictions.jsonl")


def stopped_run(folder: Path, workshop: Workshop) -> None:
    """As a kill after step 2 leaves it: two checkpoints, no export."""
    shutil.copytree(workshop.tree("finished_run"), folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "run/checkpoints/step_00000003")
    shutil.rmtree(folder / "run/export")


def stopped_scoring(folder: Path, workshop: Workshop) -> None:
    """As a kill leaves it: half of the predictions in the partial file."""
    shutil.copytree(workshop.tree("finished_run"), folder, dirs_exist_ok=True)
    (final,) = (folder / "scores/predictions").glob("*.jsonl")
    lines = final.read_text().splitlines(keepends=True)
    final.with_suffix(".partial.jsonl").write_text("".join(lines[: len(lines) // 2]))
    final.unlink()


def shards(folder: Path, workshop: Workshop) -> None:
    write_refer_dataset(folder / "root", train=6)
    write_config(folder / "draw.yaml")
    call(folder, "tools/make_shards.py", "draw.yaml", "--out", "shards", "--samples", 9, "--samples-per-shard", 4,
         "--workers", 1)  # fmt: skip
    write_config(folder / "tiny.yaml", data={"mixture": [{"source": "shards", "root": "shards"}]}, train={"steps": 2})


def cached_expert(folder: Path, workshop: Workshop) -> None:
    """A config with an expert, and the cache of its features."""
    from tiny_expert import save_expert

    write_refer_dataset(folder / "root")
    save_expert(folder / "vit")
    write_config(folder / "tiny.yaml", experts=[EXPERT | {"cache": "cache"}], train={"steps": 1})
    call(folder, "tools/cache_expert.py", "tiny.yaml", "--expert", "vit")
    write_config(folder / "online.yaml", experts=[EXPERT], train={"steps": 1})


def language_model(folder: Path, workshop: Workshop) -> None:
    """A Hugging Face decoder, and a config that starts from it."""
    from tiny_base import save_base

    write_refer_dataset(folder / "root")
    save_base(folder / "lm")
    write_config(folder / "tiny.yaml", model={"scratch": None, "base": "lm"}, train={"steps": 1})


def ablation(folder: Path, workshop: Workshop) -> None:
    """An ablation whose runs are all finished, as far as its table reads them."""
    write_refer_dataset(folder / "root")
    write_config(folder / "base.yaml")
    plain = {"name": "plain", "changes": {"architecture.mask_stride": 16}}
    fine = {"name": "fine", "changes": {"architecture.mask_stride": 4}}
    values = {"base": "base.yaml", "dir": "out", "seeds": [0, 1], "benchmarks": ["refcoco:val"]}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(values | {"variants": [plain, fine]}))
    from pixel_sail.studies.ablation.plan import load_plan

    for number, planned in enumerate(load_plan(folder / "ablation.yaml").runs):
        run = replace(planned, folder=folder / planned.folder)
        run.write_config()
        run_dir = folder / run.config.run.dir
        run_dir.mkdir(parents=True)
        lines = [{"step": i, "lm": 1.0 / i, "bce": 0.1, "dice": 0.5 / i} for i in (1, 2, 3)]
        (run_dir / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run_dir / "environment.json").write_text(json.dumps({"commit": "0" * 40, "modified_files": []}))
        scores = {"refcoco:val": {"ciou": 30.0 + number, "small_giou": None, "cases": 9}}
        (run.folder / "scores.json").write_text(json.dumps({"max_images": None, "benchmarks": scores}))


def emergence(folder: Path, workshop: Workshop) -> None:
    """The phrases of attend-and-segment on the drawn PixMMVP, predictions of that benchmark, and a judge's verdicts."""
    shutil.copytree(workshop.tree("scenes") / "root/pixmmvp", folder / "root/pixmmvp")
    from pixel_sail.data.masks import encode_mask
    from pixel_sail.evaluate.pixfoundation import pixmmvp
    from pixel_sail.evaluate.pixfoundation.templates import judge_prompt

    lines, answers = [], []
    for target in pixmmvp.read_objects(folder / "root"):
        mask = np.zeros(target.size_hw, dtype=bool)
        mask[:20, :20] = True
        rle = dict(encode_mask(mask))
        mug = {"text": "A red mug", "tokens": [0, 3], "point_xy": [2.5, 3.5], "masks": [rle], "scores": [0.5]}
        line = {"index": target.index, "image": target.image.name, "prompt": "Describe.", "tokens": 9}
        lines.append(line | {"output": "A red mug is on the table.", "phrases": [mug]})
        answers.append({"index": target.index, "answers": ["(a)"], "segmentations": [rle]})
    (folder / "phrases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "pixmmvp.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    judged = [line | {"answers": ["hard to say"]} for line in answers]
    (folder / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in judged))
    verdicts = [
        {"judge": f"tiny at {JUDGE_URL}", "prompt": judge_prompt(target.question, target.options, "hard to say"),
         "reply": "none", "verdict": "none"}
        for target in pixmmvp.read_objects(folder / "root")
    ]  # fmt: skip
    (folder / "judged.verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in verdicts))


def expert_training(folder: Path, workshop: Workshop) -> None:
    """The training of an expert, stopped after its last step, before the expert was written."""
    root = workshop.tree("scenes") / "root"
    for name in ("annotations", "images"):
        shutil.copytree(root / name, folder / "root" / name)
    (folder / "expert.yaml").write_text(yaml.safe_dump(EXPERT_TRAINING))
    call(folder, "tools/train_expert.py", "expert.yaml")
    shutil.rmtree(folder / "expert_run/expert")
    (folder / "expert_run/quality.json").unlink()


BUILDERS: dict[str, Callable[[Path, Workshop], None]] = {
    builder.__name__: builder
    for builder in (
        scenes, other_sources, own_lines, finished_run, stopped_run, stopped_scoring, shards, cached_expert,
        language_model, ablation, emergence, expert_training,
    )
}  # fmt: skip
