"""Plain text about the nouns of the built-in suite: for backbones from scratch, and for pretraining (eq. 3)."""

import random

from .builtin import _draw
from .builtin_families import CATEGORIES, KIND, LABELS, NOUNS, POSITIONS, TIMES, _at, _of
from .builtin_families import with_article as _a

NAMES = ("anna", "bob", "carl", "dora", "emma", "fred")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_ONE_WORD_POSITIONS = [position for position in POSITIONS if " " not in position]


def _and(items):
    return " and ".join(filter(None, (" , ".join(items[:-1]), items[-1])))


def _facts(rng, number, facts):
    return " . ".join(rng.sample(facts, min(number, len(facts))))


def _story(rng):
    who, (x, y, z) = rng.choice(NAMES), rng.sample(NOUNS, 3)
    kinds = _and([f"the {noun} is {_a(KIND[noun])}" for noun in (x, y, z)])
    return (
        f"{who} has {_and([_a(x), _a(y), _a(z)])} . {kinds} . {who} put the {x} and the {y} in a box . "
        f"the {z} is not in the box ."
    )


def _places(rng):
    words, who, facts = _draw(rng), rng.choice(NAMES), []
    for p, i in POSITIONS.items():
        kind = KIND[words[i]]
        facts += [f"the {p} word is {words[i]} , which names {_a(kind)}", f"in the {p} place stands {words[i]}"]
        facts += [f"{who} can find the {p} word , {words[i]}", f"what kind of thing is the {p} , some {kind}"]
    return f"{' '.join(words)} . {_facts(rng, 4, facts)} ."


def _copies(rng):
    words, (who, other) = _draw(rng), rng.sample(NAMES, 2)
    text, verb = " ".join(words), rng.choice(("repeat", "copy", "write"))
    return (
        f"{who} reads {text} . {other} can {verb} everything in order , {text} . "
        f"from the end to the start it is {' '.join(words[::-1])} ."
    )


def _changes(rng):
    words, who = _draw(rng), rng.choice(NAMES)
    text = f"{' '.join(words)} ."
    for change in rng.sample(("remove", "replace", "add"), 2):
        old, new = rng.choice(words), rng.choice([noun for noun in NOUNS if noun not in words])
        if change == "remove":
            words = [word for word in words if word != old]
            what = rng.choice((f"remove {old}", f"leave out {old}", f"drop {old}"))
        elif change == "replace":
            words = [new if word == old else word for word in words]
            what = rng.choice((f"replace {old} by {new}", f"put {new} instead of {old}", f"change {old} into {new}"))
        else:
            words, what = [*words, new], f"add {new} at the end"
        text += f" then {who} will {what} , that is {' '.join(words)} ."
    return text


def _kinds(rng):
    words, facts = _draw(rng), []
    for kind in dict.fromkeys([*(KIND[word] for word in words), rng.choice(list(CATEGORIES))]):
        found = _of(words, kind)
        facts.append(f"how many {kind}s , {NUMBERS[len(found)]}" + (f" , {_and(found)}" if found else ""))
        if len(found) > 1:
            facts.append(f"the first {kind} is {found[0]} and the last {kind} is {found[-1]}")
    return f"{' '.join(words)} . {_facts(rng, 5, facts)} ."


def _categories(rng):
    kind, other = rng.sample(list(CATEGORIES), 2)
    (*members, known), (x, y) = rng.sample(CATEGORIES[kind], 6), rng.sample(CATEGORIES[other], 2)
    return (
        f"{_and(members)} are {kind}s . {x} and {y} are {other}s . {x} is not {_a(kind)} , it is {_a(other)} . "
        f"{known} is {_a(kind)} . {members[0]} belongs to the {kind}s and {y} to the {other}s ."
    )


def _signs(rng):
    who, kind, (yes, no) = rng.choice(NAMES), rng.choice(list(CATEGORIES)), rng.choice(LABELS)
    nouns = [*rng.sample(CATEGORIES[kind], 2), *rng.sample(NOUNS, 2)]
    rng.shuffle(nouns)
    shown = " . ".join(f"for {noun} it is {yes if KIND[noun] == kind else no}" for noun in nouns)
    return f"{who} has two signs , {yes} and {no} . {yes} is for any {kind} , otherwise it is {no} . {shown} ."


def _echoes(rng):
    words, (who, other) = _draw(rng), rng.sample(NAMES, 2)
    (p, q), r = rng.sample(_ONE_WORD_POSITIONS, 2), rng.choice(list(POSITIONS))
    times, extra = rng.choice(list(TIMES)), rng.choice(NOUNS)
    facts = [
        f"{who} can say the {r} {times} , {' '.join([_at(words, r)] * TIMES[times])}",
        f"{other} can give both the {p} and the {q} , {_at(words, p)} {_at(words, q)}",
        f"{who} can take the {q} followed by {extra} , {_at(words, q)} {extra}",
    ]
    return f"{' '.join(words)} . {_facts(rng, 3, facts)} ."


THEMES = (_story, _places, _copies, _changes, _kinds, _categories, _signs, _echoes)


def builtin_text(seed: int = 0, passages: int = 20000) -> list[str]:
    """Returns passages of about 25 to 50 words in the suite's vocabulary, without its instructions.

    The end of a passage can be predicted from its beginning: entities, lists and their order recur.
    """
    rng = random.Random(f"{seed} text")
    return [rng.choice(THEMES)(rng) for _ in range(passages)]
