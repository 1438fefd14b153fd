"""Word classes of English answers about images, by lists of closed classes, suffixes and neighbours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tagged:
    """A word or mark: characters [first, end) of the text.

    `tag`: DET, POSS, NUM, ADJ, NOUN, ADV, OWNER ('s), or OTHER for all that ends a noun phrase; "" so far unknown.
    """

    text: str
    first: int
    end: int
    tag: str = ""

    @property
    def low(self) -> str:
        return self.text.lower()


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ARTICLES = _set("a an the")
_PREDETERMINERS = _set("all both half such")
_DETERMINERS = _set("some any no each every either neither another various what which") | _ARTICLES | _PREDETERMINERS
_POINTING = _set("this that these those")
_POSSESSIVES = _set("my your his her its our their whose")
_NUMBERS = _set(
    "one two three four five six seven eight nine ten eleven twelve twenty hundred dozen several many few more "
    "most fewer less much"
)
_SUBJECTS = _set("i you he she it we they who that which")
_SUBJECTS_AND_AUXILIARIES = _SUBJECTS | _set(
    "is are was were be been being has have had having get gets got not look looks appear appears seem seems"
)
_OTHER = _set(
    # pronouns
    "i you he she it we they me him them us who whom there itself themselves himself herself myself yourself "
    "something someone somebody anything anyone everything everyone nothing nobody none mine yours hers ours "
    "theirs "
    # prepositions and conjunctions
    "in on at of to from by with without within into onto over under above below behind beside besides between "
    "among amongst around through throughout across along against near toward towards upon off up down out about "
    "after before during for since until till like as than per via beneath underneath inside outside opposite "
    "past despite except atop alongside amid and or but nor so yet if because while whereas although though when "
    "where why how whether unless "
    # auxiliaries
    "is are was were be been being am has have had having do does did done doing can could will would shall "
    "should may might must cannot 'm 're 've 'll 'd "
    # words that begin or carry sentences
    "yes okay sorry sure please let here then however therefore thus also too instead ready upside barefoot"
)
_ADVERBS = _set(
    "not very quite rather slightly partially fully mostly mainly almost nearly just only even still again "
    "always never often sometimes perhaps maybe away apart together back forward ahead far nearby well now "
    "already otherwise approximately roughly extremely highly completely clearly closely really somewhat most "
    "more less least sideways upward upwards downward downwards forwards backwards inward inwards outward "
    "outwards upright closer"
)
_ADJECTIVES = _set(
    "red orange yellow green blue purple violet pink brown black white gray grey beige golden silver turquoise "
    "maroon tan dark light bright pale dull shiny transparent clear colorful colourful large small big tiny huge "
    "little tall short long wide narrow thick thin round square rectangular circular oval flat curved straight "
    "sharp pointed pointy smooth rough soft hard old young new modern ancient wooden metal metallic plastic "
    "woolen leather empty full open closed left right upper lower top bottom middle central front rear main "
    "single double several different same similar other certain various whole entire visible clean dirty wet dry "
    "hot cold warm cool fresh sunny cloudy calm busy quiet good bad nice beautiful happy sad first second third "
    "fourth fifth last next previous own real fake natural urban rural heavy high low deep shallow close distant "
    "overall general specific possible likely able available true false striped spotted fluffy furry hairy bare "
    "blonde blond bald lit elderly male female adult key total average friendly lovely lonely lively silly curly "
    "early only tropical medium plain vertical horizontal diagonal aerial dining pretty cute"
)
_NOUNS = _set(
    "building ceiling clothing railing painting thing morning evening wing ring string king swing spring wedding "
    "sling setting drawing opening lighting flooring frosting icing bed shed seed weed feed sled reed family "
    "butterfly fly jelly belly lily ally assembly bully reply supply water glass grass dress bus lens iris "
    "canvas cactus octopus campus circus virus class mess compass mattress address fish dish table vegetable "
    "cable label bible people men women children feet teeth mice sheep back side top bottom left right front "
    "middle center image leaves ladle handle motive olive native fabric plastic graphic mechanic logic music "
    "clinic picnic topic public traffic hand head face picture photo scene light sign can stop"
)
_IN_PHRASE = ("DET", "POSS", "ADJ", "NUM", "OWNER", "NOUN")
_PLURALS = _set("men women children people feet teeth mice sheep geese police")
# What answers about images do.
_VERBS = _set(
    "show feature depict appear seem look sit stand lie rest lean hang hold wear carry ride walk run play eat "
    "drink face point turn fly swim jump sleep smile look watch read cook cut wait rise fall drive park move "
    "stop start begin contain include consist surround cover fill line display suggest indicate create give make "
    "take put place set keep add lead reach extend stretch connect attach mount belong come go get see view "
    "notice find identify say tell ask answer mean use work help serve provide enjoy prepare reflect resemble "
    "represent locate position arrange decorate situate capture stay remain become need want know think believe "
    "describe mention refer convey emphasize highlight perch graze sail float grow bloom shine glow cast throw "
    "catch hit kick pull push open close touch reach peek gaze stare engage gather"
)
_IRREGULAR = _set(
    "sat stood lay lying lain hung held wore worn rode ridden ran ate eaten drank flew flown swam slept read cut "
    "rose fell drove driven began begun gave given made took taken put set kept led came gone went got gotten "
    "saw seen found said told meant grown grew shone thrown threw caught known knew thought become became "
    "written drawn built shown sits"
)
_ADJECTIVE_ENDINGS = ("ous", "ful", "ish", "ive", "less", "able", "ible", "ical", "ular", "ic", "esque")
_NOUN_ENDINGS = ("tion", "sion", "ment", "ness", "ity", "ship", "hood", "ance", "ence", "ism", "ist")


def _forms(verb: str) -> set[str]:
    stem = verb[:-1] if verb.endswith("e") else verb
    doubled = verb + verb[-1] if verb[-1] in "gmnpt" and verb[-2] in "aeiou" and verb[-3:-2] not in "aeiou" else verb
    third = verb[:-1] + "ies" if verb[-1] == "y" and verb[-2] not in "aeiou" else verb
    if not third.endswith("ies"):
        third += "es" if third.endswith(("s", "sh", "ch", "x", "go")) else "s"
    past = verb[:-1] + "ied" if third.endswith("ies") else stem + "ed"
    return {verb, third, past, stem + "ing", doubled + "ed", doubled + "ing"}


_VERB_FORMS = frozenset().union(*(_forms(verb) for verb in _VERBS)) | _IRREGULAR


def tag(words: list[Tagged]) -> list[Tagged]:
    """The words with their tags, from left to right: a word's tag may depend on the one before it."""
    for i, word in enumerate(words):
        before = words[i - 1] if i else None
        after = words[i + 1] if i + 1 < len(words) else None
        word.tag = _tag(word.low, before, after)
    return words


def _tag(word: str, before: Tagged | None, after: Tagged | None) -> str:
    opened = before is not None and before.tag in ("DET", "POSS", "ADJ", "NUM", "OWNER")  # no noun so far
    if word in ("'s", "’s", "'", "’"):
        return "OWNER" if before is not None and before.tag == "NOUN" and _may_go_on(after) else "OTHER"
    if not word[0].isalnum():
        return "OTHER"
    if word[0].isdigit():
        return "NUM"
    if word in _POINTING:
        return "DET" if _may_go_on(after) and not (before is not None and before.tag == "NOUN") else "OTHER"
    if word == "one" and opened and not _may_go_on(after):
        return "NOUN"
    return _closed_class(word, before, after) or _open_class(word, before, after, opened)


def _closed_class(word: str, before: Tagged | None, after: Tagged | None) -> str | None:
    if word in _DETERMINERS:
        over = word in _PREDETERMINERS and after is not None and after.low in _ARTICLES  # "all the dogs"
        return "DET" if word in _ARTICLES or over or _may_go_on(after) else "OTHER"
    if word in _POSSESSIVES:
        return "POSS" if _may_go_on(after) else "OTHER"
    if word in _NUMBERS:
        return "NUM"
    if word in _NOUNS and before is not None and before.tag in _IN_PHRASE and _finite_verb(after):
        return "NOUN"  # "the light shows", "the one on the left looks"
    if word in _ADJECTIVES and (_may_go_on(after) or word not in _NOUNS):
        return "ADJ"
    if word == "can" and before is not None and before.tag == "NOUN":
        return "OTHER"
    if word in _NOUNS and before is not None and before.tag in _IN_PHRASE:
        return "NOUN"
    if word in _OTHER:
        return "OTHER"
    if word in _ADVERBS or (word.endswith("ly") and word not in _NOUNS and len(word) > 4):
        return "ADV"
    return None


def _open_class(word: str, before: Tagged | None, after: Tagged | None, opened: bool) -> str:
    if word in _VERB_FORMS and word not in _NOUNS:
        return _verb_or_not(word, before, after, opened)
    if word in _NOUNS:
        return "NOUN"
    if word.endswith(("ing", "ed")) and len(word) > 4:
        return _verb_or_not(word, before, after, opened)
    if word.endswith("s") and not word.endswith("ss") and _singular_noun(before) and _object_follows(after):
        return "OTHER"  # "the boy performs a trick"
    if word.endswith(_ADJECTIVE_ENDINGS) and not word.endswith(_NOUN_ENDINGS) and len(word) > 4:
        return "ADJ" if _may_go_on(after) or not opened else "NOUN"
    if before is not None and before.low in _SUBJECTS_AND_AUXILIARIES:
        # "which protects", "is tied", "are deep"; but "they are dogs"
        plural = word.endswith("s") and before.low in ("is", "are", "was", "were")
        return "NOUN" if plural or _may_go_on(after) and before.low not in _SUBJECTS else "OTHER"
    return "NOUN"


def _verb_or_not(word: str, before: Tagged | None, after: Tagged | None, opened: bool) -> str:
    """A participle before a noun is an adjective, a verb form after an article is a noun, the rest are verbs."""
    if word.endswith(("ing", "ed", "en")) and opened:
        return "ADJ" if _may_go_on(after) else "NOUN" if word.endswith("ing") else "OTHER"
    if opened:
        return "NOUN"
    if word.endswith("ed") and _may_go_on(after) and (before is None or before.tag == "OTHER"):
        return "ADJ" if before is None or not _subject_or_auxiliary(before) else "OTHER"  # "with melted cheese"
    if word not in _VERBS:
        return "OTHER"
    starts = (before is None or not before.low[0].isalnum()) and not _may_go_on(after)  # "View of a street."
    after_preposition = before is not None and before.low in ("of", "in", "on", "with", "for", "at")
    return "NOUN" if starts or after_preposition or _singular_noun(before) else "OTHER"  # "a skate park"


def _singular_noun(word: Tagged | None) -> bool:
    return word is not None and word.tag == "NOUN" and not word.low.endswith("s") and word.low not in _PLURALS


def _finite_verb(word: Tagged | None) -> bool:
    return word is not None and word.low in _VERB_FORMS - _NOUNS and not word.low.endswith(("ing", "ed"))


def _object_follows(word: Tagged | None) -> bool:
    return word is not None and (word.low in _ARTICLES or word.low in _POSSESSIVES or word.low == "up")


def _subject_or_auxiliary(word: Tagged) -> bool:
    return word.low in _SUBJECTS_AND_AUXILIARIES


def _may_go_on(after: Tagged | None) -> bool:
    """Whether the next word may still belong to a noun phrase: not a mark, preposition, auxiliary or pronoun."""
    if after is None or not after.low[0].isalnum() or after.low == "next":  # "a light next to it"
        return False
    return after.low not in _OTHER and after.low not in _ARTICLES and after.low not in _POSSESSIVES
