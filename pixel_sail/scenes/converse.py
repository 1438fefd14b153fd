"""Questions and short answers about regions (as in Osprey) and about the whole image (as in LLaVA)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pixel_sail.scenes.ask import absent_names
from pixel_sail.scenes.colours import COLOURS
from pixel_sail.scenes.describe import COUNTS, OF, a, look, named
from pixel_sail.scenes.facts import SIDES, Picture
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import pick, shuffled

Rng = np.random.Generator
Turn = tuple[str, str]  # question, answer
HALVES = ("upper", "lower", "left", "right")
SHORT_TURNS = 8  # an image


def region(k: int) -> str:
    """The name of the k-th region of an entry, from 0."""
    return f"<region{k + 1}>"


def short_turns(picture: Picture, chosen: list[int], rng: Rng) -> list[Turn]:
    """Two questions about each chosen object, SHORT_TURNS at most, answered with a word or two."""
    turns: list[Turn] = []
    for k, i in enumerate(chosen):
        facts, tag = picture.facts(i), region(k)
        about = [
            (pick(rng, (f"What colour is {tag}?", f"Which colour does {tag} have?")), facts["colour"]),
            (pick(rng, (f"What is {tag}?", f"What kind of thing is {tag}?")), facts["kind"]),
            (pick(rng, (f"Which texture does {tag} have?", f"What is the texture of {tag}?")), facts["texture"]),
            (f"Where in the picture is {tag}?", facts["where"]),
        ]
        if facts["size"]:
            about.append((f"How large is {tag}?", facts["size"]))
        turns += shuffled(rng, about)[:2]
    return shuffled(rng, turns)[:SHORT_TURNS]


def talk(picture: Picture, chosen: list[int], rng: Rng) -> list[Turn]:
    """Up to five turns about two or three objects and the relations between them."""
    pairs = [shuffled(rng, [k, m]) for k in range(len(chosen)) for m in range(k)]
    turns = [turn for k, m in pairs for turn in _about_two(picture, chosen, k, m, rng)]
    k = int(rng.integers(len(chosen)))
    turns += [_others_like(picture, chosen[k], region(k), rng)]
    turns += [(f"What do you see in {region(k)}?", a(look(picture.objects[chosen[k]], rng)))]
    return shuffled(rng, list(dict(turns).items()))[:5]


def _about_two(picture: Picture, chosen: list[int], k: int, m: int, rng: Rng) -> Iterator[Turn]:
    i, j = chosen[k], chosen[m]
    first, second = region(k), region(m)
    size = pick(rng, ("larger", "smaller"))
    opposite = "smaller" if size == "larger" else "larger"
    anchor = {"filter": {}, "anchor": {"is": j}, "type": "compare"}
    if i in picture.matches({**anchor, "size": size}).sure:
        yield f"Which is {size}, {first} or {second}?", first
    elif i in picture.matches({**anchor, "size": opposite}).sure:
        yield f"Which is {size}, {first} or {second}?", second
    true = [side for side in SIDES if i in picture.relations[side, j].sure]
    false = [side for side in SIDES if i not in picture.relations[side, j].possible]
    sides = true if true and (rng.random() < 0.5 or not false) else false
    if sides:
        side = pick(rng, tuple(sides))
        yield f"Is {first} {OF[side]} {second}?", "yes" if side in true else "no"
    key = pick(rng, ("colour", "kind"))
    same = picture.objects[i][key] == picture.objects[j][key]
    if same or rng.random() < 0.4:
        text = {"colour": "have the same colour", "kind": "show the same kind of thing"}[key]
        yield f"Do {first} and {second} {text}?", "yes" if same else "no"


def _others_like(picture: Picture, i: int, tag: str, rng: Rng) -> Turn:
    if rng.random() < 0.5:
        kind = picture.objects[i]["kind"]
        count = picture.values("kind").count(kind) - 1
        return f"How many other {KINDS[kind].plural} than {tag} are there?", COUNTS[count]
    colour = picture.objects[i]["colour"]
    return f"How many other {colour} things than {tag} are there?", COUNTS[picture.values("colour").count(colour) - 1]


def part_turns(picture: Picture, i: int, half: str, rng: Rng) -> list[Turn]:
    """``half`` of what is visible of an object, cut by its bounding box, is the region."""
    thing = picture.objects[i]
    options = [
        (
            f"Which part of which thing is {region(0)}?",
            f"the {half} part of {a(thing['colour'] + ' ' + thing['kind'])}",
        ),
        (f"Which part of the {thing['kind']} is {region(0)}?", f"the {half} part"),
        (f"{region(0)} is a part of what?", a(f"{thing['colour']} {thing['kind']}")),
    ]
    return shuffled(rng, options)[:2]


def yes_no_turns(picture: Picture, chosen: list[int], rng: Rng) -> list[Turn]:
    """For each object one question that is true and one that is not; the false kind is one that the image shows."""
    turns: list[Turn] = []
    for k, i in enumerate(chosen):
        thing, tag = picture.objects[i], region(k)
        wrong = sorted(set(picture.values("kind")) - {thing["kind"]}) or [
            kind for kind in KINDS if kind != thing["kind"]
        ]
        other = pick(rng, tuple(wrong))
        turns += [(f"Is {tag} {a(thing['kind'])}?", "yes"), (f"Is {tag} {a(other)}?", "no")]
    return shuffled(rng, turns)


def picture_turns(picture: Picture, rng: Rng) -> list[Turn]:
    """One to four turns about the whole image: counts, presence, colours of what is there once."""
    kind = pick(rng, tuple(sorted(set(picture.values("kind")))))
    colour = pick(rng, tuple(COLOURS if rng.random() < 0.3 else picture.values("colour")))
    turns: list[Turn] = [
        ("How many things are there in the picture?", COUNTS[len(picture.objects)]),
        (f"How many {KINDS[kind].plural} are there?", COUNTS[picture.values("kind").count(kind)]),
        (f"How many {colour} things are there?", COUNTS[picture.values("colour").count(colour)]),
    ]
    there = picture.names[int(rng.integers(len(picture.names)))]
    missing = absent_names(picture, 1, rng)
    name = there if rng.random() < 0.5 or not missing else missing[0]
    turns.append((f"Is there {named(name)} in the picture?", "yes" if name in picture.names else "no"))
    once = [thing for thing in picture.objects if picture.values("kind").count(thing["kind"]) == 1]
    if once:
        thing: dict[str, Any] = once[int(rng.integers(len(once)))]
        turns.append((f"What colour is the {thing['kind']}?", thing["colour"]))
    return shuffled(rng, turns)[: int(rng.integers(1, 5))]


def text_turns(rng: Rng) -> list[Turn]:
    """One or two turns that need no image: small sums and words."""
    x, y = (int(n) for n in rng.integers(1, 5, 2))
    first, second = (list(KINDS)[k] for k in rng.permutation(len(KINDS))[:2])
    longer = max(first, second, key=len)
    turns: list[Turn] = [
        (f"What is {COUNTS[x]} plus {COUNTS[y]}?", COUNTS[x + y]),
        (f"What is {COUNTS[x + y]} minus {COUNTS[y]}?", COUNTS[x]),
        (f"What is the plural of {first}?", KINDS[first].plural),
    ]
    if rng.random() < 0.5:
        turns.append((f"Is {pick(rng, tuple(COLOURS))} a colour or a kind of thing?", "a colour"))
    else:
        turns.append((f"Is {a(first)} a colour or a kind of thing?", "a kind of thing"))
    if len(first) != len(second):
        turns.append((f"Which word is longer, {first} or {second}?", longer))
    return shuffled(rng, turns)[: int(rng.integers(1, 3))]
