"""How the benchmarks of each kind are named, for help texts: without what scores them, whose import takes seconds.

A kind's module has its BENCHMARK, which takes its names from here.
"""

from __future__ import annotations

from dataclasses import dataclass

REFER = ("refcoco", "refcoco+", "refcocog")


@dataclass(frozen=True)
class Names:
    """The names of one kind of benchmark, and what it scores."""

    prefixes: tuple[str, ...]  # what its names begin with, up to the first colon
    form: str  # how its names are written: "gcg[:DATASET[:SPLIT]]"
    help: str  # one line
    tasks: tuple[str, ...] = ()  # the benchmarks that a bare kind stands for, where it is no benchmark itself


REFERRING = Names(
    (*REFER, "grefcoco"),
    f"{'|'.join(REFER)}|grefcoco:SPLIT",
    "referring segmentation: cIoU, gIoU, Pr@X; grefcoco: also N-acc and T-acc, as an expression may match nothing",
)
PERBENCH = Names(
    ("perbench",),
    "perbench[:caption|:mcq|:vtres]",
    "PerBench: captions, multiple choice and masks about regions; without a task: all three and the overall score",
    tasks=("perbench:caption", "perbench:mcq", "perbench:vtres"),
)
REGION = Names(
    ("region_caption",),
    "region_caption:DATASET[:SPLIT]",
    f"descriptions of regions: METEOR, CIDEr; DATASET: {', '.join(REFER)}; SPLIT: val by default",
)
GCG = Names(
    ("gcg",),
    "gcg[:DATASET[:SPLIT]]",
    "captions whose phrases have masks; DATASET: grand_f, open_psg, refcocog_gcg, flickr_gcg (default grand_f); SPLIT: "
    "val by default",
)
REASON_SEG = Names(
    ("reasonseg",),
    "reasonseg[:SPLIT]",
    "ReasonSeg: masks of what a sentence implies: gIoU, cIoU (also of short and long queries), Pr@X; SPLIT: val",
)
CONCEPTS = Names(
    ("concepts",),
    "concepts[:SPLIT]",
    "every instance of a category, or none: COCO's mask AP, SA-Co's cgF1; SPLIT of a COCO instances file: val",
)
PIXFOUNDATION = Names(
    ("pixmmvp", "pixcvbench"),
    "pixmmvp|pixcvbench[:own]",
    "PixFoundation (docs/pixfoundation.md): answers and masks about the same objects; own: not in the published "
    "wordings, but in three of ours",
)
JSONL = Names(
    ("jsonl",),
    "jsonl:FILE",
    "your own file (docs/jsonl.md): gIoU, cIoU, Pr@X of the questions whose answers have masks; FILE: a path, or one "
    "below the data root",
)
GSEVAL = Names(
    ("gseval",),
    "gseval[:box]",
    "GroundingSuite-Eval: masks of stuff, parts, several or single objects: gIoU; boxes: Acc@0.5; box: boxes alone",
)
REF_L4 = Names(
    ("ref_l4",),
    "ref_l4[:val|:test]",
    "Ref-L4: boxes of long expressions: Acc@0.5, @0.75, @0.9, mAcc, also by size and by class; without a split: both",
)
DLC_BENCH = Names(
    ("dlc_bench",),
    "dlc_bench",
    "DLC-Bench: detailed descriptions of regions, read by a judge: positive, negative and average score",
)
GAR_BENCH = Names(
    ("gar_bench",),
    "gar_bench[:vqa|:simple|:detailed]",
    "GAR-Bench: questions about one or several regions: accuracy; simple, detailed: captions, read by a judge; without "
    "a task: all three",
    tasks=("gar_bench:vqa", "gar_bench:simple", "gar_bench:detailed"),
)
CLICKS = Names(
    ("clicks",),
    f"clicks:{'|'.join(REFER)}|grefcoco:SPLIT",
    "clicks that a mask needs (NoC@80, NoC@90), simulated, from the first phrase of each object and by clicks alone",
)
KINDS = (
    REFERRING,
    PERBENCH,
    REGION,
    GCG,
    REASON_SEG,
    CONCEPTS,
    PIXFOUNDATION,
    JSONL,
    GSEVAL,
    REF_L4,
    DLC_BENCH,
    GAR_BENCH,
    CLICKS,
)


def tasks_of(name: str) -> tuple[str, ...]:
    """The benchmarks that a name stands for: "perbench" for its three tasks, any other name for itself."""
    return next((kind.tasks for kind in KINDS if kind.tasks and name in kind.prefixes), (name,))


def benchmark_help() -> str:
    """How the names of each kind are written, and what it scores; two lines a kind."""
    return "\n".join(f"  {kind.form}\n      {kind.help}" for kind in KINDS)
