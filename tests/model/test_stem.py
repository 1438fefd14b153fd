"""The convolutional stem: what it computes, by hand and alone, whatever it is packed with."""

import pytest
import torch
import torch.nn.functional as F

from pixel_sail.model.stem import ConvStem

GRIDS = [(2, 5), (0, 0), (4, 3), (1, 1)]


def to_patches(image: torch.Tensor, size: int) -> torch.Tensor:
    """(3, H, W) -> (h w, 3 P P), rows (channel, row, column), by loops."""
    _, height, width = image.shape
    return torch.stack(
        [
            image[:, y : y + size, x : x + size].reshape(-1)
            for y in range(0, height, size)
            for x in range(0, width, size)
        ]
    )


def by_hand(stem: ConvStem, image: torch.Tensor) -> torch.Tensor:
    """The stem on one whole image, with torch's own convolutions."""
    states = image[None]
    for stage, down in enumerate(stem.down):
        kernel = down.weight.unflatten(1, (-1, 3, 3))
        states = F.gelu(F.conv2d(states, kernel, down.bias, stride=2, padding=1))
        if stage:
            more = stem.more[stage - 1]
            states = states + F.gelu(F.conv2d(states, more.weight.unflatten(1, (-1, 3, 3)), more.bias, padding=1))
    return to_patches(states[0], stem.cells)


@pytest.mark.parametrize("widths", [[6], [6, 10], [6, 10, 12]])
def test_every_image_as_if_alone(widths: list[int]) -> None:
    torch.manual_seed(0)
    stem = ConvStem(8, widths)
    torch.nn.init.normal_(stem.down[0].bias)  # a bias would leak from the padding into small images
    images = [torch.randn(3, 8 * h, 8 * w) for h, w in GRIDS if h]
    values = stem(torch.cat([to_patches(image, 8) for image in images]), GRIDS)
    expected = torch.cat([by_hand(stem, image) for image in images])
    assert values.shape == (10 + 12 + 1, stem.values)
    assert torch.allclose(values, expected, atol=1e-5)


def test_images_of_two_sizes_in_bf16() -> None:
    """The weights of a GPU from ZeRO-1 on. What is padded must not turn into float32."""
    torch.manual_seed(0)
    stem = ConvStem(8, [6, 10])
    patches = torch.cat([to_patches(torch.randn(3, 8 * h, 8 * w), 8) for h, w in GRIDS if h])
    values = stem(patches, GRIDS)
    in_bf16 = stem.bfloat16()(patches.bfloat16(), GRIDS)
    assert in_bf16.dtype == torch.bfloat16
    assert (in_bf16.float() - values).norm() / values.norm() < 0.01


def test_a_shift_by_a_cell_shifts_the_values() -> None:
    """What a linear patch embedding cannot do: the same shape, a cell further on, has the same values there."""
    torch.manual_seed(0)
    stem = ConvStem(8, [6, 10])
    image = torch.zeros(3, 48, 48)
    image[:, 17:29, 18:27] = torch.rand(3, 12, 9)
    there = stem(to_patches(image, 8), [(6, 6)]).view(6, 6, 10, 2, 2)
    shifted = stem(to_patches(image.roll(4, dims=2), 8), [(6, 6)]).view(6, 6, 10, 2, 2)
    row = there.permute(2, 0, 3, 1, 4).reshape(10, 12, 12)
    moved = shifted.permute(2, 0, 3, 1, 4).reshape(10, 12, 12)
    assert torch.allclose(row[:, 2:-2, 2:-3], moved[:, 2:-2, 3:-2], atol=1e-6)
    assert row[:, 2:-2, 2:-3].std() > 0.05


def test_without_an_image_all_weights_are_still_used() -> None:
    stem = ConvStem(8, [6, 10])
    values = stem(torch.empty(0, 192), [(0, 0), (0, 0)])
    assert values.shape == (0, stem.values)
    values.sum().backward()
    assert all(parameter.grad is not None for parameter in stem.parameters())
