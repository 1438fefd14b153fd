"""What the host does on a GPU, counted with a GPU whose kernels do nothing (README.md): pytest -m null_gpu."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import null_library
import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.null_gpu

GIB = 2**30
# check -> the attention kernel that it must take
MICRO_BATCHES = {
    "fused": "flash",
    "pooled": "flash",
    "several_images": "flash",
    "several_pooled_images": "flash",
    "score_head": "flash",
    "modality_experts": "flash",
    "stem": "flash",
    "only_texts": "flash",
    "checkpointing": "flash",
    "autocast": "flash",  # float32 weights; queries, keys and values are bf16
    "float32": "sdpa",
    "asked_for_flash_in_float32": "sdpa",
}
CHECKS = (
    *MICRO_BATCHES,
    "one_image",
    "many_labels",
    "block_mask_of_33k_tokens",
    "generation",
    "compiled_layers",
    "process_group",
    "prediction",
    "compiled_mask_blocks",
    "training",
    "resumed_training",
    "compiled_training",
    "stages_of_gpu_check",
)


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """What each function of checks.py measured, all in one child process."""
    try:
        folder = null_library.library()
    except null_library.Unavailable as missing:
        pytest.skip(f"no null GPU: {missing}")
    child = [sys.executable, str(Path(__file__).with_name("child.py")), *CHECKS]
    environment = null_library.environment(folder) | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    done = subprocess.run(child, env=environment, capture_output=True, text=True, timeout=400)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    assert [line["check"] for line in lines] == list(CHECKS), f"exit {done.returncode}\n{done.stderr[-5000:]}"
    return {line["check"]: line for line in lines}


def result_of(measured: dict[str, dict[str, Any]], check: str) -> dict[str, Any]:
    assert "error" not in measured[check], measured[check]["error"]
    return measured[check]["result"]


@pytest.mark.parametrize("check", MICRO_BATCHES)
def test_a_micro_batch_never_waits_for_the_gpu(measured: dict[str, dict[str, Any]], check: str) -> None:
    """Forward, losses and backward, with images of several sizes, prompts, masks and sequences without an image."""
    counts = result_of(measured, check)
    assert counts["launches"] > 100 and counts["matmuls"] > 50  # it was the GPU that ran
    assert counts["syncs"] == 0 and counts["pageable_copies"] == 0
    assert counts["to_host_bytes"] == 0
    assert counts["kernel"] == MICRO_BATCHES[check]


def test_an_image_travels_as_bytes_and_its_masks_as_runs(measured: dict[str, dict[str, Any]]) -> None:
    """1024 px, five masks: 3.1 MB of pixels, which are 12.6 in float32, and 20 kB of masks, which have 5.2 M pixels."""
    counts = result_of(measured, "one_image")
    assert counts["patches"] == 3 * 1024**2 and counts["masks"] <= 20_100
    assert counts["to_device_bytes"] - counts["patches"] - counts["masks"] < 100 * counts["tokens"]  # indices
    assert counts["to_device_bytes"] < 3.6e6
    assert counts["syncs"] == 0 and counts["pageable_copies"] == 0


@pytest.mark.parametrize("setting", ["bf16", "float32", "autocast"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_waits_once_for_a_token(measured: dict[str, dict[str, Any]], setting: str, temperature: int) -> None:
    counts = result_of(measured, "generation")[setting]
    four, eight = (counts[f"{tokens} tokens, temperature {temperature}"] for tokens in (4, 8))
    assert four["launches"] > 100
    assert four["tokens"] == [5] * 6  # the [SEG] that was given, and four more
    assert eight["masks"] == [1, 1, 0] * 2
    assert eight["syncs"] - four["syncs"] == 4
    assert eight["pageable_copies"] - four["pageable_copies"] == 4  # the same read


@pytest.mark.parametrize("precision, dtype", [("fp32", "torch.float32"), ("bf16", "torch.bfloat16")])
def test_a_predictor_waits_once_for_a_token(measured: dict[str, dict[str, Any]], precision: str, dtype: str) -> None:
    """Of an export: three questions about an image with two regions, and one without an image, in one batch."""
    counts = result_of(measured, "prediction")[precision]
    four, eight = counts["4"], counts["8"]
    assert four["launches"] > 100 and (four["device"], four["dtype"]) == ("cuda", dtype)
    assert eight["masks"] == [[[48, 64]] * 8] * 3 + [[]]  # every token stands for [SEG]
    assert eight["syncs"] - four["syncs"] == 4


def test_many_labels_never_have_all_their_logits_at_once(measured: dict[str, dict[str, Any]]) -> None:
    peaks = result_of(measured, "many_labels")
    assert peaks["labels"] == 5800
    assert peaks["in pieces"]["peak_bytes"] < 2.5 * GIB < 10 * GIB < peaks["at once"]["peak_bytes"]
    assert peaks["in pieces"]["syncs"] == 0


def test_the_block_mask_of_flex_attention_is_small(measured: dict[str, dict[str, Any]]) -> None:
    made = result_of(measured, "block_mask_of_33k_tokens")
    assert made["ours"]["peak_bytes"] < 0.1 * GIB < 8 * GIB < made["torch"]["peak_bytes"]
    assert made["ours"]["syncs"] == 0 and made["ours"]["pageable_copies"] == 0


def test_decoder_layers_and_mask_blocks_are_compiled_once(measured: dict[str, dict[str, Any]]) -> None:
    compiled = result_of(measured, "compiled_layers")
    assert compiled["breaks"] == 0
    assert compiled["graphs"] == [2] * 12  # one of each
    assert compiled["with_text_alone"] == 3  # one kernel call in place of two in the decoder


@pytest.mark.parametrize("form", ["shifts, eager", "convolution, eager", "shifts, inductor"])
def test_mask_blocks_are_one_graph_for_all_sizes(measured: dict[str, dict[str, Any]], form: str) -> None:
    """One image or several, of any sides."""
    compiled = result_of(measured, "compiled_mask_blocks")[form]
    assert compiled["breaks"] == 0
    assert compiled["graphs"] == [1] * 12
    if form == "shifts, inductor":
        assert max(compiled["launches"][1:]) < 50  # as written there are 186; the first call tries variants of kernels


@pytest.mark.parametrize("run", ["stage 0", "stage 1", "stage 2", "lora", "activation checkpointing", "scored"])
def test_a_training_compiles_its_layers_once(measured: dict[str, dict[str, Any]], run: str) -> None:
    compiled = result_of(measured, "compiled_training")[run]
    assert compiled["breaks"] == 0
    assert compiled["graphs"][0] in (2, 3) and len(compiled["graphs"]) == 4
    assert len(set(compiled["graphs"])) == 1  # the first step has seen all that there is
    assert any("compiled decoder layers and mask blocks in" in line for line in compiled["said"])


@pytest.mark.parametrize("run, reason", [("stage 3", "ZeRO-3"), ("float32", "attention runs as sdpa")])
def test_what_cannot_be_compiled_is_not(measured: dict[str, dict[str, Any]], run: str, reason: str) -> None:
    compiled = result_of(measured, "compiled_training")[run]
    assert compiled["graphs"] == [0] * 4
    assert len(compiled["said"]) == 1 and f"not compiled: {reason}" in compiled["said"][0]


@pytest.mark.parametrize("run", ["stage 0", "stage 0, fp32", "stage 1", "stage 2", "stage 3"])
def test_a_training_is_scored(measured: dict[str, dict[str, Any]], run: str) -> None:
    scores = result_of(measured, "training")[f"{run}, scored"]["scores"]
    assert [line["step"] for line in scores] == [2, 4]
    assert all("errors" not in line and "refcoco:val" in line["benchmarks"] for line in scores), scores


# run -> the most synchronizations of a micro-batch, which are DeepSpeed's, and of a whole step with its micro-batches.
# One of a step is ours: it reads loss sums and norm.
RUNS = {
    "stage 0": (0, 1),
    "stage 0, lora": (0, 1),
    "stage 0, fp32": (0, 1),
    "stage 0, expert": (0, 1),
    "stage 0, two workers": (0, 1),
    "stage 0, score head": (0, 1),
    "stage 1": (0, 5),
    "stage 2": (1, 12),
    "stage 2, lora": (1, 12),
    "stage 3": (2, 11),
    "stage 3, score head": (2, 11),
}


@pytest.mark.parametrize("run", RUNS)
def test_what_waits_in_a_training(measured: dict[str, dict[str, Any]], run: str) -> None:
    """The third step of train(), from its data to its update."""
    check_waits(result_of(measured, "training")[run], run)


@pytest.mark.parametrize("run", ["stage 0", "stage 1", "stage 2", "stage 2, lora", "stage 3"])
def test_a_training_goes_on_and_is_exported(measured: dict[str, dict[str, Any]], run: str) -> None:
    """From its second step; the third step after that waits as often as one of a run that has never ended."""
    resumed = result_of(measured, "resumed_training")
    assert any("going on from step_00000002" in line for line in resumed[run]["said"])
    assert resumed[run]["steps"] == [1, 5]  # what is logged here; no step twice
    check_waits(resumed[run], run)
    assert resumed[run]["shapes"] == resumed["stage 0"]["shapes"]  # of the model that is loaded from the export


def check_waits(counts: dict[str, Any], run: str) -> None:
    in_micro_batches, in_step = RUNS[run]
    in_step += in_micro_batches * max(0, len(counts["micro_batches"]) - 3)  # it is that of a step with three
    assert len(counts["micro_batches"]) >= 2
    for micro_batch in counts["micro_batches"]:
        assert micro_batch["launches"] > 500 and micro_batch["pageable_copies"] == 0
        assert micro_batch["to_device_bytes"] == 0  # it was there before its turn
        assert micro_batch["syncs"] <= in_micro_batches
    assert counts["step"]["syncs"] <= in_step
    assert counts["step"]["pageable_copies"] <= (1 if run.startswith("stage 0") else 3)  # what is read to the host


def test_each_of_several_ranks_names_its_gpu(measured: dict[str, dict[str, Any]]) -> None:
    """Otherwise torch guesses it at a barrier, and warns."""
    result = result_of(measured, "process_group")
    assert (result["bound"], result["alone"]) == ("cuda:0", "None")
    assert result["with"] == [] and any("device_id" in warning for warning in result["without"])


def test_stages_of_gpu_check_come_to_their_end(measured: dict[str, dict[str, Any]]) -> None:
    lines = result_of(measured, "stages_of_gpu_check")
    assert {line["stage"] for line in lines} == {"machine", "kernels", "parity", "speed", "generation"}
    assert [line for line in lines if line["result"] == "fail"] == []
    numbers = {line["check"]: line["value"] for line in lines if line["stage"] == "speed"}
    assert 0.9 < numbers["12 x 640x480, eager: memory, measured / planned"] < 1.1  # exact, of the 0.5B recipe
    assert numbers["12 x 640x480, eager: waits of the host in a step"] <= 12
    assert numbers["12 x 640x480, eager: tokens"] > 0
