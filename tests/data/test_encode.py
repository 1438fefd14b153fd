"""Sample -> Encoded -> Batch: labels, lengths, masks, boundaries; what cannot be encoded says why."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from pixel_sail.architecture import Architecture
from pixel_sail.data.chat import ChatFormat
from pixel_sail.data.encode import Encoder
from pixel_sail.data.masks import encode_mask
from pixel_sail.data.pack import pack
from pixel_sail.tokens import add_special_tokens
from pixel_sail.types import IGNORE_LABEL, BadSample, NoPixels, Sample, Turn
from pixel_sail.weights.convert.scratch import CHAT_TEMPLATE, train_tokenizer

TEXTS = ["Segment the red mug.", "It is [SEG].", "There is no such object."] * 3
TEMPLATE = (
    "{% for m in messages %}{% if loop.first %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    trained = train_tokenizer(TEXTS, 400)
    add_special_tokens(trained)
    return trained


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(tokenizer, Architecture(patch_size=8, max_side_px=64), "research")


def sample(turns: int = 3, size_wh: tuple[int, int] = (48, 32)) -> Sample:
    """Turn i owns a mask: columns i * 8 to i * 8 + 8."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size_wh[1], size_wh[0], 3), dtype=np.uint8)).save(
        file, "PNG"
    )
    masks = []
    for i in range(turns):
        mask = np.zeros((size_wh[1], size_wh[0]), dtype=bool)
        mask[:, i * 8 : i * 8 + 8] = True
        masks.append(encode_mask(mask))
    asked = tuple(Turn(f"Segment the red mug {'!' * i}", "It is [SEG].") for i in range(turns))
    return Sample("test/1", file.getvalue(), asked, tuple(masks))


def test_labels_are_the_answers_and_their_end(encoder: Encoder) -> None:
    encoded = encoder.encode(sample())
    labelled = encoded.labels != IGNORE_LABEL
    assert torch.equal(encoded.labels[labelled], encoded.input_ids[labelled])
    assert encoder.tokenizer.decode(encoded.labels[labelled]) == "It is [SEG].<|endoftext|>" * 3
    text = encoder.tokenizer.decode(encoded.input_ids[encoded.images[0].span[1] :])
    asked = [
        "<|im_start|>user\nSegment the red mug " + "!" * i + "<|im_end|>\nIt is [SEG].<|endoftext|>" for i in range(3)
    ]
    assert text == "".join(asked)
    assert encoded.images[0].grid_hw == (4, 6) and encoded.images[0].span == (0, 26)
    masks = encoded.images[0].masks.pixels()
    assert masks.shape == (3, 32, 48) and [int(m.sum()) for m in masks] == [32 * 8] * 3


@pytest.mark.parametrize("positions", ["grid", "sequence"])
def test_rows_that_end_with_a_token(tokenizer: PreTrainedTokenizerBase, positions: str) -> None:
    """Of 2 x 3 patches: each row ends in a column of its own; the last row is ended by what ends the image."""
    parts = Architecture(patch_size=8, max_side_px=64, row_ends=True, image_positions=positions)
    encoded = Encoder(tokenizer, parts, "research").encode(sample(1, size_wh=(24, 16)))
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids[:10].tolist())
    assert tokens[:9] == ["<vision>", *["<vpatch>"] * 3, "</vision>", *["<vpatch>"] * 3, "</vision>"]
    (image,) = encoded.images
    assert image.span == (0, 9) == (0, parts.image_tokens(2, 3)) and image.grid_hw == (2, 3)
    rows, columns = encoded.position_ids[1:, :10].tolist()
    if positions == "sequence":
        assert rows == columns == list(range(10))
    else:
        assert rows == [0, 1, 1, 1, 1, 2, 2, 2, 5, 6]
        assert columns == [0, 1, 2, 3, 4, 1, 2, 3, 5, 6]


def test_a_causal_image_among_others(tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> None:
    parts = Architecture(patch_size=8, max_side_px=64, image_attention="causal")
    causal = Encoder(tokenizer, parts, "research").encode(sample())
    assert causal.images[0].span == (0, 26) and causal.two_way_spans == ((0, 0),)
    length, batch = len(causal), pack([causal, causal], encoder.tokens.seg, encoder.tokens.vision_patch)
    assert batch.spans == ((0, 0, 0, length), (length, length, length, 2 * length))
    assert batch.image_spans == ((0, 0, 26, length), (length, length, length + 26, 2 * length))
    assert batch.attended == length * (length + 1)
    assert torch.equal(causal.input_ids, encoder.encode(sample()).input_ids)


def test_an_image_that_is_one_step_in_time(tokenizer: PreTrainedTokenizerBase) -> None:
    """Its patches see each other, and <vision> and </vision> are as text."""
    parts = Architecture(patch_size=8, max_side_px=64, image_attention="patches", image_positions="one_step")
    encoded = Encoder(tokenizer, parts, "research").encode(sample(1, size_wh=(24, 16)))
    assert encoded.images[0].span == (0, 8) and encoded.two_way_spans == ((1, 7),)
    time, rows, columns = encoded.position_ids[:, :10].tolist()
    assert time == [0, 1, 1, 1, 1, 1, 1, 2, 3, 4]
    assert rows == [0, 1, 1, 1, 2, 2, 2, 2, 3, 4] and columns == [0, 1, 2, 3, 1, 2, 3, 2, 3, 4]


def test_turns_over_the_length_go_with_their_masks(tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> None:
    whole = encoder.encode(sample())
    lengths = [len(encoder.encode(sample(turns))) for turns in (1, 2, 3)]
    for limit, kept in ((lengths[2], 3), (lengths[2] - 1, 2), (lengths[1], 2), (lengths[1] - 1, 1), (lengths[0], 1)):
        encoded = Encoder(tokenizer, Architecture(patch_size=8, max_side_px=64), "research", max_length=limit).encode(
            sample()
        )
        assert len(encoded.images[0].masks) == kept and encoded.dropped_turns == 3 - kept
        assert len(encoded) == lengths[kept - 1] <= limit
        assert torch.equal(encoded.images[0].masks.pixels(), whole.images[0].masks.pixels()[:kept])
        assert torch.equal(encoded.input_ids, whole.input_ids[: len(encoded)])
    with pytest.raises(BadSample, match=r"test/1: its first turn has \d+ tokens and \d+ are left beside the image"):
        Encoder(tokenizer, Architecture(patch_size=8, max_side_px=64), "research", max_length=lengths[0] - 1).encode(
            sample()
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": ()}, "its answers have 3 [SEG] and it has 0 masks"),
        ({"turns": (Turn("the [SEG] mug", "no"),)}, "its answers have 0 [SEG] and it has 3 masks"),
        ({"turns": ()}, "it has no question and answer"),
        ({"turns": (Turn("what is <Prompt15>?", "[SEG][SEG][SEG]"),)}, "<Prompt15> is named; prompts go from 0 to 14"),
        ({"turns": (Turn("<vpatch>", "[SEG][SEG][SEG]"),)}, "the text contains <vpatch>"),
        ({"image": None}, "it has masks, but no image"),
        (
            {"masks": (encode_mask(np.ones((32, 47), bool)),) * 3},
            "mask 0 is of size [32, 47], the image is [32, 48] (height, width)",
        ),
        ({"image": b"no image"}, "test/1: cannot decode the image"),
    ],
)
def test_bad_samples_say_why(encoder: Encoder, change: dict, message: str) -> None:
    with pytest.raises(BadSample) as error:
        encoder.encode(replace(sample(), **change))
    assert str(error.value).startswith("test/1: ") and message in str(error.value)


def test_a_seg_in_a_question_owns_no_mask(encoder: Encoder) -> None:
    asked = replace(sample(1), turns=(Turn("Is [SEG] a word?", "It is [SEG]."),))
    batch = pack([encoder.encode(asked)], encoder.tokens.seg, encoder.tokens.vision_patch)
    assert batch.seg_index.tolist() == [int((batch.input_ids == encoder.tokens.seg).nonzero()[-1])]


def test_packing_keeps_every_sequence(encoder: Encoder) -> None:
    text_only = Sample("test/text", None, (Turn("Segment?", "no"),))
    samples = [sample(2), text_only, sample(1, (16, 64)), sample(3)]
    encoded = [encoder.encode(s) for s in samples]
    batch = pack(encoded, encoder.tokens.seg, encoder.tokens.vision_patch)
    assert batch.tokens == sum(map(len, encoded)) and batch.masks_per_image == (2, 0, 1, 3)
    assert batch.counts() == {
        "lm": float(sum((e.labels != IGNORE_LABEL).sum() for e in encoded)),
        "mask": 6.0,
        "answer": float(sum(len(s.turns) for s in samples)),
        "image": 3.0,
    }
    for e, (start, image_start, image_stop, stop) in zip(encoded, batch.spans, strict=True):
        assert torch.equal(batch.input_ids[start:stop], e.input_ids)
        assert (image_start - start, image_stop - start) == (e.images[0].span if e.images else (0, 0))
    assert torch.equal(batch.input_ids[batch.predict_index + 1], batch.labels)
    assert torch.equal(torch.cat([e.patches for e in encoded]), batch.patches)
    assert (batch.input_ids[batch.patch_index] == encoder.tokens.vision_patch).all()


def test_chat_template_is_followed_turn_by_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TEMPLATE
    try:
        chat = ChatFormat.of("auto", tokenizer)
        turns = [("Q1", "A1"), ("Q2", "A2"), ("Q3", "A3")]
        written = "".join(chat.before(i, q) + a + chat.end for i, (q, a) in enumerate(turns))
        messages = [{"role": r, "content": t} for q, a in turns for r, t in (("user", q), ("assistant", a))]
        assert written + "\n" == tokenizer.apply_chat_template(messages, tokenize=False)
    finally:
        tokenizer.chat_template = None
    assert ChatFormat.of("auto", tokenizer).name == "research"


def test_white_space_before_an_answer_is_the_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    """So that " red" is one token, as within a sentence, and nothing stands between a question and [SEG]."""
    tokenizer.chat_template = CHAT_TEMPLATE
    try:
        chat = ChatFormat.of("auto", tokenizer)
    finally:
        tokenizer.chat_template = None
    assert chat.before(0, "What?") == chat.before(1, "What?") == "<|im_start|> What?<|im_end|>"
    assert chat.answer("red") == " red" and chat.answer("[SEG]") == "[SEG]" and chat.answer("<p> it") == "<p> it"
    assert chat.read(" red") == "red" and chat.read("[SEG]") == "[SEG]"
    tokenizer.chat_template = CHAT_TEMPLATE
    try:
        encoder = Encoder(tokenizer, Architecture(patch_size=8, max_side_px=64), "template")
    finally:
        tokenizer.chat_template = None
    encoded = encoder.encode(replace(sample(1), turns=(Turn("What?", "red mug"),), masks=()))
    labels = encoded.labels[encoded.labels != IGNORE_LABEL].tolist()
    assert labels == tokenizer(" red mug<|endoftext|>")["input_ids"] and len(labels) == 3
    research = ChatFormat.of("research", tokenizer)
    assert research.answer("red") == "red" and research.read(" red") == " red"


def test_a_template_that_cannot_be_continued_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TEMPLATE.replace("{{ m.content }}", "{{ 'says ' if m.role != 'user' }}{{ m.content }}")
    try:
        with pytest.raises(ValueError, match="cannot be continued turn by turn"):
            ChatFormat.of("template", tokenizer)
    finally:
        tokenizer.chat_template = None


def test_inst_format_and_its_errors(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="needs a tokenizer with bos and eos"):
        ChatFormat.of("inst", tokenizer)
    with pytest.raises(ValueError, match="unknown chat format 'chatml'; known: auto, research, inst, template"):
        ChatFormat.of("chatml", tokenizer)
    with pytest.raises(ValueError, match="no chat template"):
        ChatFormat.of("template", tokenizer)


def test_hidden_image_is_blank(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = Encoder(tokenizer, Architecture(patch_size=8, max_side_px=64), "research", hide="image").encode(sample())
    assert not encoded.patches.any() and encoded.patches.is_floating_point() and encoded.images[0].masks.pixels().any()


def test_hidden_prompts_are_named_and_not_drawn(tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> None:
    region = encode_mask(np.ones((32, 48), dtype=bool))
    asked = replace(sample(), turns=(Turn("what is <Prompt0>?", "a mug"),), masks=(), prompts={0: region})
    shown, hidden = (
        e.encode(asked)
        for e in (encoder, Encoder(tokenizer, Architecture(patch_size=8, max_side_px=64), "research", hide="prompts"))
    )
    assert torch.equal(shown.input_ids, hidden.input_ids) and torch.equal(shown.patches, hidden.patches)
    assert (shown.prompt_ids == 0).all() and (hidden.prompt_ids == -1).all()


def _tall(turns: tuple[Turn, ...], rows: tuple[int, ...]) -> Sample:
    """An image that the model sees at half its size, with masks of one row: it keeps row 1, 3, 5, ..."""
    masks = []
    for row in rows:
        mask = np.zeros((128, 64), dtype=bool)
        mask[row] = True
        masks.append(encode_mask(mask))
    file = io.BytesIO()
    Image.new("RGB", (64, 128)).save(file, "PNG")
    return Sample("test/2", file.getvalue(), turns, tuple(masks))


def test_a_mask_that_is_lost_at_the_models_size_takes_its_turn_and_not_the_image(encoder: Encoder) -> None:
    shown, lost = 1, 0
    turns = (Turn("a?", "[SEG]"), Turn("b?", "[SEG] and [SEG]"), Turn("c?", "no"), Turn("d?", "[SEG]"))
    encoded = encoder.encode(_tall(turns, (shown, lost, shown, shown)))
    masks = encoded.images[0].masks
    assert encoded.dropped_turns == 1 and len(masks) == 2 and masks.pixels().flatten(1).any(1).all()
    same = encoder.encode(_tall((turns[0], *turns[2:]), (shown, shown)))
    assert torch.equal(encoded.input_ids, same.input_ids)
    assert torch.equal(masks.pixels(), same.images[0].masks.pixels())
    with pytest.raises(BadSample, match="^test/2: no turn is left: its masks have no pixel at the size"):
        encoder.encode(_tall(turns[:1], (lost,)))


def test_a_phrase_whose_mask_is_lost_keeps_its_words(encoder: Encoder) -> None:
    caption = Turn("Describe.", "<p> A cat </p> [SEG] on <p> a mat </p> [SEG].")
    encoded = encoder.encode(_tall((caption,), (0, 1)))
    same = encoder.encode(_tall((Turn("Describe.", "A cat on <p> a mat </p> [SEG]."),), (1,)))
    assert encoded.dropped_turns == 1 and torch.equal(encoded.input_ids, same.input_ids)
    assert torch.equal(encoded.images[0].masks.pixels(), same.images[0].masks.pixels())


def with_regions(questions: list[str], regions: dict[int, tuple[slice, slice]]) -> Sample:
    """Turn i asks question i and owns mask i of `sample`; regions are rows and columns of the image."""
    one = sample(turns=len(questions))
    turns = tuple(replace(turn, question=question) for turn, question in zip(one.turns, questions, strict=True))
    return replace(one, turns=turns, prompts={k: encode_mask(_drawn(place)) for k, place in regions.items()})


def _drawn(place: tuple[slice, slice]) -> np.ndarray:
    region = np.zeros((32, 48), dtype=bool)
    region[place] = True
    return region


def test_a_region_that_no_patch_shows_takes_only_its_turns_along(encoder: Encoder) -> None:
    """<Prompt1> is a second point in the patch of <Prompt0>: there is nothing to show it with."""
    point, twin, elsewhere = ((slice(1, 2), slice(1, 2)), (slice(3, 4), slice(3, 4)), (slice(16, 32), slice(24, 48)))
    regions = {0: point, 1: twin, 2: elsewhere, 3: (slice(0, 8), slice(8, 16))}
    asked = ["What is <Prompt0>?", "The mug left of <Prompt1> and <Prompt3>.", "What is <Prompt2>?", "The red mug."]
    encoded = encoder.encode(with_regions(asked, regions))
    seen = [question for question in asked if "<Prompt1>" not in question]
    alone = encoder.encode(
        replace(
            with_regions(seen, {0: point, 2: elsewhere}),
            masks=tuple(with_regions(asked, regions).masks[n] for n in (0, 2, 3)),
        )
    )
    assert encoded.dropped_turns == 1 and alone.dropped_turns == 0
    assert torch.equal(encoded.input_ids, alone.input_ids) and torch.equal(encoded.prompt_ids, alone.prompt_ids)
    assert torch.equal(encoded.images[0].masks.runs, alone.images[0].masks.runs)
    with pytest.raises(NoPixels, match="test/1: the region of <Prompt1> cannot be seen"):
        encoder.encode(with_regions(["Both <Prompt0> and <Prompt1>."], regions))


def test_an_unseen_region_that_no_turn_names_leaves_all_turns(encoder: Encoder) -> None:
    encoded = encoder.encode(
        with_regions(["What is <Prompt0>?"], {0: (slice(1, 2), slice(1, 2)), 1: (slice(3, 4),) * 2})
    )
    assert encoded.dropped_turns == 0 and encoded.prompt_ids.unique().tolist() == [-1, 0]
