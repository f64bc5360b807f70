"""Functions that count and compare."""

import re

from .function import Function
from .select import _of
from .texts import tokens


def _count_words(rng, texts):
    words = texts.some(rng, 2, 9)
    return " ".join(words), str(len(words))


def _count_items(rng, texts):
    items = texts.some(rng, 2, 8)
    return ", ".join(items), str(len(items))


def _count_sentences(rng, texts):
    parts = [texts.sentence(rng, 4, 6) for _ in range(rng.randint(1, 4))]
    return " ".join(parts), str(len(parts))


def _count_word(rng, texts, word):
    words = texts.some(rng, 3, 5) + [word] * rng.randint(0, 3)
    rng.shuffle(words)
    return " ".join(words), str(words.count(word))


def _count_letters(rng, texts):
    word = rng.choice(texts.words)
    return word, str(len(word))


def _count_letter(rng, texts, letter):
    word = rng.choice(texts.words)
    return (word, str(word.count(letter))) if letter in word or rng.random() < 0.2 else None


def _count_mark(mark):
    def make(rng, texts):
        words, times = texts.some(rng, 5, 8), rng.randint(0, 4)
        for place in rng.sample(range(len(words)), times):
            words[place] += mark
        return " ".join(words), str(times)

    return make


def _count_capitals(rng, texts):
    words = [word.capitalize() if rng.random() < 0.4 else word for word in texts.some(rng, 4, 7)]
    return " ".join(words), str(sum(word[0].isupper() for word in words))


def _count_numbers(rng, texts):
    words = [str(rng.randint(2, 99)) if rng.random() < 0.35 else word for word in texts.some(rng, 4, 7)]
    return " ".join(words), str(sum(word.isdigit() for word in words))


def _two_words(choose):
    def make(rng, texts):
        one, other = rng.sample(texts.words, 2)
        if len(one) == len(other) or one[0] == other[0]:
            return None
        return f"{one} {rng.choice(('or', 'and'))} {other}", choose(one, other)

    return make


def _two_numbers(choose):
    def make(rng, texts):
        one, other = rng.sample(range(2, 1000), 2)
        return f"{one} {rng.choice(('or', 'and'))} {other}", str(choose(one, other))

    return make


def _result(change):
    def make(rng, texts, *arguments):
        number = rng.randint(2, 99)
        return str(number), str(change(number, *arguments))

    return make


def _shared_word(rng, texts):
    one, other, both = rng.sample(texts.words, 2), rng.sample(texts.words, 2), rng.choice(texts.words)
    left, right = [*one, both], [*other, both]
    if len({*left, *right}) < 5:
        return None
    rng.shuffle(left)
    rng.shuffle(right)
    return f"{', '.join(left)} | {', '.join(right)}", both


def _characters(rng, texts):
    text = re.sub(r"\s+", " ", " ".join(tokens(texts.sentence(rng))[:2]))
    return text, str(len(text))


FUNCTIONS = [
    Function("count_words", _count_words, """
        Count the words of the text.
        How many words are there?
        Return the number of words as a digit.
        Tell me how many words the text has.
        What is the word count?"""),
    Function("count_items", _count_items, """
        Count the items of the comma-separated list.
        How many things are in the list?
        Return the number of list items as a digit.
        Tell me how many entries the list has.
        What is the length of the list?"""),
    Function("count_sentences", _count_sentences, """
        Count the sentences.
        How many sentences does the text have?
        Return the number of sentences as a digit.
        Tell me how many sentences there are.
        Of how many sentences does it consist?"""),
    Function("count_word", _count_word, """
        Count how often the word "{0}" occurs.
        How many times is "{0}" in the text?
        Return the number of occurrences of "{0}" as a digit.
        Tell me how often {0} appears.
        What is the count of the word "{0}"?""",
        _of("the", "cat", "red", "sun", "book", "home", "yes", "time")),
    Function("count_letters", _count_letters, """
        Count the letters of the word.
        How many letters does the word have?
        Return the length of the word as a digit.
        Tell me how many letters there are.
        How long is this word?"""),
    Function("count_letter", _count_letter, """
        Count how often the letter {0} is in the word.
        How many times does the letter "{0}" occur?
        Return the number of {0}s in the word as a digit.
        Tell me how often {0} appears in the word.
        What is the count of the letter {0}?""", _of(*"aeioutrs")),
    Function("count_commas", _count_mark(","), """
        Count the commas.
        How many commas are in the text?
        Return the number of commas as a digit.
        Tell me how many commas there are.
        What is the count of comma signs?"""),
    Function("count_capitals", _count_capitals, """
        Count the words that begin with a capital letter.
        How many words are capitalised?
        Return the number of words with an uppercase first letter as a digit.
        Tell me how many words start with a capital.
        What is the count of capitalised words?"""),
    Function("count_numbers", _count_numbers, """
        Count the numbers in the text.
        How many numbers are there among the words?
        Return as a digit how many numbers the text has.
        Tell me how many numbers occur.
        What is the count of numbers?"""),
    Function("count_characters", _characters, """
        Count the characters of the text, spaces included.
        How many characters does the text have, with the spaces?
        Return the length of the text in characters.
        Tell me how many characters there are, including spaces.
        What is the character count?"""),
    Function("longer_word", _two_words(lambda one, other: max(one, other, key=len)), """
        Which of the two words is longer?
        Return the longer of the two words.
        Compare both words and write the one with more letters.
        Pick the longer one.
        Say which word has the greater length."""),
    Function("shorter_word", _two_words(lambda one, other: min(one, other, key=len)), """
        Which of the two words is shorter?
        Return the shorter of the two words.
        Compare both words and write the one with fewer letters.
        Pick the shorter one.
        Say which word has the smaller length."""),
    Function("earlier_word", _two_words(min), """
        Which of the two words comes first in the alphabet?
        Return the word that a dictionary lists first.
        Compare both words and write the alphabetically earlier one.
        Pick the one that is first in alphabetical order.
        Say which word stands earlier in a dictionary."""),
    Function("later_word", _two_words(max), """
        Which of the two words comes last in the alphabet?
        Return the word that a dictionary lists second.
        Compare both words and write the alphabetically later one.
        Pick the one that is last in alphabetical order.
        Say which word stands later in a dictionary."""),
    Function("larger_number", _two_numbers(max), """
        Which of the two numbers is larger?
        Return the larger of the two numbers.
        Compare both numbers and write the bigger one.
        Pick the greater number.
        Say which number is the higher one."""),
    Function("smaller_number", _two_numbers(min), """
        Which of the two numbers is smaller?
        Return the smaller of the two numbers.
        Compare both numbers and write the lower one.
        Pick the lesser number.
        Say which number is the lower one."""),
    Function("plus", _result(lambda number, more: number + more), """
        Add {0} to the number.
        What is the number plus {0}?
        Increase the number by {0}.
        Return the sum of the number and {0}.
        Compute the number + {0}.""", _of(1, 2, 3, 5, 10, 100)),
    Function("minus", _result(lambda number, less: number - less), """
        Subtract {0} from the number.
        What is the number minus {0}?
        Decrease the number by {0}.
        Return the number less {0}.
        Compute the number - {0}.""", _of(1, 2, 10)),
    Function("shared_word", _shared_word, """
        Two lists are separated by "|". Return the word that is in both.
        Which word do the lists on both sides of the bar have in common?
        Find the item that occurs left and right of the bar.
        Give me the word that both lists share.
        What is the common element of the two lists?"""),
]  # fmt: skip
