"""Functions that select: words, sentences and items of a text."""

from .function import NONE, Function
from .texts import tokens

ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "last": -1, "second to last": -2}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
_COMMON = ("the", "of", "and", "to", "in", "a", "is", "for", "was", "with", "on", "that")


def _word(rng, texts, ordinal):
    sentence = texts.sentence(rng, 6)
    return sentence, tokens(sentence)[ORDINALS[ordinal]]


def _first_words(rng, texts, number):
    sentence = texts.sentence(rng, 6)
    return sentence, " ".join(tokens(sentence)[:NUMBERS[number]])


def _last_words(rng, texts, number):
    sentence = texts.sentence(rng, 6)
    return sentence, " ".join(tokens(sentence)[-NUMBERS[number]:])


def _longest(rng, texts):
    sentence = texts.sentence(rng)
    words = sorted(tokens(sentence), key=len)
    return (sentence, words[-1]) if len(words[-1]) > len(words[-2]) else None


def _shortest(rng, texts):
    words = texts.some(rng, 3, 6)
    order = sorted(words, key=len)
    return (" ".join(words), order[0]) if len(order[0]) < len(order[1]) else None


def _beside(step):
    def make(rng, texts, word):
        sentence = texts.sentence(rng)
        words = tokens(sentence)
        places = [place for place, one in enumerate(words) if one == word]
        if len(places) != 1 or not 0 <= places[0] + step < len(words):
            return None
        return sentence, words[places[0] + step]

    return make


def _those(test, most=4):
    """Selects the words that pass `test(word, argument)`, as a list with commas."""
    def make(rng, texts, argument):
        sentence = texts.sentence(rng)
        found = [word for word in tokens(sentence) if test(word, argument)]
        if len(found) > most or not found and rng.random() < 0.8:
            return None
        return sentence, ", ".join(found) or NONE

    return make


def _names(rng, texts):
    sentence = texts.sentence(rng)
    found = [word for word in tokens(sentence)[1:] if word[0].isupper() and word != "I" and not word.startswith("I'")]
    if len(found) > 4 or not found and rng.random() < 0.8:
        return None
    return sentence, ", ".join(found) or NONE


def _nth_sentence(rng, texts, ordinal):
    parts = [texts.sentence(rng, 4, 8) for _ in range(3)]
    return " ".join(parts), parts[ORDINALS[ordinal]]


def _sentence_by_length(longest):
    def make(rng, texts):
        parts = sorted((texts.sentence(rng, 4, 9) for _ in range(3)), key=len)
        wanted = parts[-1] if longest else parts[0]
        if len({len(part) for part in parts}) < 3:
            return None
        rng.shuffle(parts)
        return " ".join(parts), wanted

    return make


def _item(rng, texts, ordinal):
    items = texts.some(rng, 5, 7)
    return ", ".join(items), items[ORDINALS[ordinal]]


def _longest_item(rng, texts):
    items = texts.some(rng, 3, 6)
    order = sorted(items, key=len)
    return (", ".join(items), order[-1]) if len(order[-1]) > len(order[-2]) else None


def _every_other(rng, texts):
    words = texts.some(rng, 4, 8)
    return " ".join(words), " ".join(words[::2])


def _without_edge(place):
    def make(rng, texts):
        words = texts.some(rng, 4, 7)
        return " ".join(words), " ".join(words[1:] if place == 0 else words[:-1])

    return make


def _of(*values):
    return [(value,) for value in values]


FUNCTIONS = [
    Function("nth_word", _word, """
        Return the {0} word of the text.
        What is the {0} word in this sentence?
        Give me the {0} word, without punctuation.
        Take the sentence and pick out only its {0} word.
        Which word comes {0} in the text?""", _of(*ORDINALS)),
    Function("first_words", _first_words, """
        Return the first {0} words of the text.
        Cut the sentence off after {0} words.
        Keep only the {0} words at the beginning.
        What are the {0} opening words?
        Shorten the text to the {0} words it starts with.""", _of(*NUMBERS)),
    Function("last_words", _last_words, """
        Return the last {0} words of the text, without the final punctuation.
        Give only the {0} words at the end of the sentence.
        Which {0} words does the text end with?
        Keep the final {0} words and drop the rest.
        Extract the {0} closing words.""", _of(*NUMBERS)),
    Function("longest_word", _longest, """
        Return the longest word of the text.
        Find the word with the most letters.
        Which word in the sentence is the longest?
        Pick the longest word.
        Output the word that has more letters than any other."""),
    Function("shortest_word", _shortest, """
        Return the shortest word of the text.
        Find the word with the fewest letters.
        Which of these words is the shortest?
        Pick the shortest word.
        Output the word that has fewer letters than any other."""),
    Function("word_after", _beside(1), """
        Return the word that comes right after "{0}".
        Which word follows "{0}" in the text?
        Find the word "{0}" and give me the next word.
        What comes directly behind "{0}"?
        Give the word that stands immediately after "{0}".""", _of(*_COMMON)),
    Function("word_before", _beside(-1), """
        Return the word that comes right before "{0}".
        Which word precedes "{0}" in the text?
        Find the word "{0}" and give me the word in front of it.
        What stands directly before "{0}"?
        Give the word immediately preceding "{0}".""", _of(*_COMMON)),
    Function("words_that_begin", _those(lambda word, letter: word.lower().startswith(letter)), """
        List the words that begin with the letter {0}, separated by commas.
        Which words start with "{0}"? Separate them by commas.
        Extract every word whose first letter is {0} as a comma-separated list.
        Find all words beginning with {0} and join them with commas.
        Give me the words that have {0} as their first letter, with commas between them.""",
        _of(*"abcdefghilmnoprstw"), none=True),
    Function("words_that_end", _those(lambda word, end: word.lower().endswith(end)), """
        List the words that end in "{0}", separated by commas.
        Which words have the ending "{0}"? Separate them by commas.
        Extract every word that ends with "{0}" as a comma-separated list.
        Find all words ending in {0} and join them with commas.
        Give me the words whose last letters are "{0}", with commas between them.""",
        _of("ing", "ed", "ly", "s", "er", "e", "t", "n", "y", "d", "es", "on"), none=True),
    Function("words_that_contain", _those(lambda word, part: part in word.lower()), """
        List the words that contain "{0}", separated by commas.
        Which words have "{0}" in them? Separate them by commas.
        Extract every word with the letters "{0}" in it as a comma-separated list.
        Find all words that include {0} and join them with commas.
        Give me the words in which "{0}" occurs, with commas between them.""",
        _of("oo", "th", "st", "ea", "in", "ar", "er", "ou", "ch", "re", "an", "ll"), none=True),
    Function("words_of_length", _those(lambda word, length: len(word) == length), """
        List the words with exactly {0} letters, separated by commas.
        Which words are {0} letters long? Separate them by commas.
        Extract every {0}-letter word as a comma-separated list.
        Find all words of {0} letters and join them with commas.
        Give me the words that have a length of {0}, with commas between them.""",
        _of(3, 4, 5, 6, 7, 8, 9), none=True),
    Function("long_words", _those(lambda word, length: len(word) > length), """
        List the words with more than {0} letters, separated by commas.
        Which words are longer than {0} letters? Separate them by commas.
        Extract every word of more than {0} letters as a comma-separated list.
        Find all words longer than {0} letters and join them with commas.
        Give me the words whose length is above {0}, with commas between them.""",
        _of(5, 6, 7, 8, 9, 10), none=True),
    Function("capitalised", _names, """
        List the capitalised words except the first word of the sentence, separated by commas.
        Which words other than the first are written with a capital letter? Separate them by commas.
        Extract the names: all words that start with an uppercase letter, but not the first word, with commas.
        Leave out the first word and give all words that begin with a capital, joined by commas.
        Find the proper names, that is the capitalised words behind the first word, with commas between them.""",
        none=True),
    Function("nth_sentence", _nth_sentence, """
        Return the {0} sentence of the text.
        What is the {0} sentence?
        Give me only the {0} sentence.
        Copy the {0} sentence and leave out the others.
        Which sentence comes {0}?""", _of("first", "second", "third", "last")),
    Function("longest_sentence", _sentence_by_length(True), """
        Return the longest sentence of the text.
        Which of the sentences is the longest?
        Give me only the longest sentence.
        Copy the sentence that has the most characters.
        Pick out the longest of these sentences."""),
    Function("shortest_sentence", _sentence_by_length(False), """
        Return the shortest sentence of the text.
        Which of the sentences is the shortest?
        Give me only the shortest sentence.
        Copy the sentence that has the fewest characters.
        Pick out the shortest of these sentences."""),
    Function("nth_item", _item, """
        Return the {0} item of the comma-separated list.
        Which item of the list comes {0}?
        From this list give me only the {0} entry.
        Pick the {0} element.
        What is the {0} thing in the list?""", _of(*ORDINALS)),
    Function("longest_item", _longest_item, """
        Return the longest item of the list.
        Which entry of the list has the most letters?
        Pick the longest element of the comma-separated list.
        From these items choose the longest one.
        Output the list item that is longer than the others."""),
    Function("every_other_word", _every_other, """
        Keep every other word, starting with the first.
        Return the first, third, fifth word and so on.
        Drop every second word of the text.
        Take the words in odd positions.
        Write down each second word, beginning with the first one."""),
    Function("without_first_word", _without_edge(0), """
        Remove the first word.
        Return the text without its first word.
        Drop the word at the beginning and keep the rest.
        Leave out the opening word.
        Give me everything but the first word."""),
    Function("without_last_word", _without_edge(1), """
        Remove the last word.
        Return the text without its last word.
        Drop the word at the end and keep the rest.
        Leave out the final word.
        Give me everything but the last word."""),
]  # fmt: skip
