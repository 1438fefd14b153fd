"""Attention to the image, summed during generation, against full attention matrices; and where its tokens lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mllms import ALL, HUGGING_FACE, PROMPT, tiny
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pixel_sail.data.pack import pack
from pixel_sail.studies.attend_segment import generate
from pixel_sail.studies.attend_segment.adapters import pixel_sail as ours
from pixel_sail.studies.attend_segment.attention import ImageAttention, record_attention
from pixel_sail.studies.attend_segment.generate import AttendedAnswer, character_spans, generate_with_attention
from pixel_sail.studies.attend_segment.phrase_masks import phrase_points, resize_to_image, tokens_of

TOKENS = 12
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8))


def recorded(adapter, image: Image.Image):
    """Inputs, image tokens, new tokens and flat maps of an answer of TOKENS tokens."""
    prepared, box = adapter.prepare(image)
    inputs = adapter.inputs(prepared, PROMPT)
    image_tokens = adapter.image_tokens(inputs, box)
    ids, maps = generate_with_attention(adapter.model, dict(inputs), image_tokens, TOKENS)
    assert len(ids) == TOKENS and maps.shape == (TOKENS, *image_tokens.grid_hw)
    return inputs, image_tokens, ids, maps.flatten(1)


@pytest.mark.parametrize("model_type", HUGGING_FACE)
def test_equal_to_the_matrices_of_cached_generation(model_type: str, image: Image.Image) -> None:
    adapter = tiny(model_type)
    inputs, image_tokens, ids, maps = recorded(adapter, image)
    adapter.model.set_attn_implementation("eager")
    output = adapter.model.generate(
        **inputs, max_new_tokens=TOKENS, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    prompt = inputs["input_ids"].shape[1]
    assert output.sequences[0, prompt:].tolist() == ids
    for i, layers in enumerate(output.attentions):
        rows = torch.stack([_padded(layer[0, :, -1], prompt + i) for layer in layers])  # (layers, heads, keys)
        torch.testing.assert_close(maps[i], rows.mean((0, 1))[image_tokens.positions], **CLOSE)


@pytest.mark.parametrize("model_type", HUGGING_FACE)
def test_equal_to_the_matrices_of_one_pass_without_a_cache(model_type: str, image: Image.Image) -> None:
    adapter = tiny(model_type)
    inputs, image_tokens, ids, maps = recorded(adapter, image)
    adapter.model.set_attn_implementation("eager")
    prompt = inputs["input_ids"].shape[1]
    full = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)}
    for name, value in (("attention_mask", 1), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
        if name in full:
            full[name] = torch.nn.functional.pad(full[name], (0, len(ids)), value=value)
    with torch.inference_mode():
        attentions = adapter.model(**full, use_cache=False, output_attentions=True).attentions
    rows = torch.stack([layer[0] for layer in attentions]).mean((0, 1))  # (queries, keys)
    for i in range(len(ids)):  # token i is predicted from the query before it
        torch.testing.assert_close(maps[i], rows[prompt - 1 + i, image_tokens.positions], **CLOSE)


def _padded(row: Tensor, length: int) -> Tensor:
    """(heads, keys) with zeros for the first tokens of the sequence, which are outside a sliding window."""
    return torch.nn.functional.pad(row, (length - row.shape[1], 0))


def test_the_window_of_gemma_leaves_the_image_behind(image: Image.Image) -> None:
    adapter = tiny("gemma3")
    inputs, image_tokens, *_ = recorded(adapter, image)
    window = adapter.model.config.text_config.sliding_window
    first_visible = inputs["input_ids"].shape[1] + TOKENS - window
    assert first_visible > image_tokens.positions[5]  # otherwise the two tests above test no window


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_our_model_equals_a_dense_mask_without_a_cache(kernel: str, image: Image.Image, monkeypatch) -> None:
    adapter = tiny("pixel_sail")
    encoder, model = adapter.predictor.encoder, adapter.predictor.model
    model.attention_kernel = kernel
    monkeypatch.setattr(encoder, "end_ids", [-1])
    generated: list = []
    run = ours.generate
    monkeypatch.setattr(ours, "generate", lambda *a, **k: generated.extend(run(*a, **k)) or generated)
    answer = adapter.answer(image, PROMPT, TOKENS)
    ids = generated[0].token_ids
    assert len(ids) == TOKENS == len(answer.maps)

    prefix = encoder.image_prefix(image, {}, "x")
    batch = pack([prefix], encoder.tokens.seg, encoder.tokens.vision_patch)
    text = [*encoder.question_ids(PROMPT), *ids]
    embeds = torch.cat([model.embed(batch)[None], model.embed_text(torch.tensor([text]), None)], dim=1)
    image, length = len(prefix), len(prefix) + len(text)
    following = int(batch.position_ids.max()) + 1 + torch.arange(len(text)).expand(3, -1)
    positions = torch.cat([batch.position_ids, following], dim=1)
    sees = torch.ones(length, length, dtype=torch.bool).tril()
    sees[:image, :image] = True
    stack: list[Tensor] = []

    def dense(module, query, key, value, attention_mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~sees, -torch.inf)
        stack.append(scores.softmax(-1)[0])
        return (stack[-1] @ value).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "dense", dense)
    decoder = model.language_model.get_decoder()
    decoder.set_attn_implementation("dense")
    with torch.inference_mode():
        decoder(inputs_embeds=embeds, position_ids=positions[:, None], use_cache=False)
    rows = torch.stack(stack).mean((0, 1))
    first = image + len(text) - len(ids) - 1
    for i in range(len(ids)):
        expected = rows[first + i, batch.patch_index].view(prefix.images[0].grid_hw)
        torch.testing.assert_close(answer.maps[i], expected, **CLOSE)


@pytest.mark.parametrize("model_type", ALL)
def test_a_cell_of_the_grid_is_where_its_pixels_are(model_type: str, image: Image.Image, monkeypatch) -> None:
    adapter = tiny(model_type)
    tokens: list[Tensor] = []

    class Spy(ImageAttention):
        def __init__(self, image_tokens):
            tokens.append(image_tokens)
            super().__init__(image_tokens)

    for module in (generate, ours):
        monkeypatch.setattr(module, "ImageAttention", Spy)
    model = adapter.predictor.model.language_model if model_type == "pixel_sail" else adapter.model
    seen: list[Tensor] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["inputs_embeds"][0].clone()), with_kwargs=True
    )

    def embedded(image: Image.Image) -> tuple[Tensor, AttendedAnswer]:
        seen.clear()
        answer = adapter.answer(image, PROMPT, 1)
        return seen[0][tokens[-1]], answer

    before, answer = embedded(image)
    h, w = answer.maps.shape[1:]
    assert (h, w) == {"qwen2_vl": (3, 4), "qwen2_5_vl": (3, 4), "pixel_sail": (6, 8)}.get(model_type, (4, 4))
    left, top, right, bottom = answer.box
    for row, column in ((1, 0), (1, w - 1), (h - 2, 1)):
        x0, x1 = (round(left + (right - left) * (column + i) / w) for i in (0, 1))
        y0, y1 = (round(top + (bottom - top) * (row + i) / h) for i in (0, 1))
        pixels = np.asarray(image).copy()
        pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = 255 - pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
        changed = (embedded(Image.fromarray(pixels))[0] - before).norm(dim=1)
        assert divmod(int(changed.argmax()), w) == (row, column)


@pytest.mark.parametrize(("size", "box"), [((120, 80), (0, -20, 120, 100)), ((50, 81), (-15, 0, 66, 81))])
def test_llava_sees_the_image_in_the_middle_of_a_square(size: tuple[int, int], box: tuple[int, ...]) -> None:
    square, covered = tiny("llava").prepare(Image.new("RGB", size, "red"))
    side = max(size)
    assert covered == box and square.size == (side, side)
    rows, columns = np.nonzero((np.asarray(square) == (255, 0, 0)).all(axis=2))
    assert (columns.min() + box[0], rows.min() + box[1]) == (0, 0)
    assert (columns.max() + box[0], rows.max() + box[1]) == (size[0] - 1, size[1] - 1)


def test_recording_changes_nothing_and_leaves_nothing(image: Image.Image) -> None:
    adapter = tiny("llava")
    _, _, ids, _ = recorded(adapter, image)
    decoder = adapter.model.get_decoder()
    assert decoder.config._attn_implementation == "sdpa" and "sdpa_recorded" not in ALL_ATTENTION_FUNCTIONS
    prepared, box = adapter.prepare(image)
    inputs = adapter.inputs(prepared, PROMPT)
    plain = adapter.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    assert plain[0, inputs["input_ids"].shape[1] :].tolist() == ids
    with pytest.raises(ValueError, match="boom"), record_attention(decoder, "sdpa", ImageAttention([0])):
        raise ValueError("boom")
    assert decoder.config._attn_implementation == "sdpa" and "sdpa_recorded" not in ALL_ATTENTION_FUNCTIONS


def test_the_stop_token_is_not_an_output_token(image: Image.Image) -> None:
    adapter = tiny("llava")
    _, _, ids, maps = recorded(adapter, image)
    first = ids.index(ids[4])
    adapter.model.generation_config.eos_token_id = ids[4]
    answer = adapter.answer(image, PROMPT, TOKENS)
    assert len(answer.spans) == first > 0
    torch.testing.assert_close(answer.maps.flatten(1), maps[:first])


def test_messages_for_attention_that_cannot_be_recorded() -> None:
    recorder, module = ImageAttention([0, 1]), torch.nn.Identity()
    two = torch.zeros(2, 1, 3, 4)
    with pytest.raises(ValueError, match="a batch of 2"):
        recorder.add(module, two, two, None, None, unread=False)
    with pytest.raises(ValueError, match="5 tokens were generated and attention was recorded for 0"):
        recorder.mean(5)
    with pytest.raises(ValueError, match="not with 'eager'"), record_attention(None, "eager", recorder):  # type: ignore[arg-type]
        pass


def test_the_point_of_a_phrase_is_its_peak_in_the_image() -> None:
    maps = torch.zeros(4, 3, 4)
    maps[:, 2, 3] = 10.0  # attended by every token
    maps[0, 0, 1] = maps[1, 0, 1] = maps[2, 1, 2] = 1.0
    answer = AttendedAnswer("", [], maps, (0.0, 0.0, 120.0, 80.0))
    (first, second) = phrase_points(answer, [(0, 2), (2, 3)], (120, 80))
    assert 30 < first[0] < 60 and 0 < first[1] < 27
    assert 60 < second[0] < 90 and 27 < second[1] < 53
    alone = AttendedAnswer("", [], maps[3:], (0.0, 0.0, 120.0, 80.0))  # a single token: minus itself it would be 0
    ((x, y),) = phrase_points(alone, [(0, 1)], (120, 80))
    assert x > 90 and y > 53


def test_padding_is_cut_off() -> None:
    grid = torch.zeros(4, 4)
    grid[0, 0], grid[1, 2] = 1.5, 1.0  # the first lies in the padding above the image
    full = resize_to_image(grid, (0.0, -30.0, 120.0, 90.0), (120, 60))
    row, column = divmod(int(full.argmax()), 120)
    assert full.shape == (60, 120) and 60 <= column < 90 and row < 30
    # for an image that fills its box it is torch's own bicubic
    expected = torch.nn.functional.interpolate(grid[None, None], (80, 120), mode="bicubic", align_corners=False)[0, 0]
    torch.testing.assert_close(resize_to_image(grid, (0.0, 0.0, 120.0, 80.0), (120, 80)), expected)


def test_tokens_of_a_phrase() -> None:
    pieces = {1: "The", 2: " small", 3: " ca", 4: "t", 5: " is", 6: "."}

    def decode(ids) -> str:
        return "".join(pieces[i] for i in ids)

    text, spans = character_spans([1, 2, 3, 4, 5, 6], decode)
    assert text == "The small cat is." and spans == [(0, 3), (3, 9), (9, 12), (12, 13), (13, 16), (16, 17)]
    assert tokens_of(spans, 0, 13) == (0, 4)
    assert tokens_of(spans, 10, 13) == (2, 4)  # "cat" begins within " ca"
    assert tokens_of(spans, 14, 16) == (4, 5)
    assert tokens_of([(0, 0), (0, 3)], 0, 3) == (1, 2)  # a token without characters belongs to no phrase


def test_bytes_of_one_character_share_it() -> None:
    raw = {1: b"a ", 2: b"caf", 3: b"\xc3", 4: b"\xa9", 5: b" red"}
    text, spans = character_spans([1, 2, 3, 4, 5], lambda ids: b"".join(raw[i] for i in ids).decode(errors="replace"))
    assert text == "a café red" and spans == [(0, 2), (2, 5), (5, 6), (5, 6), (6, 10)]
