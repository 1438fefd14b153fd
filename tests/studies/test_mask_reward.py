"""The mask reward: rewards by hand, its gradient against brute force, and a study of a few steps by its command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import REPOSITORY, write_refer_dataset
from PIL import Image
from safetensors.torch import load_file
from tiny_export import save_export
from tiny_predictor import tiny_predictor
from torch import Tensor
from warm import run_tool

from pixel_sail.config import ConfigError, load_config
from pixel_sail.data.masks import encode_mask
from pixel_sail.errors import FileError
from pixel_sail.model import generation
from pixel_sail.model.generation import Generated, Sampling
from pixel_sail.serve.predictor import Predictor
from pixel_sail.studies.mask_reward.plan import load_plan
from pixel_sail.studies.mask_reward.policy import policy_loss, sample_answers, single_questions, with_answer
from pixel_sail.studies.mask_reward.rewards import Answer, advantages, answer_iou, has_form, rate
from pixel_sail.studies.mask_reward.stages import finished as finished_stage
from pixel_sail.studies.mask_reward.stages import log_of
from pixel_sail.studies.mask_reward.training import add_supervised, learned
from pixel_sail.types import IGNORE_LABEL, Encoded, Sample, Turn

MAX_NEW_TOKENS = 6


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_predictor()


def mask(*boxes: tuple[int, int, int, int]):
    """The RLE of a mask of 32 x 48 pixels with boxes (left, top, right, bottom)."""
    pixels = torch.zeros(32, 48, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = True
    return encode_mask(pixels.numpy())


def conversation(colour: str = "red") -> Sample:
    """Three questions about one image: for two masks, for nothing, for one mask."""
    file = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(file, format="PNG")
    turns = (
        Turn("Segment the red mug.", "mug [SEG] and ball [SEG]."),
        Turn("Segment the lamp.", "There is none."),
        Turn("Segment the ball.", "[SEG]"),
    )
    masks = (mask((0, 0, 16, 16)), mask((16, 0, 32, 16)), mask((32, 16, 48, 32)))
    return Sample(colour, file.getvalue(), turns, masks)


def questions(predictor: Predictor) -> list[Encoded]:
    samples = (conversation(), conversation("blue"))
    return [
        predictor.encoder.encode(question, seed)
        for seed, sample in enumerate(samples)
        for question in single_questions(sample)
    ]


def answer(tokens: tuple[int, ...], times: int = 1, iou: float = 0.0, form: float = 0.0, ended: bool = True) -> Answer:
    return Answer(tokens, ended, times, iou, form)


def boxes_as_logits(*boxes: tuple[int, int, int, int]) -> Tensor:
    """Mask logits (K, 8, 12), a logit for 4 x 4 pixels, of boxes in pixels."""
    logits = torch.full((len(boxes), 8, 12), -1.0)
    for logit, (left, top, right, bottom) in zip(logits, boxes, strict=True):
        logit[top // 4 : bottom // 4, left // 4 : right // 4] = 1.0
    return logits


def test_each_question_is_asked_alone_with_its_masks(predictor: Predictor) -> None:
    sample = conversation()
    alone = list(single_questions(sample))
    assert [question.turns for question in alone] == [(turn,) for turn in sample.turns]
    assert [question.masks for question in alone] == [sample.masks[:2], (), sample.masks[2:]]


def test_ious_by_hand(predictor: Predictor) -> None:
    """The truth of the first question are two boxes of 16 x 16 side by side, that of the second is nothing."""
    two, nothing, _ = questions(predictor)[:3]
    assert answer_iou(boxes_as_logits((0, 0, 16, 16), (16, 0, 32, 16)), two) == 1
    assert answer_iou(boxes_as_logits((0, 0, 32, 16)), two) == 1  # united
    assert answer_iou(boxes_as_logits((0, 0, 16, 16)), two) == 0.5
    assert answer_iou(boxes_as_logits((0, 0, 48, 32)), two) == pytest.approx(1 / 3)
    assert answer_iou(torch.empty(0, 1, 1), two) == 0
    assert answer_iou(torch.empty(0, 1, 1), nothing) == 1
    assert answer_iou(boxes_as_logits((0, 0, 0, 0)), nothing) == 0  # a [SEG] was written, whatever it shows


@pytest.mark.parametrize(
    ("text", "annotated", "right"),
    [
        ("mug [SEG] and ball [SEG].", "lamp [SEG].", True),
        ("mug [SEG], [SEG].", "lamp [SEG].", False),
        ("[SEG]", "lamp [SEG].", False),
        ("There is none.", "lamp [SEG].", True),  # whether that is true is not a matter of form
        ("", "lamp [SEG].", False),
        (" .", "lamp [SEG].", False),
        ("[SEG]", "[SEG]", True),
        ("It is [SEG].", "[SEG]", False),
        ("[SEG][SEG]", "[SEG]", False),
        ("[SEG]", "There is none.", True),
        ("mug [SEG]", "There is none.", True),
        ("There is none.", "There is none.", True),
    ],
)
def test_form(text: str, annotated: str, right: bool) -> None:
    assert has_form(text, annotated) == right


def test_equal_answers_are_rated_once(predictor: Predictor) -> None:
    encoder, (two, *_) = predictor.encoder, questions(predictor)
    ids, none = encoder.text_ids(" mug [SEG]"), torch.empty(0, 1, 1)
    half = boxes_as_logits((0, 0, 16, 16))
    image_token, long = [encoder.tokens.vision_patch], [*ids, *ids]
    sampled = [Generated(ids, half), Generated(image_token, none), Generated(ids, half), Generated(long, half)]
    rated = rate(sampled, two, encoder, len(long))
    assert rated == [
        answer(tuple(ids), 2, 0.5, 1.0),
        answer(tuple(image_token), 1, 0.0, 0.0),  # an image token is no word
        answer(tuple(long), 1, 0.5, 0.0, ended=False),
    ]
    assert [round(value, 6) for value in advantages(rated, 0.2)] == [
        round(2 * (0.7 - 0.475), 6),  # mean reward: (0.7 + 0.7 + 0 + 0.5) / 4
        round(0.0 - 0.475, 6),
        round(0.5 - 0.475, 6),
    ]


def test_equal_rewards_teach_nothing(predictor: Predictor) -> None:
    rated = [answer((5,), 3, 0.1, 1.0), answer((6, 7), 4, 0.1, 1.0)]
    assert advantages(rated, 0.2) == [0.0, 0.0]
    assert list(learned(questions(predictor)[:1], [rated], 0.2, 0)) == []


def test_log_probabilities_are_those_of_sampling(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers sampled together, token by token, and the same answers read at once, alone and all in one pass."""
    model, encoder, asked = predictor.model, predictor.encoder, questions(predictor)
    steps, choose = [], generation._choose

    def recorded(logits: Tensor, sampling: Sampling) -> list[int]:
        steps.append(logits.log_softmax(-1))
        return choose(logits, sampling)

    monkeypatch.setattr(generation, "_choose", recorded)
    sampling = Sampling(MAX_NEW_TOKENS, temperature=1.0, generator=torch.Generator().manual_seed(3))
    sampled = sample_answers(model, encoder, asked, 3, sampling)
    rows = [generated for of_question in sampled for generated in of_question]
    assert len(rows) == 18 and len({tuple(row.token_ids) for row in rows}) > 9
    end, weights = encoder.end_ids[0], torch.rand(len(rows), generator=sampling.generator).tolist()
    sequences, expected = [], 0.0
    for number, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        one = answer(tuple(row.token_ids), ended=len(row.token_ids) < MAX_NEW_TOKENS)
        sequences.append(with_answer(asked[number // 3], one, weight, end))
        tokens = [*one.token_ids, *([end] if one.ended else [])]
        log_likelihood = sum(float(steps[step][number, token]) for step, token in enumerate(tokens))
        with torch.no_grad():
            assert float(policy_loss(model, encoder, sequences[-1:])) == pytest.approx(
                -weight * log_likelihood, rel=1e-4
            )
        expected -= weight * log_likelihood
    with torch.no_grad():  # two images, three questions about each
        assert float(policy_loss(model, encoder, sequences)) == pytest.approx(expected, rel=1e-5)


def test_gradient_is_that_of_reinforce(predictor: Predictor) -> None:
    """Against every sampled answer alone, equal ones again and again, in a sequence that the encoder has written."""
    model, encoder, asked = predictor.model, predictor.encoder, questions(predictor)
    texts = ["mug [SEG]", "There is none.", "mug [SEG]", "[SEG]", "ball [SEG] mug"]
    rewards = torch.tensor([[0.7, 0.1, 0.7, 0.4, 0.2], [0.0, 1.0, 0.0, 0.0, 0.5]])
    brute = torch.zeros(())
    for question, of_question in zip((0, 1), rewards, strict=True):
        for text, advantage in zip(texts, of_question - of_question.mean(), strict=True):
            sample = list(single_questions(conversation()))[question]
            sample = Sample("", sample.image, (Turn(sample.turns[0].question, text),), (mask(),) * text.count("[SEG]"))
            alone = whole_sequence(encoder, sample)
            log_likelihoods = F.log_softmax(all_logits(model, alone, encoder), -1)
            answered = (alone.labels != IGNORE_LABEL).nonzero()[:, 0]
            brute = brute + advantage * log_likelihoods[answered - 1, alone.labels[answered]].sum()
    expected = torch.autograd.grad(-brute, list(model.parameters()), allow_unused=True)

    rated = []
    for of_question in rewards.tolist():
        ids = [tuple(encoder.text_ids(encoder.chat.answer(text))) for text in texts]
        rated.append([answer(ids[i], 1 + (i == 0), of_question[i]) for i in (0, 1, 3, 4)])  # the third is the first
    sequences = list(learned(asked[:2], rated, 0.0, encoder.end_ids[0]))
    assert len(sequences) == 8
    loss = policy_loss(model, encoder, sequences)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert sum(gradient is not None for gradient in gradients) > 10
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert (gradient is None) == (wanted is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def whole_sequence(encoder, sample: Sample) -> Encoded:
    """As `encode`, which leaves out turns whose masks have no pixel, would write it with its answer."""
    full = mask((0, 0, 48, 32))
    return encoder.encode(Sample("", sample.image, sample.turns, (full,) * len(sample.masks)))


def all_logits(model, sequence: Encoded, encoder) -> Tensor:
    """Logits (T, V) at every position of one sequence, through PixelSail.forward."""
    from pixel_sail.data.pack import pack

    output = model(pack([sequence], encoder.tokens.seg, encoder.tokens.vision_patch))
    return model.language_model.get_output_embeddings()(output.hidden)


def test_supervised_gradients_do_not_depend_on_packing(predictor: Predictor) -> None:
    model, encoder, asked = predictor.model, predictor.encoder, questions(predictor)
    config = load_config(REPOSITORY / "configs/finetune_scenes.yaml")
    found = []
    for tokens in (64, 8192):  # one question a batch, all in one
        cut = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_tokens": tokens})})
        model.zero_grad()
        losses = add_supervised(model, encoder, asked, cut, 0.5)
        found.append((losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for alone, packed in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(alone, packed, rtol=1e-3, atol=1e-6)


def test_the_documented_study_loads() -> None:
    plan = load_plan(REPOSITORY / "configs/mask_reward.yaml")
    assert [arm.name for arm in plan.study.arms][:2] == ["supervised", "reward"]
    supervised, reward = plan.study.arms[:2]
    config = plan.configs[plan.study.seeds[0]]
    assert (supervised.lm, supervised.reward, reward.lm) == (config.loss.lm, 0, 0) and reward.reward > 0
    assert len(plan.study.seeds) == 3 and config.train.muon is None


def write_study(folder: Path, **changes) -> Path:
    """One step for the start and one for each arm, on drawn images."""
    root = folder / "root"
    if not root.exists():
        write_refer_dataset(root)
        save_export(folder / "model")
    values = {
        "base": str(REPOSITORY / "configs/finetune_scenes.yaml"),
        "dir": str(folder / "study"),
        "seeds": [0],
        "benchmarks": ["grefcoco:val"],
        "max_images": 1,
        "changes": {
            "data.root": str(root),
            "data.mixture": [{"source": "grefcoco"}],
            "train.init_from": str(folder / "model"),
            "train.batch_size": 2,
            "train.steps": 1,
            "train.muon": None,
            "loss.points": 16,
        },
        "start": {"steps": 1, "lr": 1e-3},
        "arms": [{"name": "supervised", "lm": 0.5, "reward": 0}, {"name": "reward", "lm": 0, "reward": 1}],
        "answers": 3,
        "max_new_tokens": 4,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_a_study_from_the_command(tmp_path: Path) -> None:
    path, folder = write_study(tmp_path), tmp_path / "study/seed_0"
    status, printed = run_tool("tools/mask_reward.py", path)
    assert status == 0, printed
    assert "start → reward" in printed and "supervised → reward" in printed and "grefcoco:val n_acc" in printed
    (reward,) = log_of(load_plan(path), 0, "reward", ["iou", "different", "grad_norm"])
    (supervised,) = log_of(load_plan(path), 0, "supervised", ["lm"])
    assert 0 <= reward["iou"] <= 1 and reward["different"] > 1 and reward["grad_norm"] > 0
    assert (supervised["bce"], supervised["lm"]) == (reward["bce"], reward["lm"])  # the same questions, one start
    weights = [load_file(folder / stage / "export/model.safetensors") for stage in ("supervised", "reward")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    results = json.loads((tmp_path / "study/mask_reward.json").read_text())
    assert results["unfinished"] == [] and set(results["values"]["minutes"]) == {"start", "supervised", "reward"}

    finished = (folder / "supervised/export/model.safetensors").stat()
    (folder / "reward/scores.json").unlink()  # as a kill in training leaves it
    (folder / "reward/export").rename(tmp_path / "away")
    status, printed = run_tool("tools/mask_reward.py", path)
    assert status == 0 and printed.count(" minutes\n") == 1, printed
    assert (folder / "supervised/export/model.safetensors").stat() == finished
    again = load_file(folder / "reward/export/model.safetensors")
    assert all(torch.equal(again[name], weights[1][name]) for name in again)  # done anew, with the same numbers

    with pytest.raises(ConfigError, match="answers was 3, is 4"):
        load_plan(write_study(tmp_path, answers=4)).check_same(0)
    (folder / "reward/scores.json").write_text("{}")
    with pytest.raises(FileError, match="is damaged"):
        finished_stage(load_plan(path), 0, "reward")


def test_what_a_study_cannot_be(tmp_path: Path) -> None:
    arm = {"name": "a", "lm": 1, "reward": 0}
    for changes, message in (
        ({"arms": [arm, arm]}, "must each be listed once"),
        ({"arms": [arm | {"name": "start"}]}, "must each be listed once"),
        ({"seeds": [1, 1]}, "the seeds"),
        ({"answers": 1}, "answers"),
        ({"steps": 3}, "steps"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_plan(write_study(tmp_path, **changes))
