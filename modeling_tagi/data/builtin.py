"""A small world of 64 nouns: instruction tasks about word lists, and plain text about the same words.

Everything is generated, so a hypernetwork for a tiny T5 can be trained and tested without a download. A task is a
family with its arguments ("word_after:plum"), an instance is a list of 5 to 8 nouns. Some (family, argument) pairs
are held out; their words are arguments of other tasks in training.
"""

import itertools
import random
import zlib
from dataclasses import dataclass
from typing import Callable, Optional

from .records import Record, Splits


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
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
LABELS = (("good", "bad"), ("red", "blue"), ("up", "down"), ("hot", "cold"), ("day", "night"), ("open", "shut"))
NAMES = ("anna", "bob", "carl", "dora", "emma", "fred")

TRAIN_WORDINGS, NEW_WORDINGS = range(4), range(4, 6)
UNSEEN_SHARE, DEV_SHARE = 0.16, 0.07
NEW_WORDINGS_PER_FAMILY = 3


@dataclass(frozen=True)
class Family:
    """Tasks that differ in their arguments only.

    Args:
        tasks: How many of the argument tuples become tasks.
        arguments: The argument tuples to choose from.
        plan: Draws (nouns the list must have, nouns it must not have), from the random stream and the arguments.
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

    def instruction(self, wording: int, arguments: tuple[str, ...]) -> str:
        return self.wordings.strip().splitlines()[wording].strip().format(*arguments)


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


def _perhaps_noun(rng, noun):
    return ((noun,), ()) if rng.random() < 0.5 else ((), (noun,))


def _members(low, high):
    """A plan for between `low` and `high` words of the category that is the first category among the arguments."""

    def plan(rng, *arguments):
        members = CATEGORIES[next(argument for argument in arguments if argument in CATEGORIES)]
        chosen = rng.sample(members, rng.randint(low, high))
        return chosen, [noun for noun in members if noun not in chosen]

    return plan


def _yes_no(*arguments):
    return "yes", "no"


def _say(truth):
    return "yes" if truth else "no"


def _at(words, position):
    return words[POSITIONS[position]]


def _of(words, category):
    return [word for word in words if KIND[word] == category]


def _beside(words, noun, step):
    place = words.index(noun) + step
    return words[place] if 0 <= place < len(words) else None


def _two(words, first, second):
    pair = _at(words, first), _at(words, second)
    return " ".join(pair) if pair[0] != pair[1] else None


FAMILIES = {
    "contains_noun": Family(
        36, _singles(NOUNS), _perhaps_noun, lambda words, noun: _say(noun in words),
        """answer yes if the word {0} is in the list , otherwise no
        is the word {0} in the list , answer yes or no
        say yes when {0} is among the words and no when it is not
        check the list for the word {0} and answer yes or no
        say yes or no , is {0} among the words of the list
        check whether the word {0} is in the list , say yes or no""",
        _yes_no,
    ),
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
        48, [(category, *pair) for category in CATEGORIES for pair in LABELS], _members(0, 2),
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
        of the {0}s among the words give only the first
        write the {0} that stands first among the {0}s""",
    ),
    "last_of_category": Family(
        8, _singles(CATEGORIES), _members(1, 3), lambda words, category: _of(words, category)[-1],
        """write the last {0} in the list
        which {0} comes last among the words , write only that
        find the {0} that stands nearest to the end of the list
        copy the {0} that you meet last in the list
        of the {0}s among the words give only the last
        write the {0} that stands last among the {0}s""",
    ),
    "all_of_category": Family(
        8, _singles(CATEGORIES), _members(1, 3), lambda words, category: " ".join(_of(words, category)),
        """write all the {0}s of the list in order
        keep only the {0}s and drop all other words
        copy every word that names a kind of {0}
        give every {0} in the list , in order
        write every word that names a kind of {0} , in order
        keep all the {0}s of the list and leave out the rest""",
    ),
    "count_category": Family(
        8, _singles(CATEGORIES), _members(0, 3), lambda words, category: NUMBERS[len(_of(words, category))],
        """count the {0}s in the list and write the number
        how many words name a kind of {0} , write the number
        write the number of {0}s among the words
        say how many {0}s there are in the list
        give the number of words that name a kind of {0}
        how many {0}s are among the words , say the number""",
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
        40, [(p, c) for p in ("first", "second", "third", "fourth", "last") for c in CATEGORIES], _members(1, 3),
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
        14, list(itertools.product(POSITIONS, TIMES)), _anything,
        lambda words, position, times: " ".join([_at(words, position)] * TIMES[times]),
        """write the {0} word of the list {1}
        say the {0} word {1} , one after another
        repeat the word in the {0} place so that it stands there {1}
        copy the {0} word {1} and nothing else
        find the {0} word of the list and write it {1}
        give the word in the {0} place {1} , one after another""",
    ),
    "two_words": Family(
        30, list(itertools.permutations(_ONE_WORD_POSITIONS, 2)), _anything, _two,
        """write the {0} word and then the {1} word
        copy the {0} and the {1} word of the list in this order
        give two words , the {0} and after it the {1}
        take the {0} word , then the {1} word , and write both
        find the {0} and the {1} word and write both
        give both the {0} word and the {1} word in this order""",
    ),
    "nth_then_noun": Family(
        48, list(itertools.product(_ONE_WORD_POSITIONS, NOUNS)), lambda rng, position, noun: ((), (noun,)),
        lambda words, position, noun: f"{_at(words, position)} {noun}",
        """write the {0} word and then the word {1}
        copy the {0} word of the list and put {1} after it
        give the {0} word followed by {1}
        take the {0} word , write it , then add {1}
        find the {0} word and write it followed by {1}
        copy the word in the {0} place and add {1} after it""",
    ),
    "word_after": Family(
        48, _singles(NOUNS), _with_nouns, lambda words, noun: _beside(words, noun, 1),
        """write the word that comes right after {0}
        which word follows {0} in the list , write it
        find {0} and copy the next word of the list
        give the word that stands just after {0}
        write the word that follows {0} in the list
        find {0} in the list and give the word right after it""",
    ),
    "word_before": Family(
        48, _singles(NOUNS), _with_nouns, lambda words, noun: _beside(words, noun, -1),
        """write the word that comes right before {0}
        which word precedes {0} in the list , write it
        find {0} and copy the previous word of the list
        give the word that stands just before {0}
        write the word that precedes {0} in the list
        find {0} in the list and give the word right before it""",
    ),
    "kind_after": Family(
        32, _singles(NOUNS), _with_nouns, lambda words, noun: KIND.get(_beside(words, noun, 1)),
        """name the kind of the word after {0}
        write what kind of thing comes right after {0}
        find {0} and give the kind of the next word
        say which kind of thing follows {0} in the list
        give the kind that the word after {0} belongs to
        name the kind of thing that stands just after {0}""",
    ),
    "which_first": Family(
        48, _NOUN_PAIRS, _with_nouns, lambda words, one, other: min(one, other, key=words.index),
        """which comes earlier in the list , {0} or {1}
        write {0} or {1} , the one nearer to the start
        of {0} and {1} give the one that comes earlier
        say which of {0} and {1} you meet first
        find {0} and {1} and say which you meet first
        of {0} and {1} write the one nearer to the start""",
        lambda one, other: (one, other),
    ),
    "replace_noun": Family(
        36, _NOUN_PAIRS, lambda rng, old, new: ((old,), (new,)),
        lambda words, old, new: " ".join(new if word == old else word for word in words),
        """copy the list but write {1} in place of {0}
        replace the word {0} by {1} and write the whole list
        change {0} into {1} and keep all other words
        write all the words with {1} instead of {0}
        write the whole list with {1} in place of {0}
        replace {0} by {1} and copy all other words""",
    ),
    "add_noun": Family(
        32, _singles(NOUNS), lambda rng, noun: ((), (noun,)), lambda words, noun: " ".join([*words, noun]),
        """copy the whole list and add {0} at the end
        write all the words and after them {0}
        put {0} at the end of the list and write everything
        repeat the list , then write the word {0}
        add the word {0} at the end and write everything
        copy all the words of the list and after them {0}""",
    ),
    "without_noun": Family(
        24, _singles(NOUNS), _with_nouns, lambda words, noun: " ".join(word for word in words if word != noun),
        """copy the list but leave out {0}
        remove {0} and write all other words in order
        write the whole list without the word {0}
        drop the word {0} and keep the rest of the list
        leave out {0} and copy all other words
        remove the word {0} and write the rest of the list""",
    ),
}


def _draw(rng, include=(), exclude=(), evaluation=False):
    """Five to eight words. A checksum of the list says whether it may be used for evaluation or only in training, so
    the two never share an input, whatever other tasks draw."""
    rest = [noun for noun in NOUNS if noun not in include and noun not in exclude]
    while True:
        words = [*include, *rng.sample(rest, rng.randint(5, 8) - len(include))]
        rng.shuffle(words)
        if (zlib.crc32(" ".join(words).encode()) % 4 == 0) == evaluation:
            return words


def _records(seed, split, name, arguments, instances):
    """The instances of one task in one split."""
    family, task = FAMILIES[name], f"{name}:{','.join(arguments)}"
    rng = random.Random(f"{seed} {task} {split}")
    options = family.options(*arguments) if family.options else None
    wordings = NEW_WORDINGS if split == "new_wordings" else TRAIN_WORDINGS
    records, used = [], set()
    while len(records) < instances:
        i = len(records)
        words = _draw(rng, *family.plan(rng, *arguments), evaluation=split != "train")
        text, target = " ".join(words), family.answer(words, *arguments)
        # i // 4 keeps the answer from going with the wording.
        if target is None or text in used or (options and target != options[(i + i // 4) % 2]):
            continue
        used.add(text)
        instruction = family.instruction(wordings[i % len(wordings)], arguments)
        records.append(Record(task, instruction, text, (target,), group=name, options=options))
    return records


def _words(tasks, wordings):
    """The words of the tasks' instructions."""
    return {
        word
        for name, arguments in tasks
        for wording in wordings
        for word in FAMILIES[name].instruction(wording, arguments).split()
    }


def _assign(seed):
    """The tasks of each split as (family, arguments). Draws again if an evaluated word is never trained."""
    for attempt in itertools.count():
        tasks = {"train": [], "dev": [], "unseen": [], "new_wordings": []}
        for name, family in FAMILIES.items():
            chosen = random.Random(f"{seed} {name} {attempt}").sample(family.arguments, family.tasks)
            unseen = max(1, round(UNSEEN_SHARE * family.tasks))
            held_out = unseen + max(1, round(DEV_SHARE * family.tasks))
            tasks["unseen"] += [(name, arguments) for arguments in chosen[:unseen]]
            tasks["dev"] += [(name, arguments) for arguments in chosen[unseen:held_out]]
            tasks["train"] += [(name, arguments) for arguments in chosen[held_out:]]
            tasks["new_wordings"] += [(name, arguments) for arguments in chosen[held_out:][:NEW_WORDINGS_PER_FAMILY]]
        evaluated = _words(tasks["dev"] + tasks["unseen"], TRAIN_WORDINGS)
        if evaluated | _words(tasks["new_wordings"], NEW_WORDINGS) <= _words(tasks["train"], TRAIN_WORDINGS):
            return tasks


def builtin_suite(seed: int = 0, train_instances: int = 40, eval_instances: int = 10) -> Splits:
    """The records of the splits "train", "dev", "unseen" and "new_wordings".

    "dev" and "unseen" hold tasks that are not trained on, "new_wordings" trained tasks in wordings that are not. No
    input of "train" occurs in another split.
    """
    return {
        split: [
            record
            for name, arguments in tasks
            for record in _records(
                seed, split, name, arguments, train_instances if split == "train" else eval_instances
            )
        ]
        for split, tasks in _assign(seed).items()
    }


def _a(noun):
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


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


def _neighbours(rng):
    words, facts = _draw(rng), []
    for x, y in zip(words, words[1:]):
        facts += [f"just after {x} comes {y}", f"{y} follows {x}", f"right before {y} is {x}", f"{x} precedes {y}"]
        facts += [f"the next word after {x} is {y}", f"the previous word before {y} is {x}"]
    for x, y in itertools.combinations(words, 2):
        facts += [rng.choice((f"{x} is earlier than {y}", f"{x} or {y} , {x} is nearer to the start"))]
    return f"{' '.join(words)} . {_facts(rng, 5, facts)} ."


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


def _questions(rng):
    words, facts = _draw(rng), []
    for noun in [*rng.sample(words, 2), *rng.sample(NOUNS, 2)]:
        facts.append(f"is {noun} among them , the answer is {_say(noun in words)}")
    for kind in [KIND[rng.choice(words)], *rng.sample(list(CATEGORIES), 2)]:
        facts.append(f"is there some {kind} , {' '.join([_say(_of(words, kind)), *_of(words, kind)[:1]])}")
    return f"{' '.join(words)} . {_facts(rng, 4, facts)} ."


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


THEMES = (_story, _places, _neighbours, _copies, _changes, _kinds, _categories, _questions, _signs, _echoes)


def builtin_text(seed: int = 0, passages: int = 20000) -> list[str]:
    """Passages of about 25 to 50 words in the suite's vocabulary, without its instructions.

    The end of a passage can be told from its beginning: entities, lists and their order come back.
    """
    rng = random.Random(f"{seed} text")
    return [rng.choice(THEMES)(rng) for _ in range(passages)]
