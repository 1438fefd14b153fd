"""Draws the embedded dataset, reads exports of annotation tools, checks datasets, counts the samples of files.

python tools/prepare_data.py scenes --out data/scenes --images 2000 --seed 0
python tools/prepare_data.py own labelme my_labels --out my_data
python tools/prepare_data.py check --root data/coco
python tools/prepare_data.py count image_text 'cc3m/{00000..00331}.tar' --out sizes.json
"""

import argparse
from pathlib import Path

from pixel_sail.command import importing, tool
from pixel_sail.arguments import whole
from pixel_sail.interrupts import how_far
from pixel_sail.workers import MAX_WORKERS

LONG_SIDES_PX, STYLES = (64, 4096), ("day", "night")  # of pixel_sail.scenes, whose import takes seconds


def _add_scenes(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("scenes", help="draw the embedded dataset, in the formats of the real datasets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--images", type=whole(1), required=True, help="number of images")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument(
        "--long-side", type=whole(*LONG_SIDES_PX), default=192, help="longer side of the images in pixels"
    )
    parser.add_argument("--style", choices=STYLES, default="day", help="night: a second domain")
    parser.add_argument(
        "--image-text", action="store_true", help="also tars of captioned images, and plain text: docs/base.md"
    )
    parser.add_argument(
        "--lessons",
        action="store_true",
        help="also many requests of one kind about an image, or about one region: docs/results/tiny.md",
    )
    parser.add_argument("--workers", type=whole(1, MAX_WORKERS), default=None, help="processes; by default one a core")
    parser.add_argument("--overwrite", action="store_true", help="replace a scenes folder of another request")
    parser.set_defaults(run=_scenes)


def _scenes(args: argparse.Namespace) -> None:
    with importing():
        from pixel_sail import scenes
    drawn = scenes.generate(
        args.out,
        args.images,
        args.seed,
        args.long_side,
        args.workers,
        style=args.style,
        image_text=args.image_text,
        lessons=args.lessons,
        overwrite=args.overwrite,
        progress=True,
    )
    if not drawn:
        print(f"{args.out} already holds exactly this; reused")
        return
    print(f"wrote {args.images} images to {args.out}")


def _add_own(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "own", help="write masks that were drawn with labelme, or exported for YOLO or COCO, as a dataset to train on"
    )
    parser.add_argument("format", choices=("labelme", "yolo", "coco"))
    parser.add_argument(
        "source",
        type=Path,
        help="labelme: the folder of its JSON files; yolo: data.yaml; coco: a JSON file, or a folder with "
        "train/_annotations.coco.json",
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder; it becomes a data root")
    parser.add_argument("--images", type=Path, help="labelme, coco: where the images are, if not beside the files")
    parser.add_argument(
        "--val", type=float, default=0.1, metavar="SHARE", help="of the images, for validation, if there is no split"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of the images that are drawn for validation")
    parser.add_argument(
        "--leave-out", action="store_true", help="go on without the images that have a problem, instead of stopping"
    )
    parser.add_argument("--problems", type=whole(0), default=20, metavar="N", help="problems listed")
    parser.set_defaults(run=_own, error=parser.error)


def _own(args: argparse.Namespace) -> None:
    if not 0 <= args.val < 1:
        args.error(f"argument --val: {args.val} is no share of the images; give 0 to below 1, for example 0.1")
    if args.images is not None and args.format == "yolo":
        args.error("argument --images: data.yaml says where the images are")
    with importing():
        from pixel_sail.commands.work import own as work
    work.run(args)


def _add_check(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("check", help="list which datasets are under a data root and which are missing")
    parser.add_argument("--root", type=Path, required=True, help="data root, as data.root of a config")
    parser.add_argument(
        "--source", action="append", metavar="NAME", help="only this one, named as in data/README.md; may be repeated"
    )
    parser.add_argument("--split", action="append", help="with --source: instead of its published splits")
    parser.add_argument("--decode", type=whole(0), default=3, metavar="N", help="samples to decode per split")
    parser.add_argument(
        "--problems", type=whole(0), default=20, metavar="N", help="unusable annotations listed per split"
    )
    parser.set_defaults(run=_check, error=parser.error)


def _check(args: argparse.Namespace) -> None:
    with importing():
        from pixel_sail.data import check
    for name in args.source or ():
        if name not in check.CHECKED:
            args.error(f"argument --source: invalid choice: {name!r} (choose from {', '.join(check.CHECKED)})")
    if not args.root.is_dir():
        raise SystemExit(f"error: no folder {args.root}")
    if args.split and not args.source:
        raise SystemExit("error: --split needs --source")
    broken = there = 0
    done = 0
    with how_far(lambda: f"{done} sources were checked; the same command checks all of them again"):
        for finding in check.check_root(args.root, args.decode, args.source, args.split):
            broken += bool(finding.errors)
            there += not finding.missing
            done += 1
            print("\n".join(check.report(finding, args.problems)), flush=True)
    if broken:
        raise SystemExit(f"error: {broken} of them cannot be used as they are")
    if args.source and not there:
        raise SystemExit(f"error: nothing of {', '.join(args.source)} is under {args.root}")


def _add_count(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("count", help="count the samples of tars or text files anywhere: docs/base.md")
    parser.add_argument("source", choices=("image_text", "text"), help="what the files are")
    parser.add_argument("files", help="as `files` in data.mixture: 'pipe:aws s3 cp s3://bucket/{000..331}.tar -'")
    parser.add_argument("--key", help="of source text: as `key` in data.mixture")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write, for `sizes` in data.mixture")
    parser.set_defaults(run=_count)


def _count(args: argparse.Namespace) -> None:
    with importing():
        from pixel_sail.data.sources.sizes import write_sizes
    sizes = write_sizes(args.source, args.files, args.key, args.out)
    print(f"{sum(sizes.values()):,} samples in {len(sizes):,} files: {args.out}")


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_scenes(commands)
    _add_own(commands)
    _add_check(commands)
    _add_count(commands)
    args = parser.parse_args()
    args.run(args)
