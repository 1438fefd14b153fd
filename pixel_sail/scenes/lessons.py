"""Lessons: many requests of one kind about a training image. Beside other requests, a small model learns none of these.

Two forms. A lesson in one topic has many regions in an image. A lesson around one region asks all that is clear about
it: only there is it quick to learn what lies near a region (docs/results/tiny.md).
"""

from itertools import islice

import numpy as np

from pixel_sail.scenes.facts import ImageFacts
from pixel_sail.scenes.region_requests import (
    ABOUT_REGIONS,
    MANY_PER_IMAGE,
    candidates,
    clear_requests,
    shuffled_objects,
)
from pixel_sail.scenes.types import RegionRequest, Rng

TOPICS = tuple(ABOUT_REGIONS)
AROUND = "around"
LESSONS = (*TOPICS, AROUND)
_STREAMS = {"beside": 21, "nearest": 22, "same": 23, AROUND: 30}  # of random numbers, for each image
CANDIDATES = 60  # that are tried for an image, where hundreds may be possible and few of them clear
ENOUGH_NEAR = 4  # requests for what is beside or nearest: no other region is tried for more


def choose_lessons(image: ImageFacts, seed: int, index: int) -> dict[str, list[RegionRequest]]:
    """The requests of each of LESSONS about a training image; none about others."""
    if image.split != "train":
        return {name: [] for name in LESSONS}
    rngs = {name: np.random.default_rng([seed, index, _STREAMS[name]]) for name in LESSONS}
    lessons = {topic: choose_of_topic(image, topic, rngs[topic]) for topic in TOPICS}
    return {**lessons, AROUND: choose_around_one(image, rngs[AROUND])}


def choose_of_topic(image: ImageFacts, topic: str, rng: Rng) -> list[RegionRequest]:
    """Up to MANY_PER_IMAGE requests of one topic."""
    possible = islice(candidates(image, topic, rng), CANDIDATES)
    return list(islice(clear_requests(image, topic, possible, rng), MANY_PER_IMAGE))


def choose_around_one(image: ImageFacts, rng: Rng) -> list[RegionRequest]:
    """All clear requests of TOPICS about one region: the first with ENOUGH_NEAR, or that with most."""
    best: list[RegionRequest] = []
    for region in shuffled_objects(image, rng):
        requests = _about(image, region, rng)
        if _near(requests) > _near(best):
            best = requests
        if _near(best) >= ENOUGH_NEAR:
            break
    return best


def _about(image: ImageFacts, region: int, rng: Rng) -> list[RegionRequest]:
    requests: list[RegionRequest] = []
    for topic, about in ABOUT_REGIONS.items():
        requests += clear_requests(image, topic, about(image, rng, [region]), rng)
    return [requests[i] for i in rng.permutation(len(requests))]


def _near(requests: list[RegionRequest]) -> int:
    return sum(request.topic != "same" for request in requests)
