"""What all tests share: small drawn datasets, real samples, recorded values, and the guards against leaks."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
COLOURS = ("red", "green", "blue")
LAUNCHER_KEYS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Before torch is imported, for this process and all that it starts.
os.environ["DS_ACCELERATOR"] = "cpu"  # also where there is a GPU: tests compare bits
os.environ["PIXEL_SAIL_CACHE"] = ""  # no test reads or writes what the user has
os.environ["OMP_NUM_THREADS"] = "1"  # matrices this small only wait for a second thread, long on a busy machine
os.environ["PYTHONPATH"] = str(REPOSITORY)  # tools import this checkout


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of scenes and studies as `extra`: pytest -m "not extra" leaves them out."""
    for item in items:
        if item.path.parent.name in ("scenes", "studies"):
            item.add_marker(pytest.mark.extra)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Takes back what a training run in this process leaves: its rank, and the linear that ZeRO-3 puts into torch."""
    ranks = {key: os.environ.get(key) for key in LAUNCHER_KEYS}
    functional = sys.modules.get("torch.nn.functional")
    linear = functional and functional.linear
    yield
    for key, value in ranks.items():
        os.environ.pop(key, None) if value is None else os.environ.update({key: value})
    if functional:
        functional.linear = linear


@pytest.fixture(scope="session")
def shared() -> Path:
    """../shared with large real samples; tests that need it are skipped elsewhere."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED} (large real samples), which is not part of the repository")
    return SHARED


@pytest.fixture(scope="module", params=["samples", "shared"])
def real_data(request: pytest.FixtureRequest) -> Path:
    """Real data: the small samples of tests/samples, then the larger ones of ../shared/data where they are."""
    return REPOSITORY / "tests/samples" if request.param == "samples" else request.getfixturevalue("shared") / "data"


def free_port() -> int:
    """A port to meet at. Below 32768: above, the kernel may give it to any connection before the processes meet.

    Each worker of pytest-xdist has ports of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    for port in random.sample(range(20000 + 1500 * worker, 21500 + 1500 * worker), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port in 100 tries")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data root with refcoco and grefcoco: 3 training and 3 validation images."""
    return write_refer_dataset(tmp_path / "root")


def write_refer_dataset(
    root: Path, train: int = 3, val: int = 3, size_wh: tuple[int, int] = (64, 48), images: str = "images/train2014"
) -> Path:
    """Draws images of a red box, a green ellipse and a blue crowd of two boxes, and annotates them as REFER does.

    refcoco: 3 refs an image, 2 sentences each. grefcoco: all three objects together, and an absent one. Returns root.
    """
    (root / images).mkdir(parents=True)
    rng = np.random.default_rng(0)
    coco: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    refs: list[dict] = []
    grefs: list[dict] = []
    for image_id in range(10, 10 + train + val):
        split, name = ("train" if image_id < 10 + train else "val"), f"COCO_train2014_{image_id:012d}.png"
        image, segmentations = _draw(size_wh, rng)
        image.save(root / images / name)
        coco["images"].append({"id": image_id, "file_name": name, "width": size_wh[0], "height": size_wh[1]})
        ids = [image_id * 10 + i for i in range(len(segmentations))]
        for i, segmentation in zip(ids, segmentations, strict=True):
            crowd = int(isinstance(segmentation, dict))
            coco["annotations"].append(
                {"id": i, "image_id": image_id, "category_id": 1, "iscrowd": crowd, "segmentation": segmentation}
            )
        refs += [_ref(i, image_id, i, split, [f"the {c} one", f"{c} thing"]) for i, c in zip(ids, COLOURS, strict=True)]
        grefs.append(_ref(image_id * 10, image_id, ids, split, ["everything", "all things"]) | {"no_target": False})
        grefs.append(_ref(image_id * 10 + 1, image_id, [-1], split, ["the zebra"]) | {"no_target": True})
    for folder in ("refcoco", "grefcoco"):
        (root / folder).mkdir()
        (root / folder / "instances.json").write_text(json.dumps(coco))
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "grefcoco" / "grefs(unc).json").write_text(json.dumps(grefs))
    return root


def edit_refs(root: Path, change) -> None:
    """Rewrites refcoco's refs after `change(refs)`."""
    path = root / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    change(refs)
    path.write_bytes(pickle.dumps(refs, protocol=2))


def edit_instances(root: Path, change) -> None:
    """Rewrites refcoco's instances.json after `change(values)`."""
    path = root / "refcoco" / "instances.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def _ref(ref_id: int, image_id: int, ann_id: int | list[int], split: str, texts: list[str]) -> dict:
    sentences = [{"sent_id": ref_id * 10 + i, "sent": t, "raw": t, "tokens": t.split()} for i, t in enumerate(texts)]
    names = {"file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg", "category_id": 1}  # not the image's name
    ids = {"ref_id": ref_id, "image_id": image_id, "ann_id": ann_id, "split": split}
    return ids | names | {"sentences": sentences, "sent_ids": [s["sent_id"] for s in sentences]}


def _draw(size_wh: tuple[int, int], rng: np.random.Generator) -> tuple[Image.Image, list]:
    width, height = size_wh
    image = Image.new("RGB", size_wh, (90, 90, 90))
    draw = ImageDraw.Draw(image)
    x, y = int(rng.integers(0, width // 4)), int(rng.integers(0, height // 4))
    box = [x, y, x + width // 4, y, x + width // 4, y + height // 4, x, y + height // 4]
    draw.polygon(box, fill="red")
    centre, turn = np.array([width * 3 // 4, height * 3 // 4]), np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ellipse = centre + np.stack([np.cos(turn) * width / 6, np.sin(turn) * height / 6], axis=1)
    draw.polygon([tuple(p) for p in ellipse], fill="green")
    crowd = np.zeros((height, width), dtype=bool)
    crowd[-6:-1, 2:9] = crowd[-9:-3, 14:20] = True
    image.paste("blue", mask=Image.fromarray(crowd.astype(np.uint8) * 255))
    flat = crowd.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False)).tolist()
    runs = np.diff([0, *edges, flat.size]).tolist()
    return image, [[box], [ellipse.flatten().round(2).tolist()], {"counts": runs, "size": [height, width]}]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Recorded outputs of the research code."""
    return REPOSITORY / "tests/golden"
