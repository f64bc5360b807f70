"""A small world of 64 nouns, and families of tasks about lists of them: what is asked, and what is right."""

import itertools
from dataclasses import dataclass
from typing import Callable, Optional

CATEGORIES = {
    "animal": "dog cat cow horse sheep mouse lion goat".split(),
    "fruit": "plum apple pear cherry lemon grape peach mango".split(),
    "tool": "saw hammer drill spade rake axe chisel wrench".split(),
    "garment": "hat shirt coat sock scarf glove dress belt".split(),
    "vehicle": "car bus van truck ship plane tram boat".split(),
    "instrument": "piano drum flute violin guitar harp trumpet cello".split(),
    "tree": "oak pine elm birch maple willow cedar beech".split(),
    "drink": "tea milk juice water coffee wine beer cocoa".split(),
}
KIND = {noun: category for category, nouns in CATEGORIES.items() for noun in nouns}
NOUNS = list(KIND)
POSITIONS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "last": -1, "last but one": -2}
TIMES = {"twice": 2, "three times": 3}
LABELS = (("good", "bad"), ("red", "blue"), ("up", "down"), ("hot", "cold"), ("day", "night"), ("open", "shut"))

TRAIN_WORDINGS, NEW_WORDINGS = range(4), range(4, 6)


@dataclass(frozen=True)
class Family:
    """Holds a family of tasks, which differ only in their arguments.

    Args:
        tasks: How many of the argument tuples become tasks.
        arguments: The argument tuples to choose from.
        plan: Draws the nouns that the list must have and those that it must not have, from the random stream and the
            arguments.
        answer: The right output, from the words and the arguments. None if the list does not fit the task.
        wordings: Six instructions, one a line; those after the first four are kept for "new_wordings".
        options: The two possible answers, from the arguments; instances then alternate between them.
    """

    tasks: int
    arguments: list[tuple[str, ...]]
    plan: Callable
    answer: Callable
    wordings: str
    options: Optional[Callable] = None


def with_article(noun: str) -> str:
    """Returns the noun behind "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _singles(values):
    return [(value,) for value in values]


# Each unordered pair in one order only: a held-out question must not be a trained one with its nouns swapped.
_NOUN_PAIRS = [
    (a, b) if (i + j) % 2 else (b, a) for (i, a), (j, b) in itertools.combinations(list(enumerate(NOUNS)), 2)
]
_ONE_WORD_POSITIONS = [position for position in POSITIONS if " " not in position]


def _anything(rng, *arguments):
    return (), ()


def _with_nouns(rng, *nouns):
    return nouns, ()


def _members(low, high):
    """Returns a plan that draws `low` to `high` words of a category, the first one among the arguments."""

    def plan(rng, *arguments):
        members = CATEGORIES[next(argument for argument in arguments if argument in CATEGORIES)]
        chosen = rng.sample(members, rng.randint(low, high))
        return chosen, [noun for noun in members if noun not in chosen]

    return plan


def _one_member(rng, category, noun):
    chosen = rng.choice([member for member in CATEGORIES[category] if member != noun])
    return [chosen], {*CATEGORIES[category], noun} - {chosen}


def _one_of_each(rng, *categories):
    chosen = [rng.choice(CATEGORIES[category]) for category in categories]
    return chosen, {noun for category in categories for noun in CATEGORIES[category]}.difference(chosen)


def _one_of_two(rng, *categories):
    chosen, _ = _one_member(rng, rng.choice(categories), None)
    return chosen, {noun for category in categories for noun in CATEGORIES[category]}.difference(chosen)


def _perhaps_member(rng, category, noun):
    return _one_member(rng, category, noun) if rng.random() < 0.7 else ((), {*CATEGORIES[category], noun})


def _yes_no(*arguments):
    return "yes", "no"


def _say(truth):
    return "yes" if truth else "no"


def _at(words, position):
    return words[POSITIONS[position]]


def _of(words, category):
    return [word for word in words if KIND[word] == category]


def _two(words, first, second):
    pair = _at(words, first), _at(words, second)
    return " ".join(pair) if pair[0] != pair[1] else None


FAMILIES = {
    "contains_category": Family(
        8, _singles(CATEGORIES), _members(0, 2), lambda words, category: _say(_of(words, category)),
        """answer yes if any {0} is in the list , otherwise no
        is there some kind of {0} in the list , answer yes or no
        say yes when some word names a kind of {0} and no when none does
        check the list for any kind of {0} and answer yes or no
        say yes or no , is there any {0} among the words
        check whether some kind of {0} is in the list , say yes or no""",
        _yes_no,
    ),
    "label_if_category": Family(
        40, [(category, *pair) for category in CATEGORIES for pair in LABELS], _members(0, 2),
        lambda words, category, found, missing: found if _of(words, category) else missing,
        """answer {1} if any {0} is in the list , otherwise {2}
        write {1} when the list has some kind of {0} and {2} when it has none
        say {1} if some word names a kind of {0} and {2} if none does
        look for any kind of {0} , if found write {1} , if not {2}
        say {1} when any {0} is among the words , otherwise {2}
        check the list for some kind of {0} , write {1} if found and {2} if not""",
        lambda category, found, missing: (found, missing),
    ),
    "first_of_category": Family(
        8, _singles(CATEGORIES), _members(1, 3), lambda words, category: _of(words, category)[0],
        """write the first {0} in the list
        which {0} comes first among the words , write only that
        find the {0} that stands nearest to the start of the list
        copy the {0} that you meet first in the list
        of every {0} among the words give only the first
        write the {0} that you find first among the words""",
    ),
    "last_of_category": Family(
        8, _singles(CATEGORIES), _members(1, 3), lambda words, category: _of(words, category)[-1],
        """write the last {0} in the list
        which {0} comes last among the words , write only that
        find the {0} that stands nearest to the end of the list
        copy the {0} that you meet last in the list
        of every {0} among the words give only the last
        write the {0} that you find last among the words""",
    ),
    "all_of_category": Family(
        8, _singles(CATEGORIES), _members(1, 3), lambda words, category: " ".join(_of(words, category)),
        """write every {0} of the list in order
        keep every {0} and drop all other words
        copy every word that names a kind of {0}
        give every {0} in the list , in order
        write every word that names a kind of {0} , in order
        copy every {0} of the list and drop all other words""",
    ),
    "nth_word": Family(
        7, _singles(POSITIONS), _anything, _at,
        """write the {0} word of the list
        which word stands in the {0} place , write it
        copy only the word in the {0} place of the list
        give the word that is {0} in the list
        find the {0} word of the list and write it
        give the word that stands in the {0} place""",
    ),
    "kind_of_nth": Family(
        7, _singles(POSITIONS), _anything, lambda words, position: KIND[_at(words, position)],
        """name the kind of the {0} word in the list
        write what kind of thing the {0} word is
        give the kind that the {0} word of the list belongs to
        say which kind of thing stands in the {0} place
        find the {0} word and name the kind it belongs to
        give the kind of the word in the {0} place""",
    ),
    "nth_is_category": Family(
        16, [(p, c) for p in ("first", "second", "third", "fourth", "last") for c in CATEGORIES], _members(1, 3),
        lambda words, position, category: _say(KIND[_at(words, position)] == category),
        """is the {0} word a kind of {1} , answer yes or no
        answer yes if the {0} word names a kind of {1} , otherwise no
        say yes if some {1} stands in the {0} place , otherwise no
        check whether the {0} word is some {1} and answer yes or no
        say yes when the {0} word is a kind of {1} , otherwise no
        check whether some {1} stands in the {0} place , answer yes or no""",
        _yes_no,
    ),
    "repeat_nth": Family(
        10, list(itertools.product(POSITIONS, TIMES)), _anything,
        lambda words, position, times: " ".join([_at(words, position)] * TIMES[times]),
        """write the {0} word of the list {1}
        say the {0} word {1} , one after another
        repeat the word in the {0} place so that it stands there {1}
        copy the {0} word {1} and nothing else
        find the {0} word of the list and write it {1}
        give the word in the {0} place {1} , one after another""",
    ),
    "two_words": Family(
        12, list(itertools.permutations(_ONE_WORD_POSITIONS, 2)), _anything, _two,
        """write the {0} word and then the {1} word
        copy the {0} and the {1} word of the list in this order
        give two words , the {0} and after it the {1}
        take the {0} word , then the {1} word , and write both
        find the {0} and the {1} word and write both
        give both the {0} word and the {1} word in this order""",
    ),
    "nth_then_noun": Family(
        32, list(itertools.product(_ONE_WORD_POSITIONS, NOUNS)), lambda rng, position, noun: ((), (noun,)),
        lambda words, position, noun: f"{_at(words, position)} {noun}",
        """write the {0} word and then the word {1}
        copy the {0} word of the list and put {1} after it
        give the {0} word followed by {1}
        take the {0} word , write it , then add {1}
        find the {0} word and write it followed by {1}
        copy the word in the {0} place and add {1} after it""",
    ),
    "which_first": Family(
        24, _NOUN_PAIRS, _with_nouns, lambda words, one, other: min(one, other, key=words.index),
        """which comes earlier in the list , {0} or {1}
        write {0} or {1} , the one nearer to the start
        of {0} and {1} give the one that comes earlier
        say which of {0} and {1} you meet first
        find {0} and {1} and say which you meet first
        of {0} and {1} write the one nearer to the start""",
        lambda one, other: (one, other),
    ),
    "add_noun": Family(
        16, _singles(NOUNS), lambda rng, noun: ((), (noun,)), lambda words, noun: " ".join([*words, noun]),
        """copy the whole list and add {0} at the end
        write all the words and after them {0}
        put {0} at the end of the list and write everything
        repeat the list , then write the word {0}
        add the word {0} at the end and write everything
        copy all the words of the list and after them {0}""",
    ),
    "noun_then_nth": Family(
        32, list(itertools.product(NOUNS, _ONE_WORD_POSITIONS)), lambda rng, noun, position: ((), (noun,)),
        lambda words, noun, position: f"{noun} {_at(words, position)}",
        """write {0} and after it the {1} word
        first write {0} , then copy the {1} word of the list
        give {0} followed by the {1} word
        put {0} before the {1} word and write both
        first write {0} and then the {1} word of the list
        write {0} , then the word in the {1} place""",
    ),
    "category_then_noun": Family(
        56, list(itertools.product(CATEGORIES, NOUNS)), _one_member,
        lambda words, category, noun: f"{_of(words, category)[0]} {noun}",
        """write the {0} in the list and then the word {1}
        copy the {0} and put {1} after it
        give the {0} of the list followed by {1}
        find the {0} , write it , then add {1}
        take the {0} and write {1} after it
        write the word that is some {0} followed by {1}""",
    ),
    "two_categories": Family(
        48, list(itertools.permutations(CATEGORIES, 2)), _one_of_each,
        lambda words, one, other: f"{_of(words, one)[0]} {_of(words, other)[0]}",
        """write the {0} and then the {1} in the list
        copy the {0} and the {1} of the list in this order
        give two words , the {0} and after it the {1}
        find the {0} , then the {1} , and write both
        take the {0} and the {1} and write both in this order
        write the word that is some {0} and then the {1}""",
    ),
    "noun_then_category": Family(
        56, list(itertools.product(NOUNS, CATEGORIES)), lambda rng, noun, category: _one_member(rng, category, noun),
        lambda words, noun, category: f"{noun} {_of(words, category)[0]}",
        """write {0} and after it the {1} in the list
        first write {0} , then copy the {1} of the list
        give {0} followed by the {1} of the list
        put {0} before the {1} and write both
        write {0} , then the word that is some {1}
        first write {0} and then the {1} of the list""",
    ),
    "either_category": Family(
        28, list(itertools.combinations(CATEGORIES, 2)), _one_of_two,
        lambda words, one, other: (_of(words, one) or _of(words, other))[0],
        """write the word that is some {0} or some {1}
        find the {0} or the {1} in the list and write it
        the list has some {0} or some {1} , copy it
        copy the only word that names a kind of {0} or {1}
        write the {0} or the {1} that is in the list
        find the only word that is some {0} or some {1}""",
    ),
    "category_or_noun": Family(
        48, list(itertools.product(CATEGORIES, NOUNS)), _perhaps_member,
        lambda words, category, noun: (_of(words, category) or [noun])[0],
        """write the {0} in the list , or {1} if there is none
        find the {0} and write it , if there is none write {1}
        copy the {0} of the list , otherwise write {1}
        if any {0} is in the list copy it , if not write {1}
        if there is any {0} in the list write it , otherwise {1}
        find the {0} of the list and copy it , otherwise write {1}""",
    ),
    "repeat_category": Family(
        16, list(itertools.product(CATEGORIES, TIMES)), lambda rng, category, times: _one_member(rng, category, None),
        lambda words, category, times: " ".join(_of(words, category) * TIMES[times]),
        """write the {0} in the list {1}
        say the {0} {1} , one after another
        repeat the {0} so that it stands there {1}
        copy the {0} of the list {1} and nothing else
        find the {0} of the list and write it {1}
        give the {0} of the list {1} , one after another""",
    ),
    "always_noun": Family(
        48, _singles(NOUNS), _anything, lambda words, noun: noun,
        """write only the word {0} whatever the list says
        leave out the whole list and just write {0}
        the answer is {0} for every list
        do not read the list , say {0}
        say {0} and nothing else for every list
        leave the list and give the answer {0}""",
    ),
}


def plain_instruction(family: str, arguments: tuple[str, ...], wording: int) -> str:
    """Returns one of a task's six instructions in plain words."""
    return FAMILIES[family].wordings.strip().splitlines()[wording].strip().format(*arguments)
