"""Experts: the real classes with small random weights, opened from folders as hub checkpoints are."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    Mask2FormerModel,
    ResNetConfig,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    SwinConfig,
)
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig

from pixel_sail.config import ConfigError, ExpertConfig
from pixel_sail.experts import Expert, open_expert

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
# name -> (kind, channels, pixels per feature)
EXPERTS = {
    "mask2former_swin": ("mask2former", 48, 4),
    "mask2former_resnet": ("mask2former", 48, 4),
    "sam2": ("sam2", 32, 16),
    "sam2_video": ("sam2", 32, 16),
    "timm_vit": ("timm", 24, 16),
    "timm_swin": ("timm", 128, 32),
    "timm_convnext": ("timm", 24, 32),
}
every_expert = pytest.mark.parametrize("name", EXPERTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of every expert, each in a folder of its name."""
    root = tmp_path_factory.mktemp("experts")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in EXPERTS:
            SAVERS[name.partition("_")[0]](root / name)
    return root


def config_of(folder: Path, **changes) -> ExpertConfig:
    values = {"name": "expert", "kind": EXPERTS[folder.name][0], "path": str(folder), "at": "patches", "size_px": 96}
    return ExpertConfig(**values | {"fit": "short"} | changes)


def expert_of(folder: Path) -> Expert:
    return open_expert(config_of(folder), "cpu")


def save_mask2former(folder: Path) -> None:
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "depths": [1, 1, 1, 1]}
    swin = {"image_size": 64, "embed_dim": 16, "num_heads": [1, 2, 2, 2], "window_size": 3, "drop_path_rate": 0.5}
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "layer_type": "basic"}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**swin, **stages) if "swin" in folder.name else ResNetConfig(**resnet, **stages),
        **{"feature_size": 32, "mask_feature_size": 48, "hidden_dim": 32, "encoder_feedforward_dim": 32},
        **{"dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 4},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):  # transformers starts them at about 0, and the backbone would say nothing
            nn.init.ones_(part.weight)
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)


def save_sam2(folder: Path) -> None:
    hiera = Sam2HieraDetConfig(
        hidden_size=16,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 48, 64],
        num_attention_heads_per_stage=[1, 2, 2, 2],
        window_size_per_stage=[8, 4, 14, 7],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=[64, 48, 32, 16], fpn_hidden_size=32)
    prompt = Sam2PromptEncoderConfig(hidden_size=32)
    decoder = Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32)
    parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
    if folder.name == "sam2_video":
        memory = {"memory_encoder_hidden_size": 32, "memory_encoder_output_channels": 16, "memory_fuser_embed_dim": 32}
        memory |= {"memory_attention_hidden_size": 32, "memory_attention_feed_forward_hidden_size": 32}
        memory |= {"mask_downsampler_embed_dim": 32, "memory_fuser_num_layers": 1, "memory_attention_num_layers": 1}
        model = Sam2VideoModel(Sam2VideoConfig(**parts, **memory))
    else:
        model = Sam2Model(Sam2Config(**parts))
        nn.init.normal_(model.no_memory_embedding)
    backbone = model.vision_encoder.backbone
    nn.init.normal_(backbone.pos_embed)
    nn.init.normal_(backbone.pos_embed_window)
    model.save_pretrained(folder)
    Sam2ImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)


def save_timm(folder: Path) -> None:
    name, options = {
        "timm_vit": ("vit_small_patch16_dinov3", {"embed_dim": 24, "depth": 2, "num_heads": 2}),
        "timm_swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1, 1, 1)}),
        "timm_convnext": ("convnext_atto", {"dims": (8, 16, 16, 24), "depths": (1, 1, 1, 1)}),
    }[folder.name]
    model = timm.create_model(name, num_classes=7, drop_path_rate=0.5, **options)
    model.pretrained_cfg = model.pretrained_cfg | {"mean": MEAN, "std": STD, "num_classes": 7}
    timm.models.save_for_hf(model, folder, model_args=options, safe_serialization=True)


SAVERS: dict[str, Callable[[Path], None]] = {"mask2former": save_mask2former, "sam2": save_sam2, "timm": save_timm}


def images(*sizes_hw: tuple[int, int]) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=rng, dtype=torch.uint8) for size in sizes_hw]


def normalized(image: Tensor) -> Tensor:
    return ((image / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))[None]


@every_expert
def test_shapes(folders: Path, name: str) -> None:
    _, width, stride = EXPERTS[name]
    expert = expert_of(folders / name)
    assert expert.width == width and 96 % expert.multiple == 0
    assert re.fullmatch("[0-9a-f]{16}", expert.fingerprint)
    for (height, side), features in zip(
        sizes := [(96, 160), (160, 96), (32, 288)], expert.features(images(*sizes)), strict=True
    ):
        assert features.shape == (width, height // stride, side // stride) and features.dtype == torch.float32


@every_expert
def test_different_sizes_together_are_one_by_one(folders: Path, name: str) -> None:
    expert = expert_of(folders / name)
    mixed_sizes = images((96, 64), (64, 96), (96, 64), (64, 64), (64, 96))
    alone = [expert.features([image])[0] for image in mixed_sizes]
    for a, b in zip(expert.features(mixed_sizes), alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert expert.features([]) == []


@pytest.mark.parametrize("name", ["mask2former_swin", "mask2former_resnet"])
def test_mask2former_is_its_pixel_decoder(folders: Path, name: str) -> None:
    image = images((64, 96))[0]
    model = Mask2FormerModel.from_pretrained(folders / name).eval()
    with torch.no_grad():
        expected = model(normalized(image)).pixel_decoder_last_hidden_state[0]
    torch.testing.assert_close(expert_of(folders / name).features([image])[0], expected, atol=1e-5, rtol=1e-5)


def test_sam2_is_its_image_embedding(folders: Path) -> None:
    image = images((1024, 1024))[0]
    model = Sam2Model.from_pretrained(folders / "sam2").eval()
    expected = (
        model.get_image_embeddings(normalized(image))[-1][0] - model.no_memory_embedding.detach()[0, 0, :, None, None]
    )
    features = expert_of(folders / "sam2").features([image])[0]
    assert features.shape == (32, 64, 64)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["timm_vit", "timm_swin", "timm_convnext"])
def test_timm_is_forward_features(folders: Path, name: str) -> None:
    image = images((96, 160))[0]
    option = {"timm_vit": {"dynamic_img_size": True}, "timm_swin": {"strict_img_size": False}}.get(name, {})
    model = timm.create_model(f"local-dir:{folders / name}", pretrained=True, **option).eval()
    with torch.no_grad():
        expected = model.forward_features(normalized(image))
    if name == "timm_vit":
        assert model.num_prefix_tokens == 5
        expected = expected[:, 5:].transpose(1, 2).unflatten(2, (6, 10))
    elif name == "timm_swin":
        expected = expected.permute(0, 3, 1, 2)
    torch.testing.assert_close(expert_of(folders / name).features([image])[0], expected[0], atol=1e-5, rtol=1e-5)


@every_expert
def test_an_object_shows_where_it_is(folders: Path, name: str) -> None:
    """No padding, no crop, no transposition: what changes at a border changes the features at that border the most."""
    expert = expert_of(folders / name)
    (noise,) = images((128, 192))
    empty = noise // 2 + 64  # no flat image: group normalization would make anything of the rounding
    cell = max(expert.multiple, 16)
    for axis, sides in ((2, ("left", "right")), (1, ("top", "bottom"))):
        for side in sides:
            first = side in ("left", "top")
            shown = empty.clone()
            shown.narrow(axis, 0 if first else shown.shape[axis] - cell, cell).fill_(255)
            without, with_it = expert.features([empty, shown])
            change = (with_it - without).abs().mean(dim=(0, 3 - axis))
            quarter = len(change) // 4
            here, elsewhere = (change if first else change.flip(0)).split([quarter, len(change) - quarter])
            assert here.mean() > 1.4 * elsewhere[-quarter:].mean(), (side, change)


@every_expert
def test_frozen(folders: Path, name: str) -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.expert = nn.Linear(1, 1), expert_of(folders / name)

    student, two_images = Student(), images((64, 96), (96, 64))
    before = student.expert.features(two_images)
    student.train()
    student.double()
    assert [key for key, _ in student.named_parameters()] == ["linear.weight", "linear.bias"]
    assert list(student.state_dict()) == ["linear.weight", "linear.bias"]
    assert not any(part.training for part in student.expert._module.modules())
    assert not any(p.requires_grad for p in student.expert._module.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        after = student.expert.features(two_images)
    for a, b in zip(before, after, strict=True):  # drop path would show, and so would half precision
        assert torch.equal(a, b) and not a.requires_grad and not a.is_inference()
    (before[0].mean() * student.linear.weight.sum()).backward()  # a loss may use them
    assert student.linear.weight.grad is not None


@every_expert
def test_opening_leaves_the_random_numbers_alone(folders: Path, name: str) -> None:
    state = torch.get_rng_state()
    expert_of(folders / name)
    assert torch.equal(torch.get_rng_state(), state)


# A weight of the part that makes the features, and one of the part that does not.
WEIGHTS = {
    "mask2former_swin": (
        "model.pixel_level_module.decoder.mask_projection.bias",
        "model.transformer_module.queries_features.weight",
    ),
    "sam2": ("vision_encoder.neck.convs.0.bias", "mask_decoder.iou_prediction_head.proj_in.bias"),
    "timm_convnext": ("stages.3.blocks.0.mlp.fc1.bias", "head.fc.bias"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_fingerprint(folders: Path, tmp_path: Path, name: str) -> None:
    fingerprint = expert_of(folders / name).fingerprint
    copy = shutil.copytree(folders / name, tmp_path / name)
    assert expert_of(copy).fingerprint == fingerprint
    used, unused = WEIGHTS[name]
    for key, same in ((unused, True), (used, False)):
        edit_weights(copy, lambda tensors, key=key: tensors[key][-1:].add_(1e-3))
        assert (expert_of(copy).fingerprint == fingerprint) == same, key


@pytest.mark.parametrize("name", ["sam2", "timm_vit"])
def test_fingerprint_knows_the_normalization(folders: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folders / name, tmp_path / name)
    path = copy / ("preprocessor_config.json" if name == "sam2" else "config.json")
    path.write_text(path.read_text().replace("0.2,", "0.21,"))
    assert expert_of(copy).fingerprint != expert_of(folders / name).fingerprint


def test_fingerprints_differ(folders: Path) -> None:
    assert len({expert_of(folders / name).fingerprint for name in EXPERTS}) == len(EXPERTS)


@pytest.mark.parametrize("kind", ["mask2former", "sam2", "timm"])
def test_missing_folder(folders: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match=rf"'expert' \(kind {kind}\): no folder {folder}.*download.*safetensors"):
        open_expert(ExpertConfig(name="expert", kind=kind, path=str(folder), at="patches", size_px=96), "cpu")


@every_expert
def test_folder_without_weights(folders: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folders / name, tmp_path / name)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=f"the folder {copy} is not complete.*download"):
        expert_of(copy)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_missing_weight_is_refused(folders: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folders / name, tmp_path / name)
    used, unused = WEIGHTS[name]
    if not name.startswith("timm"):  # timm's loading is strict about all of them
        edit_weights(copy, lambda tensors: tensors.pop(unused))
        expert_of(copy)
    edit_weights(copy, lambda tensors: tensors.pop(used))
    with pytest.raises(ConfigError, match=re.escape(used.removeprefix("model."))):
        expert_of(copy)


def test_another_kind_is_refused(folders: Path) -> None:
    with pytest.raises(ConfigError, match="is a 'sam2' checkpoint, kind 'mask2former' needs"):
        open_expert(config_of(folders / "sam2", kind="mask2former"), "cpu")


def test_no_preprocessor(folders: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folders / "sam2", tmp_path / "sam2")
    for path in copy.glob("*processor_config.json"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"not complete.*preprocessor_config.json"):
        expert_of(copy)


def test_unknown_timm_model() -> None:
    config = ExpertConfig(name="expert", kind="timm", path="vit_tiny_patch16_225", at="patches", size_px=96)
    with pytest.raises(ConfigError, match="did you mean 'vit_tiny_patch16_224'"):
        open_expert(config, "cpu")


def test_a_model_of_one_size(tmp_path: Path) -> None:
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    model = timm.create_model("beit_base_patch16_224", **options)
    timm.models.save_for_hf(model, tmp_path, model_args=options, safe_serialization=True)
    values = {"name": "expert", "kind": "timm", "path": str(tmp_path), "at": "patches"}
    assert open_expert(ExpertConfig(**values, size_px=224), "cpu").width == 24
    with pytest.raises(ConfigError, match=r"of 96 x 112 px.*made for \[?\(?3, 224, 224"):
        open_expert(ExpertConfig(**values, size_px=100, fit="short"), "cpu")


def test_bad_images(folders: Path) -> None:
    expert = expert_of(folders / "sam2")
    with pytest.raises(ValueError, match=r"\(40 x 64 px\) must be multiples of 32"):
        expert.features(images((64, 40)))
    with pytest.raises(ValueError, match="uint8"):
        expert.features([torch.zeros(3, 64, 64)])


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("name", ["mask2former_swin", "sam2", "timm_vit"])
def test_damaged_folders_are_named(folders: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folders / name, tmp_path / name)
    used, _ = WEIGHTS.get(name, ("norm.weight", ""))
    edit_weights(copy, lambda tensors: tensors[used].view(-1).__setitem__(0, float("nan")))
    with pytest.raises(ConfigError, match="NaN or infinite values in "):
        expert_of(copy)
    (copy / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="config.json must be a JSON object"):
        expert_of(copy)
    shutil.copy(folders / name / "config.json", copy)
    (copy / "model.safetensors").write_text(LFS)
    with pytest.raises(ConfigError, match="model.safetensors is a git-LFS pointer"):
        expert_of(copy)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mask2former_swin", ("backbone_config", "embed_dim"), 500_000),
        ("sam2", ("vision_config", "backbone_config", "hidden_size"), 300_000),
        ("timm_vit", ("model_args", "embed_dim"), 500_000),
        ("timm_vit", ("model_args", "depth"), 10**9),
        ("timm_vit", ("architecture",), "os.system"),
        ("timm_vit", ("model_args",), {"no_such": 1}),
    ],
)
def test_sizes_that_the_weights_do_not_have(
    folders: Path, tmp_path: Path, name: str, key: tuple[str, ...], value: object
) -> None:
    copy = shutil.copytree(folders / name, tmp_path / name)
    values = inner = json.loads((copy / "config.json").read_text())
    for part in key[:-1]:
        inner = inner[part]
    inner[key[-1]] = value
    (copy / "config.json").write_text(json.dumps(values))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match="cannot load the expert"):
        expert_of(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB: 1 GiB
