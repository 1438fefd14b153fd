"""Which rank computes which samples of a step, and in which passes, so that ranks wait for each other little.

A rank decides without the others, before any image is decoded: what a sample costs is predicted from the size of its
image, which a header tells. Ranks that see the same headers deal in the same way, and exchange nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pixel_sail.architecture import Architecture
from pixel_sail.data.image import image_size, seen_size
from pixel_sail.data.mixture import Mixture
from pixel_sail.data.pack import consecutive_groups
from pixel_sail.layout import attended_pairs, two_way_run

GROUP = 8  # neighbouring ranks, most often of one machine, that deal among themselves: each reads the headers of all
TEXT_TOKENS = 200  # predicted beside an image
CHARACTERS = 4  # of a token, in texts alone


@dataclass(frozen=True)
class Costs:
    """What samples cost, in FLOPs."""

    flops: Callable[[int, int], float]  # of (tokens, attended pairs)
    architecture: Architecture
    max_length: int

    def of(self, tokens: int, *two_way_tokens: int) -> float:
        """Of a sequence; for each image, `two_way_tokens` of its tokens, most often the block, see each other."""
        return self.flops(tokens, attended_pairs(tokens, *two_way_tokens))

    def predicted(self, mixture: Mixture, position: int) -> float:
        """Of the sample at a stream position, without decoding its image. Raises BadSample if that has no size."""
        image = mixture.image(position)
        if image is None:
            sample = mixture.annotated(position)
            characters = len(sample.text) + sum(len(turn.question) + len(turn.answer) for turn in sample.turns)
            return self.of(min(1 + characters // CHARACTERS, self.max_length), 0)
        height, width = image_size(image, mixture.key(position))
        width, height = seen_size((width, height), self.architecture)
        patch = self.architecture.patch_size
        image_tokens = self.architecture.image_tokens(height // patch, width // patch)
        first, end = two_way_run((0, image_tokens), self.architecture.image_attention)
        return self.of(image_tokens + TEXT_TOKENS, end - first)


def dealing_ranks(world_size: int) -> list[range]:
    """The groups of ranks that deal among themselves."""
    return [range(first, min(first + GROUP, world_size)) for first in range(0, world_size, GROUP)]


def deal(costs: Sequence[float | None], shares: int) -> list[list[int]]:
    """Indices of `costs`, each in one of the `shares`, whose sums are nearly equal. Equal costs are dealt in turn.

    None is a cost that nobody knows: the mean of the others.
    """
    known = [cost for cost in costs if cost is not None]
    mean = sum(known) / len(known) if known else 1.0
    return _share_out([mean if cost is None else cost for cost in costs], shares)


def cut(tokens: Sequence[int], costs: Sequence[float], limit: int, alone: bool) -> list[list[int]]:
    """Indices of the samples of a rank, in groups of at most `limit` tokens: one pass each. A larger sample is alone.

    The passes are few (first-fit decreasing) and cost nearly the same, and those that cost most come first: where ranks
    wait for each other in each pass, they then wait little. A rank that is `alone` waits for nobody: it keeps the order
    of the stream, unless that takes more passes.
    """
    fewest = _first_fit(tokens, limit)
    if alone and len(in_order := consecutive_groups(tokens, limit)) == len(fewest):
        return in_order
    even = _share_out(costs, len(fewest), tokens, limit)
    fits = all(len(group) == 1 or sum(tokens[i] for i in group) <= limit for group in even)
    return sorted(even if fits else fewest, key=lambda group: -sum(costs[i] for i in group))


def _share_out(costs: Sequence[float], shares: int, sizes: Sequence[int] = (), limit: int = 0) -> list[list[int]]:
    """The largest first, each to the share with the smallest sum: at most a third above the best (Graham, 1969).

    With `sizes`, to one where it fits within the `limit`, if there is any.
    """
    groups: list[list[int]] = [[] for _ in range(shares)]
    sums, used = [0.0] * shares, [0] * shares
    for i in _largest_first(costs):
        fitting = [k for k in range(shares) if not groups[k] or not sizes or used[k] + sizes[i] <= limit]
        k = min(fitting or range(shares), key=sums.__getitem__)
        groups[k].append(i)
        sums[k] += costs[i]
        used[k] += sizes[i] if sizes else 0
    return [sorted(group) for group in groups]


def _first_fit(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Groups of at most `limit`: the largest first, each into the first group where it fits."""
    groups: list[list[int]] = []
    used: list[int] = []
    for i in _largest_first(sizes):
        k = next((k for k, size in enumerate(used) if size + sizes[i] <= limit), None)
        if k is None:
            groups.append([i])
            used.append(sizes[i])
        else:
            groups[k].append(i)
            used[k] += sizes[i]
    return [sorted(group) for group in groups]


def _largest_first(values: Sequence[float]) -> Iterable[int]:
    return sorted(range(len(values)), key=lambda i: -values[i])
