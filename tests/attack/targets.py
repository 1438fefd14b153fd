"""Every kind of file that the tools read: a tree that has it, and the commands that read it."""

from __future__ import annotations

from dataclasses import dataclass

from attack.trees import JUDGE_URL

Command = tuple[object, ...]

PICTURES = (".png", ".jpg")


@dataclass(frozen=True)
class Target:
    """`files`: glob patterns in the tree; each case damages one of the files. `commands`: run one after the other.

    `names`: what a message may call the file besides its name. `share`: cases, relative to other targets.
    """

    kind: str  # a row of the table
    tree: str
    files: tuple[str, ...]
    commands: tuple[Command, ...]
    names: tuple[str, ...] = ()
    share: int = 2


def _data(kind: str, tree: str, source: str, *files: str, names: tuple[str, ...] = (), share: int = 1) -> Target:
    """A source: all of it is checked, and all of its samples are encoded and drawn."""
    check = ("tools/prepare_data.py", "check", "--root", "root", "--source", source, "--split", "train",
             "--decode", 100)  # fmt: skip
    inspect = ("tools/inspect_data.py", "--source", source, "--root", "root", "--out", "look", "--count", 40)
    return Target(kind, tree, tuple(f"root/{file}" for file in files), (check, inspect), (source, *names), share)


def _train(*overrides: str) -> Command:
    return ("tools/train.py", "tiny.yaml", *overrides)


def _score(kind: str, benchmark: str, tree: str, *files: str, predictions: str, share: int = 2) -> Target:
    command = ("tools/test.py", "--predictions", predictions, "--benchmark", benchmark, "--data-root", "root",
               "--out", "scored")  # fmt: skip
    return Target(kind, tree, files, (command,), (benchmark,), share)


_PREDICT = ("tools/predict.py", "run/export", "--image", "photo.png", "--mask", "mask.png", "--text", "the red one",
            "--ask", "What is <Prompt0>?", "--out", "answers", "--device", "cpu")  # fmt: skip
_TEST = ("tools/test.py", "run/export", "--benchmark", "refcoco:val", "--data-root", "root", "--out", "scores",
         "--device", "cpu")  # fmt: skip
_EXPORT = ("tools/export.py", "run", "--out", "published", "--metrics", "scores/metrics.json")
_CONVERT = ("tools/convert.py", "language-model", "lm", "--out", "converted", "--max-side-px", "64")
_MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_EXPORT_FILES = tuple(f"run/export/{name}" for name in (*_MODEL_FILES, "model.safetensors"))

SOURCES = (
    _data("annotations (JSON)", "scenes", "refcoco", "refcoco/instances.json", share=3),
    _data("annotations (pickle)", "scenes", "refcoco", "refcoco/refs(unc).p", share=5),
    _data("annotations (pickle)", "scenes", "refcocog_captions", "refcocog/refs(umd).p"),
    _data("annotations (JSON)", "scenes", "grefcoco", "grefcoco/*.json"),
    _data("annotations (JSON)", "scenes", "reason_seg", "reason_seg/ReasonSeg/train/*.json", names=("reason",)),
    _data("annotations (JSON)", "scenes", "coco_instance", "annotations/instances_train2017.json"),
    _data("annotations (JSON)", "scenes", "coco_panoptic_segments", "annotations/panoptic_train2017.json"),
    _data("annotations (JSON)", "scenes", "panoptic_category", "annotations/panoptic_train2017.json"),
    _data("annotations (JSON)", "scenes", "coco_semantic", "annotations/panoptic_train2017.json"),
    _data("annotations (JSON)", "scenes", "grand_f", "GranDf/annotations/train/GranDf_HA_GCG_train.json"),
    _data("annotations (JSON)", "scenes", "open_psg", "GranDf/annotations/train/OpenPsgGCG_train.json"),
    _data("annotations (JSON)", "scenes", "refcocog_gcg", "GranDf/annotations/train/RefCOCOg_GCG_train.json"),
    _data("annotations (JSON)", "scenes", "flickr_gcg", "GranDf/annotations/train/flickr_mergedGT_GCG_train.json"),
    _data("annotations (JSON)", "scenes", "muse", "muse/MUSE_train.json"),
    _data("annotations (JSON)", "scenes", "pix2cap_caption", "pix2cap/pix2cap_coco_train.json"),
    _data("annotations (JSON)", "scenes", "pix2cap_segment", "pix2cap/pix2cap_coco_train.json"),
    _data("annotations (JSON)", "scenes", "osprey_short_form", "osprey/osprey_short_form.json"),
    _data("annotations (JSON)", "scenes", "osprey_conversation", "osprey/osprey_conversation.json"),
    _data("annotations (JSON)", "scenes", "osprey_detail_description", "osprey/osprey_detail_description.json"),
    _data("annotations (JSON)", "scenes", "osprey_part_level", "osprey/osprey_part_level.json"),
    _data("annotations (JSON)", "scenes", "osprey_lvis_positive_negative",
          "osprey/osprey_lvis_positive_negative.json"),
    _data("annotations (JSON)", "scenes", "sam_captions", "sam_captions/train.json"),
    _data("annotations (JSON)", "scenes", "perbench_caption", "perbench_train/STBench_Detailed_Caption.json"),
    _data("annotations (JSON)", "scenes", "perbench_mcq", "perbench_train/STBench_MCQ.json"),
    _data("annotations (JSON)", "scenes", "perbench_vtres", "perbench_train/STBench_VRES.json"),
    _data("annotations (JSON)", "scenes", "llava", "llava/train.json"),
    _data("annotations (JSON)", "scenes", "choices", "llava/choices.json"),
    _data("annotations (JSON)", "other_sources", "llava_mix665k", "llava/llava_v1_5_mix665k.json"),
    _data("annotations (JSON)", "other_sources", "refcocog_mdetr_captions",
          "RefCoco_Reg/mdetr_annotations/finetune_refcocog_train_with_mask.json"),
    _data("annotations (JSON)", "other_sources", "mapillary", "mapillary/config_v2.0.json"),
    _data("annotations (JSON)", "other_sources", "paco_lvis", "vlpart/paco/annotations/*.json"),
    _data("annotations (JSON)", "other_sources", "pascal_part", "vlpart/pascal_part/train.json"),
    _data("annotations (jsonl)", "own_lines", "jsonl", "train.jsonl", names=("train.jsonl",), share=12),
    _data("images", "scenes", "refcoco", "images/train2014/*.jpg", share=5),
    _data("images", "other_sources", "ade20k", "ade20k/images/training/*.jpg", share=2),
    _data("images", "own_lines", "jsonl", "images/train_*.png", share=4),
    _data("mask files and label maps", "own_lines", "jsonl", "masks/train_[135].png", share=4),
    _data("mask files and label maps", "scenes", "coco_panoptic_segments", "annotations/panoptic_train2017/*.png",
          share=3),
    _data("mask files and label maps", "other_sources", "ade20k", "ade20k/annotations/training/*.png", share=3),
    _data("mask files and label maps", "other_sources", "coco_stuff", "stuffthingmaps_trainval2017/train2017/*.png"),
    _data("mask files and label maps", "other_sources", "mapillary", "mapillary/training/v2.0/labels/*.png"),
)  # fmt: skip
TARGETS = (
    *SOURCES,
    Target("configs", "finished_run", ("tiny.yaml",),
           (("tools/train.py", "tiny.yaml", "--plan", "--gpus", 1),), share=10),
    Target("configs", "own_lines", ("tiny.yaml", "base.yaml"),
           (("tools/inspect_data.py", "tiny.yaml", "--out", "look"),), share=8),
    Target("configs", "ablation", ("ablation.yaml", "base.yaml"), (("tools/ablate.py", "ablation.yaml", "--table"),),
           ("variant",), 6),
    Target("configs", "expert_training", ("expert.yaml",), (("tools/train_expert.py", "expert.yaml"),), share=2),
    Target("images", "finished_run", ("photo.png",), (_PREDICT,), share=5),
    Target("mask files and label maps", "finished_run", ("mask.png",), (_PREDICT,), share=4),
    _score("predictions", "refcoco:val", "finished_run", "predictions.jsonl", predictions="predictions.jsonl",
           share=12),
    _score("predictions", "pixmmvp", "emergence", "pixmmvp.jsonl", predictions="pixmmvp.jsonl", share=6),
    _score("benchmark files (CSV, JSON)", "pixmmvp", "emergence", "root/pixmmvp/*.csv",
           predictions="pixmmvp.jsonl", share=8),
    _score("benchmark files (CSV, JSON)", "pixmmvp", "emergence", "root/pixmmvp/Segmentations.json",
           predictions="pixmmvp.jsonl", share=4),
    _score("benchmark files (CSV, JSON)", "refcoco:val", "finished_run", "root/refcoco/*",
           predictions="predictions.jsonl", share=6),
    Target("interrupted scoring", "stopped_scoring", ("scores/predictions/*",), (_TEST,), ("refcoco:val",), 8),
    Target("verdicts of a judge", "emergence", ("judged.verdicts.jsonl",),
           (("tools/test.py", "--predictions", "judged.jsonl", "--benchmark", "pixmmvp", "--data-root", "root",
             "--out", "scored", "--judge-model", "tiny", "--judge-url", JUDGE_URL),), ("the judge",), 6),
    Target("metrics.json", "finished_run", ("scores/metrics.json",), (_EXPORT,), share=6),
    Target("shards", "shards", ("shards/*.tar", "shards/*.json"),
           (("tools/make_shards.py", "--out", "shards", "--verify"), _train()), ("shards",), 16),
    Target("caches of experts", "cached_expert", ("cache/*",), (_train(),), ("cache",), 10),
    Target("caches of experts", "cached_expert", ("cache/*",), (("tools/cache_expert.py", "tiny.yaml", "--expert",
           "vit"), _train()), ("cache",), 6),
    Target("model folders", "finished_run", _EXPORT_FILES, (_PREDICT,), ("run/export",), 16),
    Target("model folders", "finished_run", _EXPORT_FILES, (_TEST,), ("run/export",), 6),
    Target("model folders", "finished_run", _EXPORT_FILES,
           (_train("train.init_from=run/export", "run.dir=second", "train.steps=1"),), ("run/export",), 8),
    Target("model folders", "finished_run", _EXPORT_FILES, (_EXPORT,), ("run/export",), 6),
    Target("language models", "language_model", ("lm/*",), (_train(),), ("lm",), 10),
    Target("language models", "language_model", ("lm/*",), (_CONVERT,), ("lm",), 8),
    Target("experts", "cached_expert", ("vit/*",), (("tools/train.py", "online.yaml"),), ("vit",), 8),
    Target("checkpoints", "stopped_run", ("run/checkpoints/step_00000002/**/*",), (_train(),),
           ("step_00000002",), 16),
    Target("checkpoints", "stopped_run", ("run/checkpoints/step_00000002/**/*",), (_EXPORT,), ("step_00000002",), 6),
    Target("run folder", "stopped_run", ("run/*.jsonl", "run/*.yaml", "run/*.json", "run/validation/**/*.json*"),
           (_train(),), ("run/",), 10),
    Target("run folder", "ablation", ("out/*/*/scores.json", "out/*/*/config.yaml", "out/*/*/run/*"),
           (("tools/ablate.py", "ablation.yaml", "--table"),), ("seed_0", "seed_1"), 10),
    Target("scenes.json", "scenes", ("root/scenes.json",), (("tools/prepare_data.py", "scenes", "--out", "root",
           "--images", 12, "--long-side", 64, "--workers", 1),), ("root",), 4),
    Target("phrases", "emergence", ("phrases.jsonl",), (("tools/grounding_emergence.py", "--phrases", "phrases.jsonl",
           "--data-root", "root", "--out", "emerged"),), share=8),
    Target("training of an expert", "expert_training", ("expert_run/*",),
           (("tools/train_expert.py", "expert.yaml"),), ("expert_run",), 6),
)  # fmt: skip
