"""Lessons: many requests of one kind about a training image. Beside other requests, a small model learns none of these.

Two forms. A lesson in one topic has many regions in an image. A lesson around one region asks all that is clear about
it: only there is it quick to learn what lies near a region (docs/results/tiny.md).
"""

from itertools import islice

import numpy as np

from pixel_sail.scenes.facts import ImageFacts
from pixel_sail.scenes.region_requests import (
    MANY_PER_IMAGE,
    candidates,
    candidates_about,
    clear_request,
    shuffled_objects,
)
from pixel_sail.scenes.types import RegionRequest, Rng

TOPICS = ("beside", "nearest", "same")
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
    requests: list[RegionRequest] = []
    for candidate in islice(candidates(image, topic, rng), CANDIDATES):
        if len(requests) == MANY_PER_IMAGE:
            break
        request = clear_request(image, topic, candidate, requests, rng)
        if request:
            requests.append(request)
    return requests


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
    for topic in TOPICS:
        for candidate in candidates_about(image, topic, region, rng):
            request = clear_request(image, topic, candidate, requests, rng)
            if request:
                requests.append(request)
    return [requests[i] for i in rng.permutation(len(requests))]


def _near(requests: list[RegionRequest]) -> int:
    return sum(request.topic != "same" for request in requests)
