"""Prints the keys of a config with types, defaults and meanings: all of them, or those that begin so.

pixel-sail config
pixel-sail config train.lora
"""

from __future__ import annotations

import argparse

from pixel_sail.command import importing, tool


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beginning", nargs="?", default="", help="for example train, train.lora or data.pro")
    print_keys(parser.parse_args().beginning)


def print_keys(beginning: str) -> None:
    with importing():
        from pixel_sail.config_keys import keys_text
    print(keys_text(beginning) or f"no key begins with {beginning!r}")
