"""What `pixel-sail data own` does: an export of an annotation tool becomes a data root."""

from __future__ import annotations

import argparse

from pixel_sail.data.own.coco import read_coco
from pixel_sail.data.own.labelme import read_labelme
from pixel_sail.data.own.write import with_splits, write_own
from pixel_sail.data.own.yolo import read_yolo
from pixel_sail.data.text import printable
from pixel_sail.errors import UserError
from pixel_sail.writable import check_writable

SHOWN_CATEGORIES = 20


def run(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out.parent)
    problems: list[str] = []
    if arguments.format == "yolo":
        images = read_yolo(arguments.source, problems)
    else:
        read = {"labelme": read_labelme, "coco": read_coco}[arguments.format]
        images = read(arguments.source, arguments.images, problems)
    for problem in problems[: arguments.problems]:
        print(f"cannot be used: {printable(problem)}")
    if len(problems) > arguments.problems:
        print(f"cannot be used: {len(problems) - arguments.problems} more; --problems {len(problems)} lists all")
    if problems and not arguments.leave_out:
        raise UserError(
            f"{len(problems)} problems, nothing is written; mend them, or add --leave-out to go on without their images"
        )
    objects = write_own(with_splits(images, arguments.val, arguments.seed), arguments.out)
    for split, counts in objects.items():
        shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(SHOWN_CATEGORIES))
        more = len(counts) - SHOWN_CATEGORIES
        print(f"{split}: {counts.total()} objects: {shown}{f' and {more} more' if more > 0 else ''}")
    print(f"wrote {len(images)} images to {arguments.out}; look at them:")
    print(f"python tools/inspect_data.py --source concepts --root {arguments.out} --out outputs/inspect")
