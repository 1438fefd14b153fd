"""Several images in one sequence, against plain loops: who sees whom, positions, whose mask a [SEG] is, and packing."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_predictor import ARCHITECTURE, tiny_predictor

from pixel_sail.architecture import Architecture
from pixel_sail.config import LossConfig
from pixel_sail.data.encode import Encoder
from pixel_sail.data.masks import decode_mask, encode_mask, resize_nearest
from pixel_sail.data.pack import pack
from pixel_sail.layout import attended, varlen_calls, visible_keys
from pixel_sail.losses import compute_losses, draw_candidates
from pixel_sail.model.generation import GenerationRequest, Sampling, generate
from pixel_sail.model.modality_experts import Modality
from pixel_sail.model.pixel_sail import PixelSail
from pixel_sail.serve.predictor import Predictor
from pixel_sail.tokens import SEG
from pixel_sail.types import UNPROMPTED, BadSample, Batch, Sample, Turn

OPTIONS = {
    "paper": {},
    "EVEv2": {"row_ends": True, "image_positions": "sequence", "image_attention": "causal"},
    "NEO": {"image_positions": "one_step", "image_attention": "patches"},
    "stem": {"small_images": {"stem_widths": [4, 8], "patch_positions": True, "rope_layout": "interleaved"}},
    "pooled": {"region_embedding": "pooled"},
    "twins": {"vision_experts": True},
}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny_predictor()


def draw_image(rng: np.random.Generator) -> Image.Image:
    height, width = rng.integers(8, 41, size=2)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def random_sample(number: int, images: int, rng: np.random.Generator) -> Sample:
    """Masks on all images in a mixed order, and a region on each."""
    drawn = [draw_image(rng) for _ in range(images)]
    on = tuple(int(n) for n in rng.permutation(np.arange(2 * images) % images)) if images else ()
    masks = [encode_mask(np.asarray(drawn[n])[..., 0] > 127) for n in on]
    names = " ".join(f"<Prompt{k}>" for k in range(images))
    halves = [SEG * (len(on) // 2), SEG * (len(on) - len(on) // 2)]
    return Sample(
        f"sample{number}",
        png(drawn[0]) if drawn else None,
        tuple(Turn(f"Segment the mug {names}", f"red {segs} mug") for segs in halves),
        tuple(masks),
        {k: encode_mask(np.asarray(drawn[k])[..., 1] > 200) for k in range(images)},
        more_images=tuple(map(png, drawn[1:])),
        mask_images=on,
        prompt_images={k: k for k in range(images)},
    )


def random_samples(seed: int) -> list[Sample]:
    """Five: without an image, with one, and with two to four."""
    rng = np.random.default_rng(seed)
    return [random_sample(n, images, rng) for n, images in enumerate(rng.permutation(5))]


def brute_force_mask(tokens: list[list[str]], attention: str) -> torch.Tensor:
    """(L, L) bool, a pair of tokens at a time, from the tokens of each sequence alone.

    A block begins at <vision> and ends at the last </vision> before another <vision> or the text.
    """
    places: list[tuple[int, int | None]] = []  # (sequence, block or None) of each token
    for number, names in enumerate(tokens):
        block = -1
        last = {}
        for i, name in enumerate(names):
            block += name == "<vision>"
            if name in ("<vision>", "<vpatch>", "</vision>"):
                last[block] = i
                places.append((number, block))
            else:
                places.append((number, None))
        if attention == "patches":  # the ends of a block are as text
            start = len(places) - len(names)
            for i, name in enumerate(names):
                if name == "<vision>" or i in last.values():
                    places[start + i] = (number, None)
    mask = torch.zeros(len(places), len(places), dtype=torch.bool)
    for query, (sequence, block) in enumerate(places):
        for key, (other, of_key) in enumerate(places):
            both_ways = attention != "causal" and block is not None and block == of_key
            mask[query, key] = sequence == other and (key <= query or both_ways)
    return mask


def brute_force_positions(sizes: list[tuple[int, int]], text: int, parts: Architecture) -> list[tuple[int, int, int]]:
    """(t, row, column) of each token, one after the other."""
    positions, now = [], 0
    for h, w in sizes:
        start, block = now, []
        block.append((start, start, start))
        for row in range(h):
            for column in range(w + parts.row_ends):
                block.append((start + 1, start + 1 + row, start + 1 + column))
        if parts.row_ends:
            block.pop()  # of the last row it is the end of the block
        after = start + 1 + {"grid": max(h, w + parts.row_ends), "one_step": 1, "sequence": 0}[parts.image_positions]
        block.append((after, after, after))
        if parts.image_positions == "sequence":
            block = [(start + i,) * 3 for i in range(len(block))]
        positions += block
        now = block[-1][0] + 1
    return positions + [(now + i,) * 3 for i in range(text)]


def encoder_of(predictor: Predictor, options: dict) -> Encoder:
    return Encoder(predictor.encoder.tokenizer, Architecture(**(ARCHITECTURE | options)), "research")


@pytest.mark.parametrize("options", [OPTIONS["paper"], OPTIONS["EVEv2"], OPTIONS["NEO"]], ids=["paper", "EVEv2", "NEO"])
def test_who_sees_whom_and_where_each_token_is(predictor: Predictor, options: dict) -> None:
    encoder = encoder_of(predictor, options)
    parts, tokenizer = encoder.architecture, encoder.tokenizer
    for seed in range(3):
        samples = random_samples(seed)
        encoded = [encoder.encode(sample, seed=n) for n, sample in enumerate(samples)]
        batch = pack(encoded, encoder.tokens.seg, encoder.tokens.vision_patch)
        names = [tokenizer.convert_ids_to_tokens(one.input_ids.tolist()) for one in encoded]
        mask = brute_force_mask(names, parts.image_attention)
        first, stop = visible_keys(batch.spans)
        keys = torch.arange(batch.tokens)
        assert torch.equal((keys >= first[:, None]) & (keys < stop[:, None]), mask)
        assert batch.attended == attended(batch.spans) == int(mask.sum())
        assert torch.equal(mask_of_calls(batch), mask)
        for one, sample in zip(encoded, samples, strict=True):
            sizes = [block.grid_hw for block in one.images]
            assert len(sizes) == len(sample.images)
            image_tokens = sum(parts.image_tokens(h, w) for h, w in sizes)
            expected = brute_force_positions(sizes, len(one) - image_tokens, parts)
            assert one.position_ids.T.tolist() == [list(position) for position in expected]


def mask_of_calls(batch: Batch) -> torch.Tensor:
    """What the varlen calls compute, pair by pair."""
    mask = torch.zeros(batch.tokens, batch.tokens, dtype=torch.bool)
    for call in varlen_calls(batch.spans):
        for a, b, c, d in zip(call.cu_queries, call.cu_queries[1:], call.cu_keys, call.cu_keys[1:], strict=False):
            queries, keys = call.query_index[a:b], call.key_index[c:d]
            seen = torch.ones(len(queries), len(keys), dtype=torch.bool)
            mask[queries[:, None], keys] = seen.tril(len(keys) - len(queries)) if call.causal else seen
    return mask


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_packed_losses_and_masks_are_those_of_plain_loops(options: dict) -> None:
    """The whole model under the dense mask, one sequence, image and mask after the other; and its gradients."""
    predictor = with_twins() if "vision_experts" in options else tiny_predictor(architecture=options)
    predictor.model.add_score_head()
    encoder, model = predictor.encoder, predictor.model
    samples = random_samples(7)
    encoded = [encoder.encode(sample, seed=10 * n) for n, sample in enumerate(samples)]
    batch = pack(encoded, encoder.tokens.seg, encoder.tokens.vision_patch)
    config = LossConfig(points=64)
    output = model(batch)
    assert [len(masks) for masks in batch.masks] == [len(masks) for masks in output.mask_logits]
    ours = compute_losses(output, batch, config)
    (ours["bce"] + ours["dice"] + ours["lm"]).backward()
    gradient = model.language_model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()

    total = {"bce": 0.0, "dice": 0.0, "lm": 0.0}
    place = 0
    for sample, one in zip(samples, encoded, strict=True):
        alone = pack([one], encoder.tokens.seg, encoder.tokens.vision_patch)
        hidden = dense_states(predictor, alone, encoder.architecture.image_attention)
        torch.testing.assert_close(output.hidden[place : place + len(one)], hidden, atol=2e-5, rtol=1e-4)
        place += len(one)
        segs = [i for i, token in enumerate(one.input_ids.tolist()) if token == encoder.tokens.seg]
        patches = [i for i, token in enumerate(one.input_ids.tolist()) if token == encoder.tokens.vision_patch]
        before = 0
        for number, block in enumerate(one.images):
            h, w = block.grid_hw
            grid = hidden[patches[before : before + h * w]].view(h, w, -1)
            before += h * w
            own = [n for n, on in enumerate(sample.mask_images) if on == number]
            candidates = draw_candidates(one.seed + number, len(own), config, torch.device("cpu"))
            for of_mask, n in zip(candidates, own, strict=True):
                logits = model.mask_head([grid], [hidden[segs[n]][None]])[0][0]
                bce, dice = plain_mask_losses(logits[0], sample.masks[n], of_mask, block.grid_hw)
                total["bce"], total["dice"] = total["bce"] + bce, total["dice"] + dice
        learned = [i for i, label in enumerate(one.labels.tolist()) if label >= 0]
        states = hidden[torch.tensor(learned) - 1]
        logits = model.language_model.get_output_embeddings()(states)
        total["lm"] = total["lm"] + F.cross_entropy(logits, one.labels[learned], reduction="sum")
    for name, value in total.items():
        torch.testing.assert_close(ours[name], value, atol=1e-4, rtol=1e-4)
    sum(total.values()).backward()
    theirs = model.language_model.get_input_embeddings().weight.grad
    torch.testing.assert_close(gradient, theirs, atol=1e-3, rtol=1e-3)
    scores = torch.cat([model(pack([one], *_ids(predictor))).score_logits for one in encoded])
    torch.testing.assert_close(output.score_logits, scores, atol=1e-4, rtol=1e-4)


def with_twins() -> Predictor:
    """A model whose weights for images are others than those for text."""
    plain = tiny_predictor()
    config = copy.deepcopy(plain.model.config)
    config.architecture = config.architecture.model_copy(update={"vision_experts": True})
    model = PixelSail(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".vision." in name:
                weight.add_(0.05 * torch.randn_like(weight))
    return Predictor(model, plain.encoder.tokenizer)


def dense_states(predictor: Predictor, batch: Batch, attention: str) -> torch.Tensor:
    """(T, D) of one sequence, by torch's own attention under a mask that is written out."""
    names = predictor.encoder.tokenizer.convert_ids_to_tokens(batch.input_ids.tolist())
    mask = brute_force_mask([names], attention)
    twins = {}
    if predictor.model.config.architecture.vision_experts:
        kinds = [name in ("<vision>", "<vpatch>", "</vision>") for name in names]
        text, visual = ([i for i, kind in enumerate(kinds) if kind == wanted] for wanted in (False, True))
        twins = {
            "modality": Modality(
                *map(lambda places: torch.tensor(places, dtype=torch.int64), (text, visual, np.argsort(text + visual)))
            )
        }
    output = predictor.model.language_model.get_decoder()(
        inputs_embeds=predictor.model.embed(batch)[None],
        position_ids=batch.position_ids[:, None],
        attention_mask=mask[None, None],
        use_cache=False,
        **twins,
    )
    return output.last_hidden_state[0]


def plain_mask_losses(logits: torch.Tensor, rle, candidates: torch.Tensor, grid_hw: tuple[int, int]):
    """BCE and Dice of one mask (h', w') at the most uncertain three quarters of its points and at random ones."""
    patch = ARCHITECTURE["patch_size"]
    truth = torch.from_numpy(resize_nearest(decode_mask(rle), (grid_hw[0] * patch, grid_hw[1] * patch))).float()

    def at(values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(values[None, None], 2 * points[None, None] - 1, align_corners=False)[0, 0, 0]

    pool, rest = candidates[: 3 * 64], candidates[3 * 64 :]
    chosen = torch.cat([pool[at(logits.detach(), pool).abs().topk(48, largest=False).indices], rest])
    predicted, target = at(logits, chosen), at(truth, chosen)
    p = predicted.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(predicted, target), dice


def _ids(predictor: Predictor) -> tuple[int, int]:
    tokens = predictor.encoder.tokens
    return tokens.seg, tokens.vision_patch


@pytest.mark.parametrize("options", [OPTIONS["paper"], OPTIONS["pooled"]], ids=["fused", "pooled"])
def test_answers_from_the_cache_are_the_whole_pass(options: dict) -> None:
    """Questions about one, two and three images at a time, with masks on each of them."""
    predictor = tiny_predictor(architecture=options)
    encoder, rng = predictor.encoder, np.random.default_rng(3)
    samples = [random_sample(n, images, rng) for n, images in enumerate((2, 1, 3))]
    images = [[Image.open(io.BytesIO(image)) for image in sample.images] for sample in samples]
    prefixes = [
        encoder.images_prefix(own, sample.prompts, "x", sample.prompt_images)
        for own, sample in zip(images, samples, strict=True)
    ]
    question, answer = encoder.question_ids("Segment <Prompt0>"), encoder.chat.answer(f"red {SEG} or {SEG}")
    begun = tuple(encoder.text_ids(answer))
    asked = [(i, on) for i, own in enumerate(images) for on in range(len(own))]
    requests = [GenerationRequest(question, i, begun, masks_on=on) for i, on in asked]
    answers = generate(predictor.model, pack(prefixes, *_ids(predictor)), requests, _ids(predictor)[0], (), Sampling(1))
    for (i, on), got in zip(asked, answers, strict=True):
        sample, size = samples[i], images[i][on].size[::-1]
        whole = replace(
            sample,
            turns=(Turn("Segment <Prompt0>", f"red {SEG} or {SEG}"),),
            masks=(encode_mask(np.ones(size, bool)),) * 2,
            mask_images=(on, on),
        )
        expected = predictor.model(pack([encoder.encode(whole)], *_ids(predictor))).mask_logits[on]
        torch.testing.assert_close(got.mask_logits, expected, atol=2e-5, rtol=1e-4)


def test_a_later_image_is_not_seen_by_an_earlier_one(predictor: Predictor) -> None:
    rng = np.random.default_rng(5)
    one = predictor.encoder.encode(random_sample(0, 3, rng))
    (first, second), end = (block.span for block in one.images[1:]), len(one)
    patches = one.patches.clone()
    patches[-1] += 100  # of the last image
    states = [predictor.model(pack([e], *_ids(predictor))).hidden for e in (one, replace(one, patches=patches))]
    changed = (states[0] != states[1]).any(1)
    assert not changed[: second[0]].any() and changed[second[0] : end].all()
    patches = one.patches.clone()
    patches[0] += 100  # of the first
    states[1] = predictor.model(pack([replace(one, patches=patches)], *_ids(predictor))).hidden
    assert (states[0] != states[1]).any(1).all() and first[0] > 0


def test_regions_are_drawn_on_their_own_image(predictor: Predictor) -> None:
    rng = np.random.default_rng(6)
    sample = random_sample(0, 3, rng)
    one = predictor.encoder.encode(sample)
    parts = one.prompt_ids.split([h * w for h, w in (block.grid_hw for block in one.images)])
    for k, part in enumerate(parts):
        assert set(part.tolist()) - {UNPROMPTED} == {k}
    moved = predictor.encoder.images_prefix(
        [Image.open(io.BytesIO(image)) for image in sample.images], {4: sample.prompts[2]}, "x", {4: 2}
    )
    expected = torch.where(torch.cat([torch.full_like(p, UNPROMPTED) for p in parts[:2]] + [parts[2]]) == 2, 4, -1)
    assert torch.equal(moved.prompt_ids, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_images": (0, 1)}, "it has 4 masks, and says of 2 which image they are on"),
        ({"mask_images": (0, 1, 2, 1)}, "mask 2 is on image 2, counted from 0, and there are 2"),
        ({"mask_images": (0, 1, -1, 1)}, "mask 2 is on image -1, counted from 0, and there are 2"),
        ({"prompt_images": {1: 2}}, "the region of <Prompt1> is on image 2, counted from 0, and there are 2"),
        ({"more_images": (b"x",)}, "cannot decode the image"),
        ({"more_images": (), "mask_images": (1,) * 4}, "mask 0 is on image 1, counted from 0, and there is one image"),
        ({"image": None}, "it has more images, but no first one"),
    ],
)
def test_bad_samples_say_why(predictor: Predictor, change: dict, message: str) -> None:
    sample = random_sample(0, 2, np.random.default_rng(8))
    if "more_images" in change:
        change = {"prompt_images": {}, "prompts": {}} | change
    with pytest.raises(BadSample) as error:
        predictor.encoder.encode(replace(sample, **change))
    assert str(error.value).startswith("sample0: ") and message in str(error.value)
