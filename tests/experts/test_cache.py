"""The cache of an expert's features: it returns what the expert computes, however the cache was filled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import free_port, write_refer_dataset
from PIL import Image
from tiny_expert import WIDTH, expert_values, save_expert

from pixel_sail.config import REPOSITORY, Config, ConfigError, ExpertConfig, load_config
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.image import load_image
from pixel_sail.data.write_shards import make_shards
from pixel_sail.experts import Expert, open_expert
from pixel_sail.experts.cache import RECORD, CacheWriter, FeatureCache, image_digest, student_grid
from pixel_sail.experts.expert import resize_features
from pixel_sail.experts.features import cached_features, expert_image
from pixel_sail.experts.fill_cache import cache_experts, finish_cache, list_images
from pixel_sail.locks import Busy

MODEL = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "mlp_size": 32}
LAUNCHER_KEYS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
IMAGES = 150


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_expert(tmp_path_factory.mktemp("expert") / "vit")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_root(tmp_path_factory.mktemp("cache") / "root")


def draw_root(root: Path) -> Path:
    """refcoco and grefcoco over the same images, each of which is different. Returns root."""
    write_refer_dataset(root, train=IMAGES, val=1)
    for number, path in enumerate(images_of(root)):
        with Image.open(path) as image:
            image.putpixel((number % 64, number // 64), (255, 255, 0))
            image.save(path)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path, expert: Path) -> Config:
    """The config of a cache that one process made without a break."""
    config = load_config(write_config(tmp_path_factory.mktemp("finished"), root, expert))
    assert cache_experts(config, ["vit"], "cpu", progress=False) == []
    assert f"{IMAGES} images" in finish_cache(config, "vit", progress=False)
    return config


def write_config(folder: Path, root: Path, expert: Path, **changes: object) -> Path:
    values = {
        "run": {"dir": str(folder / "run")},
        "model": {"scratch": MODEL},
        "architecture": {"patch_size": 16, "max_side_px": 64},
        "data": {"root": str(root), "mixture": [{"source": "refcoco"}, {"source": "grefcoco"}], "workers": 0},
        "train": {"steps": 1, "batch_size": 1},
        "experts": [expert_values(expert, cache=str(folder / "cache"), **changes)],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def images_of(root: Path) -> list[Path]:
    return sorted((root / "images" / "train2014").iterdir())[:IMAGES]  # the last one is of the validation split


def assert_same_features(a: FeatureCache, b: FeatureCache, root: Path) -> None:
    for path in images_of(root):
        first, second = a.find(image_digest(path)), b.find(image_digest(path))
        assert first is not None and second is not None and np.array_equal(first, second)


# Contents


@pytest.mark.parametrize(
    ("size_wh", "fit", "multiple", "expected"),
    [
        ((640, 480), "square", 32, (1024, 1024)),
        ((640, 480), "long", 16, (768, 1024)),
        ((480, 640), "short", 16, (1360, 1024)),  # 1365 px, to the nearest multiple
        ((100, 1000), "short", 1, (1707, 171)),  # no longer than 5/3 of the size
        ((1000, 3), "long", 32, (32, 1024)),  # at least one multiple
    ],
)
def test_sizes_of_expert_images(size_wh: tuple[int, int], fit: str, multiple: int, expected: tuple) -> None:
    image = expert_image(Image.new("RGB", size_wh), 1024, fit, multiple)
    assert image.dtype == torch.uint8 and tuple(image.shape) == (3, *expected)


def test_an_expert_image_is_the_whole_image() -> None:
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, 40:, 0], pixels[30:, :, 2] = 200, 100
    image = expert_image(Image.fromarray(pixels), 32, "square", 16)
    assert image[0, :, :15].max() == 0 and image[0, :, 17:].min() == 200
    assert image[2, :23].max() == 0 and image[2, 25:].min() == 100


def test_every_image_is_stored_once(finished: Config, root: Path, expert: Path) -> None:
    """Two sources name each image; the cache has the expert's features, rounded to float16."""
    cache = FeatureCache(finished.experts[0].cache)
    assert cache.manifest["statistics"]["images"] == IMAGES
    features = finished.experts[0].cache / "00000-of-00001.features"
    assert features.stat().st_size == IMAGES * WIDTH * 3 * 4 * 2 == cache.manifest["statistics"]["bytes"]
    opened, total = open_expert(finished.experts[0], "cpu"), torch.zeros(2, WIDTH, dtype=torch.float64)
    for path in images_of(root):
        [features_of_expert] = opened.features([expert_image(load_image(path), 48, "short", opened.multiple)])
        stored = torch.from_numpy(cache.find(image_digest(path)).copy())
        assert torch.equal(stored, features_of_expert.half())
        total += torch.stack([stored.double().mean((1, 2)), stored.double().square().mean((1, 2))]) / IMAGES
    mean, std = (torch.from_numpy(values).double() for values in cache.statistics())
    torch.testing.assert_close(mean, total[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(std, (total[1] - total[0] ** 2).sqrt(), atol=1e-6, rtol=1e-5)
    assert cache.find("0" * 64) is None and cache.find("f" * 64) is None


def test_one_expert_with_two_caches_runs_once(
    tmp_path: Path, root: Path, expert: Path, finished: Config, monkeypatch
) -> None:
    """Each `at` gets what it would get alone; an image that only one cache lacks is added to that one."""
    [vit] = finished.experts
    masks = vit.model_copy(update={"name": "masks", "at": "mask_features", "cache": tmp_path / "masks"})
    patches = vit.model_copy(update={"name": "patches", "cache": tmp_path / "patches"})
    config = finished.model_copy(update={"experts": [masks, patches]})
    seen: list[int] = []
    features = Expert.features
    monkeypatch.setattr(Expert, "features", lambda self, shown: seen.append(len(shown)) or features(self, shown))
    cache_experts(config, ["patches"], "cpu", 0, 2, progress=False)
    share = sum(seen)
    assert 0 < share < IMAGES
    cache_experts(config, ["masks", "patches"], "cpu", progress=False)
    assert sum(seen) == share + IMAGES
    cache_experts(config, ["masks", "patches"], "cpu", progress=False)
    assert sum(seen) == share + IMAGES
    for name in ("masks", "patches"):
        assert f"{IMAGES} images" in finish_cache(config, name, progress=False)
    assert_same_features(FeatureCache(patches.cache), FeatureCache(vit.cache), root)
    alone = masks.model_copy(update={"cache": tmp_path / "alone"})
    cache_experts(finished.model_copy(update={"experts": [alone]}), ["masks"], "cpu", progress=False)
    finish_cache(finished.model_copy(update={"experts": [alone]}), "masks", progress=False)
    assert_same_features(FeatureCache(masks.cache), FeatureCache(alone.cache), root)
    size = sum(path.stat().st_size for path in patches.cache.glob("*.features"))
    assert size == sum(path.stat().st_size for path in vit.cache.glob("*.features"))


def test_storing_the_smaller_grid_loses_nothing(tmp_path: Path, root: Path, expert: Path) -> None:
    """Expert grid 8 x 2, student grid 3 x 4: 3 x 2 is stored, and the loss compares the same values."""
    values = expert_values(expert, fit="square", cache=tmp_path / "cache")
    config = load_config(write_config(tmp_path, root, expert))
    image = load_image(images_of(root)[0])
    grid = student_grid(image.size, ExpertConfig(**values), config.architecture)
    assert grid == (3, 4)
    features = torch.randn(WIDTH, 8, 2)
    stored = resize_features(features, (3, 2)).permute(2, 0, 1)
    torch.testing.assert_close(resize_features(stored, grid), resize_features(features, grid), atol=1e-6, rtol=1e-5)


def test_the_students_grid_limits_what_is_stored(tmp_path: Path, root: Path, expert: Path) -> None:
    config = load_config(write_config(tmp_path, root, expert, size_px=192), ["architecture.max_side_px=32"])
    cache_experts(config, ["vit"], "cpu", progress=False)
    finish_cache(config, "vit", progress=False)
    cache, path = FeatureCache(tmp_path / "cache"), images_of(root)[0]
    opened = open_expert(config.experts[0], "cpu")
    [features_of_expert] = opened.features([expert_image(load_image(path), 192, "short", opened.multiple)])
    stored = torch.from_numpy(cache.find(image_digest(path)).copy())
    assert features_of_expert.shape[1:] == (12, 16) and stored.shape[1:] == (
        2,
        2,
    )  # 64 x 48 px become 32 x 32 (24 rounded up)
    assert torch.equal(stored, resize_features(features_of_expert, (2, 2)).permute(2, 0, 1).half())


def test_images_inside_of_shards(tmp_path: Path, root: Path, expert: Path, finished: Config) -> None:
    """Shards hold the same bytes: a cache made of files serves them, and one made of shards is the same."""
    shards = tmp_path / "shards"
    make_shards(finished, shards, samples=20, samples_per_shard=8, features=cached_features(finished))
    config = load_config(write_config(tmp_path, root, expert), [f"data.mixture=[{{source: shards, root: {shards}}}]"])
    cache_experts(config, ["vit"], "cpu", progress=False)
    finish_cache(config, "vit", progress=False)
    cache, whole = FeatureCache(tmp_path / "cache"), FeatureCache(finished.experts[0].cache)
    cached_paths = [path for path in images_of(root) if cache.find(image_digest(path)) is not None]
    assert len(cached_paths) == cache.manifest["statistics"]["images"] <= 20
    for path in cached_paths:
        assert np.array_equal(cache.find(image_digest(path)), whole.find(image_digest(path)))


# Filled by several processes, killed, repeated


def test_killed_and_finished_by_two(tmp_path: Path, root: Path, expert: Path, finished: Config) -> None:
    """kill -9 of one process; two under the launcher do the rest, each image once."""
    config = write_config(tmp_path, root, expert)
    index = tmp_path / "cache" / "00000-of-00001.index"
    process = start_tool(config, "--batch", "1")
    while not (index.exists() and index.stat().st_size) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -9, output
    stored = index.stat().st_size // RECORD.itemsize
    assert 0 < stored < IMAGES
    with pytest.raises(DatasetError, match="is not finished: repeat the tools/cache_expert.py command"):
        FeatureCache(tmp_path / "cache")
    process = start_tool(config, processes=2)
    output, _ = process.communicate()
    assert process.returncode == 0 and f"{IMAGES} images" in output, output
    cache = FeatureCache(tmp_path / "cache")
    sizes = [path.stat().st_size // RECORD.itemsize for path in sorted((tmp_path / "cache").glob("*.index"))]
    assert sizes[0] == stored and sum(sizes) == IMAGES and len(sizes) == 3 and min(sizes) > 0
    assert_same_features(cache, FeatureCache(finished.experts[0].cache), root)
    assert cache.manifest["statistics"]["mean"] == pytest.approx(
        FeatureCache(finished.experts[0].cache).manifest["statistics"]["mean"], abs=1e-9
    )


def test_a_torn_tail_is_dropped(tmp_path: Path, root: Path, expert: Path, finished: Config) -> None:
    """Half a record; and a record whose features never reached the disk. Both images are done again, others are not."""
    config = copy_of(finished, tmp_path)
    index, features = (tmp_path / "cache" / f"00000-of-00001.{name}" for name in ("index", "features"))
    with features.open("r+b") as file:
        file.truncate(features.stat().st_size - WIDTH * 3 * 4 * 2 - 10)  # the last one and a part of the one before
    with index.open("r+b") as file:
        file.truncate(index.stat().st_size - 7)
    with pytest.raises(DatasetError, match="has .* bytes instead of .*: copy it again, or delete it and"):
        FeatureCache(tmp_path / "cache")
    before = index.read_bytes()
    cache_experts(config, ["vit"], "cpu", progress=False)
    finish_cache(config, "vit", progress=False)
    whole = (IMAGES - 2) * RECORD.itemsize
    assert index.read_bytes()[:whole] == before[:whole] and index.stat().st_size == IMAGES * RECORD.itemsize
    assert_same_features(FeatureCache(tmp_path / "cache"), FeatureCache(finished.experts[0].cache), root)


def test_changed_images_are_added(tmp_path: Path, root: Path, expert: Path, finished: Config) -> None:
    """Two files that became the same image are computed, once, when the command is repeated; nothing else is."""
    config = copy_of(finished, tmp_path)
    other = shutil.copytree(root, tmp_path / "root")
    for changed in images_of(other)[3:5]:
        Image.new("RGB", (64, 48), "white").save(changed)
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": other})})
    assert FeatureCache(tmp_path / "cache").find(image_digest(changed)) is None
    cache_experts(config, ["vit"], "cpu", progress=False)
    assert f"{IMAGES + 1} images" in finish_cache(config, "vit", progress=False)
    assert (tmp_path / "cache" / "00000-of-00001.index").stat().st_size == (IMAGES + 1) * RECORD.itemsize
    assert FeatureCache(tmp_path / "cache").find(image_digest(changed)) is not None


def test_shares_are_disjoint_and_complete(root: Path, finished: Config) -> None:
    from pixel_sail.data.sources import open_source

    sources = [open_source(entry, finished.data) for entry in finished.data.mixture]
    shares = [set(list_images(sources, process, 3, progress=False)) for process in range(3)]
    assert sum(map(len, shares)) == IMAGES == len(set().union(*shares))
    assert min(map(len, shares)) > IMAGES / 6


# Refusals


def test_one_writer_a_part(tmp_path: Path, finished: Config) -> None:
    config = copy_of(finished, tmp_path)
    manifest = FeatureCache(tmp_path / "cache").manifest
    with (
        CacheWriter(tmp_path / "cache", manifest),
        pytest.raises(Busy, match="00000-of-00001.index is in use by .*Give every process its own --shard"),
    ):
        cache_experts(config, ["vit"], "cpu", progress=False)


@pytest.mark.parametrize("change", [{"size_px": 64}, {"fit": "long"}, {"at": "mask_features"}, {"path": "other"}])
def test_other_features_are_not_mixed_in(tmp_path: Path, finished: Config, change: dict[str, object]) -> None:
    config = copy_of(finished, tmp_path)
    if "path" in change:
        change = {"path": str(save_expert(tmp_path / "other", seed=1))}
    key = "fingerprint" if "path" in change else next(iter(change))
    config = config.model_copy(update={"experts": [config.experts[0].model_copy(update=change)]})
    with pytest.raises(ConfigError, match=f"holds other features: {key} was .* Name another folder"):
        cache_experts(config, ["vit"], "cpu", progress=False)


def test_damaged_features(tmp_path: Path, root: Path, finished: Config) -> None:
    copy_of(finished, tmp_path)
    path = tmp_path / "cache" / "00000-of-00001.features"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    cache, damaged = FeatureCache(tmp_path / "cache"), []
    for image in images_of(root):
        try:
            cache.find(image_digest(image))
        except ValueError as error:
            damaged.append(str(error))
    assert len(damaged) == 1 and "are damaged (CRC-32)" in damaged[0]


def test_names_that_lead_nowhere(tmp_path: Path, finished: Config) -> None:
    with pytest.raises(ConfigError, match="no expert 'sam' in the config; it has: vit"):
        cache_experts(finished, ["sam"], "cpu")
    online = finished.model_copy(update={"experts": [finished.experts[0].model_copy(update={"cache": None})]})
    with pytest.raises(ConfigError, match="expert 'vit' has no cache in the config"):
        cache_experts(online, ["vit"], "cpu")
    with pytest.raises(DatasetError, match="no features of an expert at .*manifest.json is missing"):
        FeatureCache(tmp_path)


def test_unreadable_images_are_named(tmp_path: Path, root: Path, expert: Path) -> None:
    other = shutil.copytree(root, tmp_path / "root")
    broken = images_of(other)[:2]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    config = load_config(write_config(tmp_path, other, expert))
    problems = cache_experts(config, ["vit"], "cpu", progress=False)
    assert len(problems) == 2 and all(any(path.name in problem for path in broken) for problem in problems)
    with pytest.raises(DatasetError, match="more than 1 images cannot be read"):
        cache_experts(load_config(tmp_path / "config.yaml", ["data.max_bad_samples=1"]), ["vit"], "cpu", progress=False)


def copy_of(finished: Config, folder: Path) -> Config:
    shutil.copytree(finished.experts[0].cache, folder / "cache")
    changed = finished.experts[0].model_copy(update={"cache": folder / "cache"})
    return finished.model_copy(update={"experts": [changed]})


def start_tool(config: Path, *arguments: str, processes: int = 1) -> subprocess.Popen:
    script = [str(REPOSITORY / "tools" / "cache_expert.py"), str(config), "--expert", "vit", *arguments]
    if processes > 1:
        launcher = str(Path(sys.executable).with_name("deepspeed"))
        script = [launcher, "--num_accelerators", str(processes), "--master_port", str(free_port()), *script]
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCHER_KEYS}
    environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, *script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
