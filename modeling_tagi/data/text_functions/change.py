"""Functions that replace, remove, sort and rearrange."""

import re

from .function import Function
from .select import _of
from .texts import tokens

_SIGNS = {"#": "#", "X": "X", "0": "0", "*": "*"}


def _replaced(rng, texts, old, new):
    sentence = texts.sentence(rng, 4, 10)
    if old not in tokens(sentence):
        return None
    return sentence, re.sub(rf"\b{old}\b", new, sentence)


def _removed(rng, texts, word):
    words = texts.some(rng, 4, 6)
    for _ in range(rng.randint(1, 2)):
        words.insert(rng.randint(0, len(words)), word)
    return " ".join(words), " ".join(one for one in words if one != word)


def _digits(rng, texts, sign):
    text = f"{texts.short(rng)} {rng.randint(10, 9999)}"
    return text, re.sub(r"\d", sign, text)


def _ends(rng, texts, mark):
    sentence = texts.sentence(rng, 4, 9)
    return None if sentence.endswith(mark) else (sentence, sentence[:-1] + mark)


def _sorted(key=None, reverse=False, joined=", "):
    def make(rng, texts):
        words = texts.some(rng, 3, 5)
        if key is len and len({len(word) for word in words}) < len(words):
            return None
        return joined.join(words), joined.join(sorted(words, key=key, reverse=reverse))

    return make


def _sorted_numbers(reverse):
    def make(rng, texts):
        numbers = rng.sample(range(1, 100), rng.randint(3, 5))
        return ", ".join(map(str, numbers)), ", ".join(map(str, sorted(numbers, reverse=reverse)))

    return make


def _without_repeats(rng, texts):
    words = texts.some(rng, 3, 4)
    many = words + rng.sample(words, rng.randint(1, 2))
    rng.shuffle(many)
    return ", ".join(many), ", ".join(dict.fromkeys(many))


def _swapped(rng, texts):
    words = texts.some(rng, 3, 6)
    return " ".join(words), " ".join([words[-1], *words[1:-1], words[0]])


def _moved(to_front):
    def make(rng, texts):
        words = texts.some(rng, 3, 6)
        return " ".join(words), " ".join([words[-1], *words[:-1]] if to_front else [*words[1:], words[0]])

    return make


def _reversed_list(rng, texts):
    items = texts.some(rng, 3, 5)
    return ", ".join(items), ", ".join(reversed(items))


def _inserted(rng, texts, word):
    words = texts.some(rng, 3, 6)
    return " ".join(words), " ".join([words[0], word, *words[1:]])


def _appended(rng, texts, word):
    items = texts.some(rng, 2, 4)
    return ", ".join(items), ", ".join([*items, word])


def _merged(rng, texts):
    one, other = texts.some(rng, 2, 3), texts.some(rng, 2, 3)
    return f"{', '.join(one)} | {', '.join(other)}", ", ".join([*one, *other])


def _masked_names(rng, texts):
    sentence = texts.sentence(rng, 4, 9)
    first, *others = sentence.split()
    found = [word for word in others if word[0].isupper() and word.strip(".,!?;:") not in ("I", "I'm", "I've")]
    if not found:
        return None
    return sentence, " ".join([first, *(re.sub(r"^[A-Za-z'\-]+", "X", w) if w in found else w for w in others)])


def _swap_pair(rng, texts):
    one, other = rng.sample(texts.words, 2)
    return f"{one} {other}", f"{other} {one}"


def _cleaned(rng, texts):
    words = texts.some(rng, 3, 5)
    return "".join(word + " " * rng.randint(1, 4) for word in words).strip(), " ".join(words)


FUNCTIONS = [
    Function("replace", _replaced, """
        Replace the word "{0}" by "{1}".
        Change every "{0}" to "{1}" and leave the rest as it is.
        Copy the text, but write "{1}" instead of "{0}".
        Substitute {1} for the word {0}.
        Wherever the text says "{0}", put "{1}".""",
        [("the", "a"), ("and", "&"), ("is", "was"), ("of", "from"), ("to", "for"), ("in", "on"), ("was", "is"),
         ("for", "of"), ("a", "one"), ("and", "or"), ("with", "without"), ("the", "this"), ("it", "she"),
         ("was", "will be"), ("he", "she"), ("on", "under")]),
    Function("remove", _removed, """
        Remove the word "{0}" wherever it occurs.
        Delete every "{0}" from the text.
        Copy the text without the word "{0}".
        Leave out {0} and keep all other words.
        Strip the text of the word "{0}".""", _of("very", "the", "not", "um", "and", "well", "just", "like")),
    Function("mask_digits", _digits, """
        Replace every digit by {0}.
        Mask the digits with {0}.
        Write {0} instead of each digit.
        Hide the number: one {0} for each digit.
        Put {0} wherever there is a digit.""", _of(*_SIGNS)),
    Function("mask_names", _masked_names, """
        Replace each capitalised word, except the first word of the sentence, by X.
        Hide the names: write X for every word with a capital letter other than the first word.
        Anonymise the sentence by putting X for all capitalised words behind the first word.
        Mask the proper names with X; the first word stays.
        Put X in place of the names."""),
    Function("end_mark", _ends, """
        Change the final punctuation mark to "{0}".
        Let the sentence end with "{0}" instead of its own mark.
        Replace the last character by "{0}".
        End the sentence with {0}.
        Copy the sentence, but finish it with "{0}".""", _of("!", "?", "...", ".", ";")),
    Function("sort_words", _sorted(), """
        Sort the words alphabetically.
        Put the items of the list in alphabetical order.
        Arrange these words from A to Z, with commas between.
        Order the list by the alphabet.
        Bring the words into dictionary order."""),
    Function("sort_words_down", _sorted(reverse=True), """
        Sort the words in reverse alphabetical order.
        Put the items of the list in order from Z to A.
        Arrange these words backwards by the alphabet, with commas between.
        Order the list alphabetically, last letter first.
        Bring the words into descending alphabetical order."""),
    Function("sort_by_length", _sorted(len), """
        Sort the words by length, the shortest first.
        Order the list by the number of letters, from few to many.
        Arrange these words from short to long, with commas between.
        Put the items in ascending order of length.
        Begin with the shortest word and end with the longest."""),
    Function("sort_by_length_down", _sorted(len, True), """
        Sort the words by length, the longest first.
        Order the list by the number of letters, from many to few.
        Arrange these words from long to short, with commas between.
        Put the items in descending order of length.
        Begin with the longest word and end with the shortest."""),
    Function("sort_numbers", _sorted_numbers(False), """
        Sort the numbers in ascending order.
        Put the numbers in order, smallest first.
        Arrange the list of numbers from low to high.
        Order the numbers so that they grow.
        Begin with the smallest number and end with the largest."""),
    Function("sort_numbers_down", _sorted_numbers(True), """
        Sort the numbers in descending order.
        Put the numbers in order, largest first.
        Arrange the list of numbers from high to low.
        Order the numbers so that they fall.
        Begin with the largest number and end with the smallest."""),
    Function("without_repeats", _without_repeats, """
        Remove duplicates from the list; keep the first of each.
        Write every item of the list only once.
        Delete repeated items and keep the order.
        Make the list free of doubles.
        Drop each word that was in the list before."""),
    Function("swap_ends", _swapped, """
        Swap the first and the last word.
        Exchange the first word with the last one.
        Let the first and last words change places.
        Put the last word first and the first word last; the others stay.
        Interchange the two words at the ends."""),
    Function("last_to_front", _moved(True), """
        Move the last word to the front.
        Put the final word at the beginning; the others follow in order.
        Take the last word and write it first.
        Start with the last word, then all others.
        Bring the word at the end to the start."""),
    Function("first_to_end", _moved(False), """
        Move the first word to the end.
        Put the opening word behind all the others.
        Take the first word and write it last.
        Start with the second word and finish with the first.
        Bring the word at the start to the end."""),
    Function("swap_pair", _swap_pair, """
        Swap the two words.
        Write the second word first, then the first.
        Exchange both words.
        Turn the pair around.
        Put the two words in the opposite order."""),
    Function("reverse_list", _reversed_list, """
        Reverse the order of the list.
        Write the items from last to first.
        Turn the comma-separated list around.
        Give the list backwards.
        Begin the list with its last item and end it with its first."""),
    Function("insert", _inserted, """
        Insert the word "{0}" after the first word.
        Put "{0}" behind the first word.
        Copy the text with "{0}" added as its second word.
        Let {0} be the second word of the text.
        Between the first and second word, write "{0}".""",
        _of("really", "never", "always", "also", "big", "and", "or", "new")),
    Function("append", _appended, """
        Add "{0}" to the end of the list.
        Append the item {0}.
        Copy the list with {0} as one more item at the end.
        Extend the list by "{0}".
        Write the list and put {0} last.""", _of("milk", "end", "other", "none", "etc", "stop", "tea", "misc")),
    Function("merge", _merged, """
        Two lists are separated by "|". Join them into one list with commas.
        Merge the lists on both sides of the bar.
        Replace the bar so that one comma-separated list results.
        Combine the two lists, the left one first.
        Make a single list out of both."""),
    Function("single_spaces", _cleaned, """
        Replace runs of spaces by a single space.
        Clean up the extra spaces between the words.
        Normalise the white space: one space between words.
        Remove superfluous spaces.
        Leave just one blank between any two words."""),
]  # fmt: skip
