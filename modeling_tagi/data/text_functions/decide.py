"""Functions that decide: yes or no, or two labels that the instruction names."""

import random

from .function import Function
from .texts import CITIES, DAYS, MONTHS, date, email, inserted, person, phone, tokens, url

LABELS = [
    ("yes", "no"), ("true", "false"), ("Y", "N"), ("match", "other"), ("keep", "drop"), ("1", "0"),
    ("found", "missing"), ("accept", "reject"), ("A", "B"), ("good", "bad"),
]  # fmt: skip


def _with_labels(arguments=((),), number=4, seed=0):
    """Returns each tuple of arguments with some pairs of labels; yes and no always among them."""
    rng = random.Random(seed)
    return [
        (*argument, labels) for argument in arguments
        for labels in [LABELS[0], *rng.sample(LABELS[1:], min(number - 1, len(LABELS) - 1))]
    ]  # fmt: skip


def _one(*values):
    return [(value,) for value in values]


def _sentence(test):
    def make(rng, texts, *arguments):
        sentence = texts.sentence(rng)
        return sentence, bool(test(sentence, *arguments))

    return make


def _mentions(rng, texts, word):
    sentence = texts.sentence(rng)
    return sentence, word in [one.lower() for one in tokens(sentence)]


def _topic(rng, texts, word):
    words = texts.some(rng, 4, 7)
    there = rng.random() < 0.5
    if there:
        words[rng.randrange(len(words))] = word
    return " ".join(words), word in words


def _longer(rng, texts, number):
    words = tokens(texts.sentence(rng))[:rng.randint(2, 14)]
    return " ".join(words), len(words) > number


def _number_in(rng, texts):
    sentence = texts.sentence(rng, 4, 9)
    if any(character.isdigit() for character in sentence):
        return None
    there = rng.random() < 0.5
    return (inserted(rng, sentence, str(rng.randint(2, 999))) if there else sentence), there


def _word(test):
    def make(rng, texts, *arguments):
        word = rng.choice(texts.words)
        return word, bool(test(word, *arguments))

    return make


def _number(test):
    def make(rng, texts, *arguments):
        number = rng.randint(1, 200)
        return str(number), bool(test(number, *arguments))

    return make


def _two(test):
    def make(rng, texts):
        one, other = rng.choice(texts.words), rng.choice(texts.words)
        if rng.random() < 0.3:
            other = one
        return f"{one}, {other}", bool(test(one, other))

    return make


def _is_sorted(rng, texts):
    words = texts.some(rng, 3, 4)
    if rng.random() < 0.5:
        words = sorted(words)
    return ", ".join(words), words == sorted(words)


def _piece(name, others):
    """Tells whether a piece of text is of the kind `name`, among other kinds."""
    def make(rng, texts):
        kind = rng.choice([name, rng.choice(others)])
        made = {
            "e-mail": lambda: email(rng), "phone": lambda: phone(rng), "url": lambda: url(rng, texts.words),
            "date": lambda: "{}-{:02}-{:02}".format(*date(rng)), "name": lambda: " ".join(person(rng)),
            "price": lambda: f"${rng.randint(2, 900)}", "city": lambda: rng.choice(CITIES),
            "month": lambda: rng.choice(MONTHS), "day": lambda: rng.choice(DAYS),
        }  # fmt: skip
        return made[kind](), kind == name

    return make


def _case(rng, texts):
    text = texts.short(rng)
    upper = rng.random() < 0.5
    return (text.upper() if upper else text), upper


def _before(rng, texts, year):
    sentence, (found, *_) = texts.sentence(rng, 4, 8), date(rng)
    if any(character.isdigit() for character in sentence) or found == year:
        return None
    return inserted(rng, sentence, f"in {found}"), found < year


def _polite(rng, texts):
    sentence, there = texts.sentence(rng, 4, 9), rng.random() < 0.5
    if any(word in sentence.lower() for word in ("please", "thank")):
        return None
    return (f"{sentence} {rng.choice(('Thank you!', 'Thanks a lot.', 'Please.'))}" if there else sentence), there


def _wordings(*lines, first=0):
    """Adds to each line what to answer: the labels are the arguments from number `first` on."""
    yes, no = f"{{{first}}}", f"{{{first + 1}}}"
    ends = (
        f'Answer "{yes}" or "{no}".', f"Say {yes} if so, otherwise {no}.", f"Write {yes} if it is so and {no} if not.",
        f"If so: {yes}. If not: {no}.", f"Output {yes} when that is the case, else {no}.",
    )  # fmt: skip
    return "\n".join(f"{line} {end}" for line, end in zip(lines, ends))


FUNCTIONS = [
    Function("mentions", _mentions, _wordings(
        'Does the text contain the word "{0}"?', "Check whether the word {0} occurs.", 'Look for "{0}" in the text.',
        'Is "{0}" among the words of the sentence?', "Find out if the text mentions {0}.", first=1),
        _with_labels(_one("the", "and", "of", "to", "is", "was", "in", "it", "for", "a"), 5, 1), decides=True),
    Function("has_topic", _topic, _wordings(
        'Does the text contain the word "{0}"?', "Is there any {0} in the words?", "Check if {0} is mentioned.",
        'Search the words for "{0}".', "Find out if {0} is one of the words.", first=1),
        _with_labels(_one("refund", "invoice", "dog", "music", "password", "weather", "urgent", "football", "doctor",
                          "school", "pizza", "train"), 5, 2), decides=True),
    Function("is_question", _sentence(lambda s: s.endswith("?")), _wordings(
        "Is the sentence a question?", "Does the text ask something, with a question mark at its end?",
        "Check whether it ends with a question mark.", "Is this a question?", "Tell whether something is asked."),
        _with_labels(number=8, seed=3), decides=True),
    Function("is_exclamation", _sentence(lambda s: s.endswith("!")), _wordings(
        "Does the sentence end with an exclamation mark?", "Is it an exclamation?",
        "Check whether the last character is an exclamation mark.", "Is the sentence exclaimed, with a ! at its end?",
        "Tell whether it ends with !."), _with_labels(number=6, seed=4), decides=True),
    Function("is_longer", _longer, _wordings(
        "Does the text have more than {0} words?", "Is the text longer than {0} words?",
        "Check whether there are more than {0} words.", "Count the words: are they more than {0}?",
        "Tell whether the number of words is above {0}.", first=1),
        _with_labels(_one(3, 4, 5, 6, 7, 8, 10), 4, 5), decides=True),
    Function("has_number", _number_in, _wordings(
        "Is there a number in the text?", "Does the sentence contain any digits?", "Check the text for numbers.",
        "Look for digits in the sentence.", "Tell whether a number occurs."), _with_labels(number=8, seed=6),
        decides=True),
    Function("has_comma", _sentence(lambda s: "," in s), _wordings(
        "Is there a comma in the text?", "Does the sentence contain a comma?", "Check the text for commas.",
        "Look for a comma.", "Tell whether a comma occurs."), _with_labels(number=6, seed=7), decides=True),
    Function("begins_with", _word(lambda word, letter: word[0] == letter), _wordings(
        "Does the word begin with {0}?", 'Is "{0}" the first letter?', "Check whether the word starts with {0}.",
        "Look at the first letter: is it {0}?", "Tell whether {0} is how the word begins.", first=1),
        _with_labels(_one(*"abcdfmprst"), 3, 8), decides=True),
    Function("ends_with", _word(lambda word, end: word.endswith(end)), _wordings(
        'Does the word end in "{0}"?', 'Is "{0}" the ending of the word?', "Check whether the word ends with {0}.",
        "Look at the end of the word: is it {0}?", "Tell whether {0} is how the word ends.", first=1),
        _with_labels(_one("s", "ed", "ing", "e", "ly", "er", "t", "y"), 3, 9), decides=True),
    Function("has_letter", _word(lambda word, letter: letter in word), _wordings(
        "Does the word contain the letter {0}?", "Is there an {0} in the word?", "Check the word for the letter {0}.",
        "Look for {0} among the letters.", "Tell whether the letter {0} occurs.", first=1),
        _with_labels(_one(*"aeilnorst"), 3, 10), decides=True),
    Function("begins_with_vowel", _word(lambda word: word[0] in "aeiou"), _wordings(
        "Does the word begin with a vowel?", "Is the first letter a vowel?",
        "Check whether the word starts with a, e, i, o or u.", "Look at the first letter: is it a vowel?",
        "Tell whether a vowel begins the word."), _with_labels(number=6, seed=11), decides=True),
    Function("long_word", _word(lambda word, number: len(word) > number), _wordings(
        "Does the word have more than {0} letters?", "Is the word longer than {0} letters?",
        "Check whether there are more than {0} letters.", "Count the letters: are they more than {0}?",
        "Tell whether the length of the word is above {0}.", first=1), _with_labels(_one(4, 5, 6, 7), 3, 12),
        decides=True),
    Function("is_above", _number(lambda number, least: number > least), _wordings(
        "Is the number greater than {0}?", "Is it above {0}?", "Check whether the number exceeds {0}.",
        "Compare the number with {0}: is it larger?", "Tell whether the number is more than {0}.", first=1),
        _with_labels(_one(10, 25, 50, 75, 100, 120, 150), 4, 13), decides=True),
    Function("is_even", _number(lambda number: number % 2 == 0), _wordings(
        "Is the number even?", "Can the number be divided by 2?", "Check whether the number is even.",
        "Look at the last digit: is the number even?", "Tell whether it is an even number."),
        _with_labels(number=6, seed=14), decides=True),
    Function("same_word", _two(lambda one, other: one == other), _wordings(
        "Are the two words the same?", "Is the second word equal to the first?",
        "Check whether both words are identical.", "Compare the words: are they equal?",
        "Tell whether it is one word twice."), _with_labels(number=6, seed=15), decides=True),
    Function("same_letter", _two(lambda one, other: one[0] == other[0]), _wordings(
        "Do both words begin with the same letter?", "Is the first letter of the two words the same?",
        "Check whether the words start with an equal letter.", "Compare the first letters: are they equal?",
        "Tell whether the words share their first letter."), _with_labels(number=4, seed=16), decides=True),
    Function("is_sorted", _is_sorted, _wordings(
        "Is the list in alphabetical order?", "Are the words sorted from A to Z?",
        "Check whether the list is sorted alphabetically.", "Look at the order: is it that of a dictionary?",
        "Tell whether the items are in alphabetical order."), _with_labels(number=4, seed=17), decides=True),
    Function("is_email", _piece("e-mail", ["phone", "url", "date", "name"]), _wordings(
        "Is it an e-mail address?", "Does this look like an email address?", "Check for an e-mail address.",
        "Is this how one writes an e-mail address?", "Tell whether one could send an e-mail to it."),
        _with_labels(number=5, seed=18), decides=True),
    Function("is_phone", _piece("phone", ["e-mail", "url", "date", "price"]), _wordings(
        "Is it a phone number?", "Does this look like a telephone number?", "Check for a phone number.",
        "Is this how one writes a phone number?", "Tell whether one could call it."),
        _with_labels(number=5, seed=19), decides=True),
    Function("is_date", _piece("date", ["e-mail", "url", "phone", "price"]), _wordings(
        "Is it a date?", "Does this look like a calendar date?", "Check for a date.",
        "Is this how one writes a date?", "Tell whether it names a day of a year."),
        _with_labels(number=5, seed=20), decides=True),
    Function("is_month", _piece("month", ["day", "city", "name"]), _wordings(
        "Is it a month?", "Does this name a month of the year?", "Check whether it is the name of a month.",
        "Is this one of the twelve months?", "Tell whether it is a month."), _with_labels(number=5, seed=21),
        decides=True),
    Function("is_city", _piece("city", ["month", "day", "name"]), _wordings(
        "Is it a city?", "Does this name a city?", "Check whether it is the name of a town.",
        "Is this a place where people live?", "Tell whether it is a city."), _with_labels(number=5, seed=22),
        decides=True),
    Function("is_upper", _case, _wordings(
        "Is the text written in capital letters?", "Is everything uppercase?",
        "Check whether all letters are capitals.", "Look at the letters: are they upper case?",
        "Tell whether someone is shouting in capitals."),
        _with_labels(number=6, seed=23), decides=True),
    Function("is_before", _before, _wordings(
        "Is the year in the text before {0}?", "Did it happen earlier than {0}?",
        "Check whether the year is earlier than {0}.", "Compare the year with {0}: is it earlier?",
        "Tell whether the text speaks of a time before {0}.", first=1),
        _with_labels(_one(1960, 1980, 1990, 2000, 2010, 2020), 4, 24), decides=True),
    Function("is_polite", _polite, _wordings(
        "Does the text say please or thank you?", "Is there a word of thanks or a please?",
        "Check whether the writer thanks or says please.", "Is the text polite, with thanks or a please at its end?",
        "Tell whether please or thanks occur."), _with_labels(number=5, seed=25), decides=True),
    Function("first_person", _sentence(lambda s: {"I", "my", "My", "me"} & set(tokens(s))), _wordings(
        "Does the writer speak of himself or herself, with I, me or my?", "Is the sentence in the first person?",
        'Check for the words "I", "me" and "my".', "Is there an I, me or my in the text?",
        "Tell whether the writer says I, me or my."), _with_labels(number=4, seed=26), decides=True),
]  # fmt: skip
