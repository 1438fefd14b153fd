"""The sample stream: exact shares, whole epochs, random access, and the same for any number of workers and ranks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pixel_sail.architecture import Architecture
from pixel_sail.config import REPOSITORY, DataConfig, MixtureEntry, PromptConfig, load_config
from pixel_sail.data.deal import Costs
from pixel_sail.data.errors import DatasetError
from pixel_sail.data.loader import StepDataset, load_steps
from pixel_sail.data.masks import area_px, encode_mask
from pixel_sail.data.mixture import BLOCK, Mixture, open_mixture
from pixel_sail.data.pack import pack
from pixel_sail.errors import UserError
from pixel_sail.types import BadSample, Encoded, NoPixels, Sample, Turn

COSTS = Costs(lambda tokens, attended: tokens, Architecture(patch_size=16, max_side_px=64), max_length=512)


@dataclass
class FakeSource:
    name: str
    size: int
    bad: frozenset[int] = frozenset()
    error: type[BadSample] = BadSample

    def __len__(self) -> int:
        return self.size

    def key(self, index: int) -> str:
        return f"{self.name}/{index}"

    def image(self, index: int) -> Path | None:
        return None

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        if index in self.bad:
            raise self.error(f"{self.key(index)}: made so")
        return Sample(f"{self.key(index)}:{rng.integers(1 << 30)}", None, ())


def encode(sample: Sample, seed: int) -> Encoded:
    """A text-only sequence whose length depends on its sample."""
    length = 4 + sum(sample.key.encode()) % 7
    ids = torch.arange(length)
    return Encoded(
        key=sample.key,
        seed=seed,
        input_ids=ids,
        labels=ids.clone(),
        position_ids=ids.expand(3, -1),
        patches=torch.zeros(0, 12),
        prompt_ids=torch.zeros(0, dtype=torch.int64),
    )


def pack_text(sequences: list[Encoded]):
    return pack(sequences, seg_id=-1, patch_id=-1)


def step_dataset(mixture: Mixture, rank: int = 0, world: int = 1, batch_size: int = 8) -> StepDataset:
    return StepDataset(mixture, encode, pack_text, batch_size, 20, rank, world, COSTS)


@pytest.fixture
def mixture() -> Mixture:
    return Mixture([FakeSource("a", 17), FakeSource("b", 300), FakeSource("c", 5)], [1.0, 2.0, 0.004], seed=3)


def test_every_block_has_exactly_its_shares(mixture: Mixture) -> None:
    # 1000 / 3.004 * (1, 2, 0.004) = 332.889, 665.779, 1.332: the two largest remainders are rounded up.
    for block in range(3):
        drawn = Counter(mixture.locate(block * BLOCK + i)[0] for i in range(BLOCK))
        assert drawn == {0: 333, 1: 666, 2: 1}
    orders = [[mixture.locate(block * BLOCK + i)[0] for i in range(BLOCK)] for block in range(2)]
    assert orders[0] != orders[1]  # shuffled anew


def test_every_sample_once_an_epoch(mixture: Mixture) -> None:
    seen: dict[tuple[int, int], list[int]] = {}
    for position in range(5 * BLOCK):
        number, index, epoch = mixture.locate(position)
        seen.setdefault((number, epoch), []).append(index)
    for number, source in enumerate(mixture.sources):
        epochs = sorted(epoch for n, epoch in seen if n == number)
        assert epochs == list(range(len(epochs)))
        for epoch in epochs[:-1]:  # the last one is not over
            assert sorted(seen[number, epoch]) == list(range(len(source)))
    assert seen[0, 0] != seen[0, 1]  # a new order each epoch


def test_random_access_equals_sequential(mixture: Mixture) -> None:
    positions = range(2_500)
    in_order = [(mixture.locate(i), mixture.sample(i).key, mixture.point_seed(i)) for i in positions]
    shuffled = np.random.default_rng(0).permutation(2_500).tolist()
    fresh = Mixture(mixture.sources, [1.0, 2.0, 0.004], seed=3)
    anyhow = {i: (fresh.locate(i), fresh.sample(i).key, fresh.point_seed(i)) for i in shuffled}
    assert [anyhow[i] for i in positions] == in_order
    assert len({seed for _, _, seed in in_order}) == 2_500
    assert all(0 <= seed < 2**31 for _, _, seed in in_order)


def test_prompts_are_drawn_as_users_draw_them_by_position_alone() -> None:
    whole = encode_mask(np.ones((8, 8), dtype=bool))

    class Prompted(FakeSource):
        def sample(self, index: int, rng: np.random.Generator) -> Sample:
            return Sample(self.key(index), None, (Turn("<Prompt0>?", "all"),), prompts={0: whole})

    mixture = Mixture([Prompted("a", 9)], [1.0], seed=3, prompts=PromptConfig(mask=0.5, point=0.5))
    areas = [area_px(mixture.sample(position).prompts[0]) for position in range(200)]
    assert set(areas) == {1, 64} and 70 < areas.count(1) < 130
    assert [area_px(mixture.sample(position).prompts[0]) for position in (150, 3, 77)] == [
        areas[i] for i in (150, 3, 77)
    ]


def test_seed_changes_the_stream(mixture: Mixture) -> None:
    other = Mixture(mixture.sources, [1.0, 2.0, 0.004], seed=4)
    assert [mixture.locate(i) for i in range(50)] != [other.locate(i) for i in range(50)]
    assert mixture.sample(0).key != other.sample(0).key


def test_unusable_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="source 1 of the mixture is empty"):
        Mixture([FakeSource("a", 3), FakeSource("b", 0)], [1, 1], seed=0)
    with pytest.raises(ValueError, match="weight 0.0001 of source 1 is below one sample in 1000"):
        Mixture([FakeSource("a", 3), FakeSource("b", 3)], [1, 0.0001], seed=0)
    with pytest.raises(ValueError, match="2 sources and 1 weights"):
        Mixture([FakeSource("a", 3), FakeSource("b", 3)], [1], seed=0)


def test_fingerprint_sees_other_data(mixture: Mixture) -> None:
    renamed = Mixture([FakeSource("x", 17), *mixture.sources[1:]], [1, 1, 1], seed=0)
    longer = Mixture([FakeSource("a", 18), *mixture.sources[1:]], [1, 1, 1], seed=0)
    assert mixture.fingerprint()[1:] == renamed.fingerprint()[1:]
    assert mixture.fingerprint()[0] not in (renamed.fingerprint()[0], longer.fingerprint()[0])


def keys_of_steps(dataset: StepDataset, start: int, stop: int, workers: int) -> list[tuple[str, ...]]:
    steps = load_steps(dataset, start, stop, workers)
    return [tuple(key for batch in data.batches for key in batch.keys) for data in steps]


def test_steps_do_not_depend_on_workers_or_start(mixture: Mixture) -> None:
    dataset = step_dataset(mixture)
    expected = keys_of_steps(dataset, 0, 6, workers=0)
    drawn = [sorted(mixture.sample(8 * step + i).key for i in range(8)) for step in range(6)]
    assert [sorted(keys) for keys in expected] == drawn
    assert keys_of_steps(dataset, 0, 6, workers=3) == expected
    assert keys_of_steps(dataset, 4, 6, workers=2) == expected[4:]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_out_every_step(mixture: Mixture, world: int) -> None:
    alone = step_dataset(mixture)[5]
    shares = [step_dataset(mixture, rank, world)[5] for rank in range(world)]
    keys = [[key for batch in share.batches for key in batch.keys] for share in shares]
    assert sorted(key for part in keys for key in part) == sorted(key for batch in alone.batches for key in batch.keys)
    equal_costs = [[mixture.sample(40 + i).key for i in range(rank, 8, world)] for rank in range(world)]
    assert [sorted(part) for part in keys] == [sorted(part) for part in equal_costs]
    seeds = {key: seed for batch in alone.batches for key, seed in zip(batch.keys, batch.seeds, strict=True)}
    for share in shares:
        for batch in share.batches:
            assert [seeds[key] for key in batch.keys] == list(batch.seeds)
            assert batch.tokens <= 20


def test_the_loader_leaves_the_global_generator_alone(mixture: Mixture) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(load_steps(step_dataset(mixture), 0, 2, workers=1))
    assert torch.equal(before, torch.get_rng_state())


def test_bad_samples_are_recorded(mixture: Mixture) -> None:
    mixture.sources[1].bad = frozenset(range(300))
    data = step_dataset(mixture)[2]
    bad = [i for i in range(16, 24) if mixture.locate(i)[0] == 1]
    assert [record.position for record in data.bad] == bad
    assert [record.key for record in data.bad] == [mixture.key(i) for i in bad]
    assert all(record.step == 2 and "made so" in record.message for record in data.bad)
    assert data.samples == 8 - len(bad) == sum(len(batch.keys) for batch in data.batches)


def test_samples_without_pixels_are_told_from_faults_of_files(mixture: Mixture) -> None:
    mixture.sources[1].bad = mixture.sources[0].bad = frozenset(range(300))
    mixture.sources[1].error = NoPixels
    bad = step_dataset(mixture)[2].bad
    assert {record.key.split("/")[0]: record.no_pixels for record in bad} == {
        mixture.sources[0].name: False,
        mixture.sources[1].name: True,
    }


def test_a_rank_without_any_good_sample_gets_a_filler(mixture: Mixture) -> None:
    mixture.sources[1].bad = frozenset(range(300))
    position = next(i for i in range(BLOCK) if mixture.locate(i)[0] == 1)
    data = step_dataset(mixture, batch_size=1)[position]
    assert data.batches == () and data.samples == 0 and len(data.bad) == 1
    assert data.filler.keys == (
        next(mixture.sample(i).key for i in range(position + 1, BLOCK) if mixture.locate(i)[0] != 1),
    )
    for source in mixture.sources:
        source.bad = frozenset(range(300))
    with pytest.raises(BadSample, match="no usable sample in 1000 stream positions"):
        step_dataset(mixture)[0]


def test_the_filler_is_the_smallest_batch(mixture: Mixture) -> None:
    data = step_dataset(mixture)[1]
    assert len(data.batches) > 1
    assert data.filler.tokens == min(batch.tokens for batch in data.batches)


class OddError(UserError):
    """Cannot be unpickled: Python calls the constructor with the message alone."""

    def __init__(self, file: str, line: int):
        super().__init__(f"{file}, line {line}: broken")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error, kinds, message",
    [
        (ZeroDivisionError("a bug, not a bad sample"), ZeroDivisionError, "a bug, not a bad sample"),
        (OddError("a.json", 3), UserError, "a.json, line 3: broken"),
        (DatasetError("/data/x.tar: broken"), DatasetError, "/data/x.tar: broken"),
        (OSError(5, "Input/output error", "/data/x"), OSError, "[Errno 5] Input/output error: '/data/x'"),
        (KeyError("counts"), KeyError, "'counts'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), UnicodeDecodeError, "'utf-8' codec can't decode byte 0xff"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_in_a_worker_is_that_without_workers(
    mixture: Mixture, error: Exception, kinds: type[Exception], message: str, workers: int
) -> None:
    def broken(sample: Sample, seed: int) -> Encoded:
        raise error

    dataset = StepDataset(mixture, broken, pack_text, 8, 20, 0, 1, COSTS)
    with pytest.raises(kinds) as caught:
        next(load_steps(dataset, 0, 2, workers))
    assert str(caught.value).startswith(message) and "Caught" not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    if not isinstance(error, UserError | OSError):
        assert "raise error" in shown  # the place of a bug, also if it was in another process


def test_workers_end_with_the_steps(mixture: Mixture) -> None:
    """Also when somebody stops in the middle; SIGTERM does not end them, because it must not reach them too early."""
    steps = load_steps(step_dataset(mixture), 0, 100, workers=2)
    next(steps)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    assert next(steps).step == 1
    steps.close()
    for worker in workers:
        worker.join(5)
        assert not worker.is_alive()


def test_a_signal_to_workers_that_are_being_started_does_not_end_them(mixture: Mixture) -> None:
    steps = load_steps(step_dataset(mixture), 0, 4, workers=2)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    assert [data.step for data in steps] == [0, 1, 2, 3]


def test_a_worker_that_ends_with_status_0_too_early_is_noticed(mixture: Mixture) -> None:
    def leaves(sample: Sample, seed: int) -> Encoded:
        os._exit(0)

    dataset = StepDataset(mixture, leaves, pack_text, 8, 20, 0, 1, COSTS)
    with pytest.raises(DatasetError, match="a data worker .* exit status 0"):
        next(load_steps(dataset, 0, 4, workers=2))


def test_a_killed_worker_is_no_error_of_torch(mixture: Mixture) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    steps = load_steps(step_dataset(mixture), 0, 1000, workers=2)
    next(steps)
    multiprocessing.active_children()[0].kill()
    time.sleep(0.1)  # torch's handler would raise here, be it in the middle of a step
    with pytest.raises(DatasetError, match="a data worker .* was killed: SIGKILL.*/dev/shm.*data.workers"):
        list(steps)
    assert signal.getsignal(signal.SIGCHLD) is before


def test_processes_of_a_machine_begin_with_different_sources(tmp_path: Path, monkeypatch) -> None:
    opened: list[str] = []

    def open_source(entry: MixtureEntry, data: DataConfig) -> FakeSource:
        opened.append(entry.source)
        return FakeSource(entry.source, 5)

    monkeypatch.setattr("pixel_sail.data.mixture.open_source", open_source)
    config = load_config(REPOSITORY / "configs/scratch.yaml", [f"data.root={tmp_path}", f"run.dir={tmp_path}"])
    mixture = [MixtureEntry(source=name) for name in "abcd"]
    config = config.model_copy(update={"data": config.data.model_copy(update={"mixture": mixture, "exclude": []})})
    for rank, order in ((None, "abcd"), (0, "abcd"), (1, "bcda"), (2, "cdab"), (3, "dabc")):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 4)):
            monkeypatch.delenv(f"LOCAL_{name}", raising=False)
            if rank is not None:
                monkeypatch.setenv(f"LOCAL_{name}", str(value))
        opened.clear()
        assert [source.name for source in open_mixture(config).sources] == list("abcd")
        assert "".join(opened) == order
