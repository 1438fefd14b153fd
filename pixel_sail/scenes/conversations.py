"""Questions and short answers about regions (as in Osprey) and about the whole image (as in LLaVA)."""

from collections.abc import Iterator

from pixel_sail.scenes.colours import COLOURS
from pixel_sail.scenes.descriptions import COUNTS, DIRECTION_PHRASES, appearance, name_phrase, with_article
from pixel_sail.scenes.facts import DIRECTIONS, ImageFacts
from pixel_sail.scenes.kinds import KINDS
from pixel_sail.scenes.language import pick, shuffled
from pixel_sail.scenes.multiple_choice import absent_names
from pixel_sail.scenes.types import ANY, Attribute, CompareQuery, Filter, ObjectFacts, Rng, Turn

HALVES = ("upper", "lower", "left", "right")
SHORT_TURNS = 8  # an image


def region(k: int) -> str:
    """The name of the k-th region of an entry, from 0."""
    return f"<region{k + 1}>"


def short_turns(image: ImageFacts, chosen: list[int], rng: Rng) -> list[Turn]:
    """Two questions about each chosen object, SHORT_TURNS at most, answered with a word or two."""
    turns = [
        turn for k, i in enumerate(chosen) for turn in shuffled(rng, _about_one(image.facts(i), region(k), rng))[:2]
    ]
    return shuffled(rng, turns)[:SHORT_TURNS]


def several_object_turns(image: ImageFacts, chosen: list[int], rng: Rng) -> list[Turn]:
    """Up to eight turns about two or three objects: what each is like, and the relations between them."""
    pairs = [shuffled(rng, [k, m]) for k in range(len(chosen)) for m in range(k)]
    turns = [turn for k, m in pairs for turn in _about_two(image, chosen, k, m, rng)]
    k = int(rng.integers(len(chosen)))
    turns += [_others_like(image, chosen[k], region(k), rng)]
    turns += [(f"What do you see in {region(k)}?", with_article(appearance(image.objects[chosen[k]], rng)))]
    turns = shuffled(rng, list(dict(turns).items()))[:4]
    # the questions of the short form, without its request for a short answer: people do not write one
    turns += short_turns(image, chosen, rng)[:4]
    return shuffled(rng, turns)


def _about_one(facts: ObjectFacts, tag: str, rng: Rng) -> list[Turn]:
    about = [
        (pick(rng, (f"What colour is {tag}?", f"Which colour does {tag} have?")), facts.colour),
        (pick(rng, (f"What is {tag}?", f"What kind of thing is {tag}?")), facts.kind),
        (pick(rng, (f"Which texture does {tag} have?", f"What is the texture of {tag}?")), facts.texture),
        (f"Where in the picture is {tag}?", facts.where),
    ]
    return [*about, (f"How large is {tag}?", facts.size)] if facts.size else about


def _about_two(image: ImageFacts, chosen: list[int], k: int, m: int, rng: Rng) -> Iterator[Turn]:
    i, j = chosen[k], chosen[m]
    first, second = region(k), region(m)
    size = pick(rng, ("larger", "smaller"))
    opposite = "smaller" if size == "larger" else "larger"
    if i in image.matches(CompareQuery(ANY, size, Filter(index=j))).sure:
        yield f"Which is {size}, {first} or {second}?", first
    elif i in image.matches(CompareQuery(ANY, opposite, Filter(index=j))).sure:
        yield f"Which is {size}, {first} or {second}?", second
    true = [direction for direction in DIRECTIONS if i in image.relations[direction, j].sure]
    false = [direction for direction in DIRECTIONS if i not in image.relations[direction, j].possible]
    options = true if true and (rng.random() < 0.5 or not false) else false
    if options:
        direction = pick(rng, tuple(options))
        yield f"Is {first} {DIRECTION_PHRASES[direction]} {second}?", "yes" if direction in true else "no"
    attribute: Attribute = pick(rng, ("colour", "kind"))
    same = image.objects[i].value(attribute) == image.objects[j].value(attribute)
    if same or rng.random() < 0.4:
        text = {"colour": "have the same colour", "kind": "show the same kind of thing"}[attribute]
        yield f"Do {first} and {second} {text}?", "yes" if same else "no"


def _others_like(image: ImageFacts, i: int, tag: str, rng: Rng) -> Turn:
    if rng.random() < 0.5:
        kind = image.objects[i].kind
        count = image.values("kind").count(kind) - 1
        return f"How many other {KINDS[kind].plural} than {tag} are there?", COUNTS[count]
    colour = image.objects[i].colour
    return f"How many other {colour} things than {tag} are there?", COUNTS[image.values("colour").count(colour) - 1]


def part_turns(image: ImageFacts, i: int, half: str, rng: Rng) -> list[Turn]:
    """Two turns about a region that is `half` of the visible part of an object, cut by its bounding box."""
    name, kind = name_phrase(image.names[i]), image.objects[i].kind
    options = [
        (f"Which part of which thing is {region(0)}?", f"the {half} part of {name}"),
        (f"Which part of the {kind} is {region(0)}?", f"the {half} part"),
        (f"{region(0)} is a part of what?", name),
    ]
    return shuffled(rng, options)[:2]


def yes_no_turns(image: ImageFacts, chosen: list[int], rng: Rng) -> list[Turn]:
    """For each object one question that is true and one that is false; the false kind is one that the image shows."""
    turns: list[Turn] = []
    for k, i in enumerate(chosen):
        kind, tag = image.objects[i].kind, region(k)
        wrong = sorted(set(image.values("kind")) - {kind}) or [other for other in KINDS if other != kind]
        other = pick(rng, tuple(wrong))
        turns += [(f"Is {tag} {with_article(kind)}?", "yes"), (f"Is {tag} {with_article(other)}?", "no")]
    return shuffled(rng, turns)


def image_turns(image: ImageFacts, rng: Rng) -> list[Turn]:
    """One to four turns about the whole image: counts, presence, colours of kinds that occur once."""
    kind = pick(rng, tuple(sorted(set(image.values("kind")))))
    colour = pick(rng, tuple(COLOURS if rng.random() < 0.3 else image.values("colour")))
    turns: list[Turn] = [
        ("How many things are there in the picture?", COUNTS[len(image.objects)]),
        (f"How many {KINDS[kind].plural} are there?", COUNTS[image.values("kind").count(kind)]),
        (f"How many {colour} things are there?", COUNTS[image.values("colour").count(colour)]),
    ]
    present = image.names[int(rng.integers(len(image.names)))]
    missing = absent_names(image, 1, rng)
    name = present if rng.random() < 0.5 or not missing else missing[0]
    turns.append((f"Is there {name_phrase(name)} in the picture?", "yes" if name in image.names else "no"))
    unique = [thing for thing in image.objects if image.values("kind").count(thing.kind) == 1]
    if unique:
        thing = unique[int(rng.integers(len(unique)))]
        turns.append((f"What colour is the {thing.kind}?", thing.colour))
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
        turns.append((f"Is {with_article(first)} a colour or a kind of thing?", "a kind of thing"))
    if len(first) != len(second):
        turns.append((f"Which word is longer, {first} or {second}?", longer))
    return shuffled(rng, turns)[: int(rng.integers(1, 3))]
