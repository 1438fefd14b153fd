"""What a noun phrase of an answer is about: one of six concepts, by classes of words in the phrase and after it.

The concepts are those of PixFoundation (arXiv 2502.04192), which asks a language model. We use rules, so that the same
phrase always gets the same concept and a reader can tell why.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from pixel_sail.data.sources.grounded import find_phrase

Concept = Literal["appearance", "location", "part", "context", "object", "state"]
CONCEPTS: tuple[Concept, ...] = get_args(Concept)
MAX_NEIGHBOURS = 5  # words after a phrase that may describe it


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# A word may belong to several classes; the order of the rules in `concept_of` decides.
_PART = _set("""
arm arms beak bill blade body chest collar ear ears eye eyes face feather feathers feet fin fins finger fingers flame
foot fur hair handle hand hands head headlight heads hood hull interior knob leg legs lid lip lips mane mouth muzzle
neck nose nozzle paw paws pedal pedals petal petals pocket rim roof saddle shoulder skin sleeve snout spoke spokes
spout stalk stem strap tail tip tongue tooth teeth trunk tusk tusks tyre windshield wing wings wrist
""")
_PART_OF_SOMETHING = _set("""
back base bottom branch button corner door edge end frame front half inside label leaf leaves left lens middle outside
page part parts piece right screen seat section shell side string surface tire top wheel wheels window windows
""")  # parts if the phrase says of what ("the top of the mug"); otherwise places or objects
_LOCATION = _set("""
above adjacent ahead apart around back behind below beneath beside between bottom center centre corner direction
distance down edge end far foreground front inside left leftmost lower middle near nearby nearest opposite outside
over place position right rightmost side spot top under underneath up upper
""")
_CONTEXT = _set("""
air area atmosphere backdrop background beach bedroom ceiling city context countertop desert environment field floor
foliage forest garden grass ground habitat horizon image indoors kitchen lake landscape lawn light lighting meadow
mountain night ocean outdoors park pavement photo photograph picture river road room sand scene scenery sea setting
sidewalk sky snow space street sunlight sunset surroundings table town view wall water weather woods world
""")
_STATE = _set("""
action active asleep awake broken closed cooked crouching cut dirty drinking dry eating empty expression facing filled
flying folded full hanging holding jumping leaning lit looking lying mood motion moving off open opened parked playing
pose posture raised resting running seated shut sitting sleeping sliced smiling spread standing state stance stretched
swimming tilted turned walking wearing wet whole
""")
_APPEARANCE = _set("""
appearance bald bare beige big black blonde blue bright brown checkered circular clear color colored colors colour
coloured colours colorful colourful curly cylindrical dark design dotted dull fluffy furry glass glossy glowing gold
golden gray green grey hairy hue huge large leather light long look metal metallic multicolored narrow orange oval
pale pattern patterned patterns pink plain plastic pointed pointy purple rectangular red round rounded shape shaped
shiny short silver size slim small smooth solid spots spotted square striped stripe stripes tall texture textured
thick thin tiny tone transparent triangular turquoise violet white wide wooden yellow
""")
_AS_HEAD: tuple[tuple[Concept, frozenset[str]], ...] = (
    ("location", _LOCATION),
    ("context", _CONTEXT),
    ("state", _STATE),
    ("appearance", _APPEARANCE),
)
_DESCRIBING: tuple[tuple[Concept, frozenset[str]], ...] = (
    ("state", _STATE),
    ("appearance", _APPEARANCE),
    ("location", _LOCATION),
)
_AND = _set("and but or while")
_DETERMINERS = _set("a an another his her its our the their this these those")
_TOWARDS = _set("at in on to towards")  # "on the left", "in the middle"
_PREPOSITIONS = _set("at behind beside by for from in near next of on over that to under which who with")
_WORD = re.compile(r"[a-z]+(?:'s)?")
_CLAUSE_END = re.compile(r"[.,;:!?\n()\[\]<>]")


def concept_of(phrase: str, output: str = "", place: float = 0.5) -> Concept:
    """The concept of a phrase of `output`. If it occurs several times, the one nearest to `place` (0: start, 1: end).

    First by its head: a part ("the mug's handle"), a place, surroundings, a state or a look. Any other head is an
    object. Then its description decides: a word of the phrase ("the open door": state), else a word that follows it in
    its clause ("the mug is red": appearance; "the mug on the left": location). Without a description: object.
    """
    words, after = _words(phrase), neighbours(phrase, output, place)
    head, modifiers, rest = _split(words)
    if head in _PART or (head in _PART_OF_SOMETHING and _has_owner(head, modifiers, rest or after)):
        return "part"
    for concept, known in _AS_HEAD:
        if head in known:
            return concept
    return _described_by(modifiers) or _described_by(rest) or _described_by(after) or "object"


def phrase_span(phrase: str, output: str, place: float = 0.5) -> tuple[int, int] | None:
    """Characters [first, end) of the phrase in `output`; the occurrence whose middle is nearest to `place` (0..1)."""
    stripped = phrase.strip()
    return find_phrase(output, stripped, place * len(output) - len(stripped) / 2)


def neighbours(phrase: str, output: str, place: float = 0.5) -> list[str]:
    """Up to `MAX_NEIGHBOURS` words that follow the phrase within its clause; [] if it is not in `output`."""
    span = phrase_span(phrase, output, place)
    return [] if span is None else _words(_CLAUSE_END.split(output[span[1] :])[0])[:MAX_NEIGHBOURS]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _split(words: list[str]) -> tuple[str, list[str], list[str]]:
    """The head of a phrase (its last word before a preposition), the words before it, and the words after it."""
    first = next((i for i, word in enumerate(words) if i and word in _PREPOSITIONS), len(words))
    return (words[first - 1], words[: first - 1], words[first:]) if words else ("", [], [])


def _has_owner(head: str, modifiers: list[str], after: list[str]) -> bool:
    """Whether the part has an owner: "the dog's left side", "the window on the bus". A part of the image is a place."""
    if any(word.endswith("'s") for word in modifiers):
        return True
    joined = ("of",) if head in _LOCATION else ("of", "on")
    return bool(after) and after[0] in joined and not _CONTEXT.intersection(after)


def _described_by(words: list[str]) -> Concept | None:
    """The concept of the first describing word, up to the next noun phrase; None without one."""
    for i, word in enumerate(words):
        if word in _TOWARDS and _LOCATION.intersection(words[i + 1 : i + 3]):
            return "location"
        for concept, known in _DESCRIBING:
            if word in known:
                return concept
        if word in _AND or (i and word in _DETERMINERS):
            break
    return None
