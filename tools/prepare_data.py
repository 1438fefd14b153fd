"""Makes or fetches data sets. ``python tools/prepare_data.py scenes --out data/scenes --images 2000 --seed 0``"""

import argparse
from pathlib import Path

from pixel_sail.data import scenes


def _add_scenes(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("scenes", help="draw the embedded data set, in the formats of the real ones")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--images", type=int, required=True, help="number of images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long-side", type=int, default=192, help="longer side of the images in pixels")
    parser.add_argument("--workers", type=int, default=None, help="processes; all cores by default")
    parser.add_argument("--overwrite", action="store_true", help="replace a scenes folder of another request")
    parser.set_defaults(run=_scenes)


def _scenes(args: argparse.Namespace) -> None:
    if scenes.stored_request(args.out) == scenes.request_of(args.images, args.seed, args.long_side):
        print(f"{args.out} already holds exactly this; reused")
        return
    try:
        scenes.generate(
            args.out, args.images, args.seed, args.long_side, args.workers, overwrite=args.overwrite, progress=True
        )
    except (FileExistsError, ValueError) as error:
        raise SystemExit(f"error: {error}" + (" (--overwrite)" if "overwrite" in str(error) else "")) from error
    print(f"wrote {args.images} images to {args.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="data set")
    _add_scenes(commands)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
