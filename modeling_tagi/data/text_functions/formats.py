"""Functions that give a text another form: case, punctuation, lists, JSON, dates, markup."""

import json
import re

from .function import Function
from .select import _of
from .texts import MONTHS, date, person, tokens

_SEPARATORS = {
    "commas": ", ", "semicolons": "; ", "slashes": " / ", "vertical bars": " | ", "dashes": " - ", "plus signs": " + ",
}  # fmt: skip
_JOINERS = {"underscores": "_", "hyphens": "-", "dots": ".", "slashes": "/", "plus signs": "+"}
_AROUND = {
    "double quotes": '"{}"', "single quotes": "'{}'", "parentheses": "({})", "square brackets": "[{}]",
    "curly braces": "{{{}}}", "asterisks": "*{}*", "angle brackets": "<{}>", "underscores": "_{}_",
}  # fmt: skip
_DATES = {
    "DD/MM/YYYY": lambda y, m, d: f"{d:02}/{m:02}/{y}", "MM/DD/YYYY": lambda y, m, d: f"{m:02}/{d:02}/{y}",
    "YYYY/MM/DD": lambda y, m, d: f"{y}/{m:02}/{d:02}", "DD.MM.YYYY": lambda y, m, d: f"{d:02}.{m:02}.{y}",
    "Month D, YYYY": lambda y, m, d: f"{MONTHS[m - 1]} {d}, {y}",
    "D Month YYYY": lambda y, m, d: f"{d} {MONTHS[m - 1]} {y}",
    "YYYYMMDD": lambda y, m, d: f"{y}{m:02}{d:02}",
}  # fmt: skip


def _applied(change):
    """Changes a few words."""
    def make(rng, texts, *arguments):
        text = texts.short(rng)
        return text, change(text, *arguments)

    return make


def _sentence(change):
    def make(rng, texts, *arguments):
        text = texts.sentence(rng, 4, 9)
        return text, change(text, *arguments)

    return make


def _camel(text):
    first, *others = text.lower().split()
    return first + "".join(word.capitalize() for word in others)


def _json_two(rng, texts, first, second):
    one, other = rng.sample(texts.words, 2)
    return f"{one} {other}", json.dumps({first: one, second: other})


def _listed(separator):
    def make(rng, texts, name):
        items = texts.some(rng, 3, 5)
        return separator.join(items), _SEPARATORS[name].join(items)

    return make


def _bullets(mark):
    def make(rng, texts):
        items = texts.some(rng, 2, 4)
        return ", ".join(items), "\n".join(mark(number, item) for number, item in enumerate(items, 1))

    return make


def _date(rng, texts, form):
    y, m, d = date(rng)
    return f"{y}-{m:02}-{d:02}", _DATES[form](y, m, d)


def _date_part(rng, texts, part):
    y, m, d = date(rng)
    written = rng.choice((f"{MONTHS[m - 1]} {d}, {y}", f"{d} {MONTHS[m - 1]} {y}"))
    return written, {"year": str(y), "month": MONTHS[m - 1], "day": str(d)}[part]


def _name(change):
    def make(rng, texts):
        first, last = person(rng)
        return f"{first} {last}", change(first, last)

    return make


def _repeated(text, times):
    return " ".join([text.split()[0]] * {"twice": 2, "three times": 3, "four times": 4}[times])


def _one_word(rng, texts, times):
    word = rng.choice(texts.words)
    return word, _repeated(word, times)


def _cut(rng, texts, number):
    words = tokens(texts.sentence(rng, 7))
    return " ".join(words), " ".join(words[:number]) + "..."


def _filled(rng, texts, width):
    number = rng.randint(1, 999 if width > 3 else 99)
    return str(number), f"{number:0{width}}"


def _unlisted(rng, texts):
    items = texts.some(rng, 3, 5)
    return ", ".join(items), " ".join(items)


FUNCTIONS = [
    Function("upper", _applied(str.upper), """
        Write the text in capital letters.
        Convert everything to uppercase.
        Make all letters uppercase.
        Put the text into upper case.
        Turn each letter into a capital."""),
    Function("lower", _sentence(str.lower), """
        Write the text in lower case.
        Convert everything to lowercase.
        Make all letters small.
        Put the text into lower case.
        Turn each capital into a small letter."""),
    Function("title", _applied(lambda text: " ".join(word.capitalize() for word in text.split())), """
        Write the text in title case: each word begins with a capital.
        Capitalise the first letter of every word.
        Turn the text into a headline where every word starts with an uppercase letter.
        Put the text into title case.
        Give every word a capital first letter and make the rest small."""),
    Function("as_sentence", _applied(lambda text: text.lower().capitalize() + "."), """
        Write the text as a sentence: a capital at the beginning, the rest small, and a full stop at the end.
        Capitalise only the first letter of all and add a period.
        Turn these words into a sentence with one capital at the start and a period at the end.
        Begin with an uppercase letter, continue in lowercase and end with a full stop.
        Make it look like a sentence, with a first capital letter and a final period."""),
    Function("joined", _applied(lambda text, name: _JOINERS[name].join(text.split())), """
        Replace the spaces by {0}.
        Join the words with {0} instead of spaces.
        Put {0} between the words, with no spaces left.
        Write the words connected by {0}.
        Turn each space into one of {0}.""", _of(*_JOINERS)),
    Function("snake_case", _applied(lambda text: "_".join(text.lower().split())), """
        Convert the text to snake_case.
        Write it as a Python variable name: small letters, with underscores between the words.
        Make everything lowercase and replace the spaces by underscores.
        Give me the snake case version.
        Turn the words into a lower-case name joined by underscores."""),
    Function("slug", _applied(lambda text: "-".join(text.lower().split())), """
        Convert the text to a slug for a web address: small letters and hyphens.
        Write it in kebab-case.
        Make everything lowercase and replace the spaces by hyphens.
        Give me the URL slug.
        Turn the words into a lower-case name joined by hyphens."""),
    Function("camel_case", _applied(_camel), """
        Convert the text to camelCase.
        Write it as a JavaScript variable name in camel case.
        Join the words without spaces; all but the first begin with a capital.
        Give me the camel case version.
        Make one camelCase word of it."""),
    Function("without_spaces", _applied(lambda text: text.replace(" ", "")), """
        Remove all spaces.
        Write the words together without any space.
        Delete the blanks between the words.
        Join everything into one string with no spaces.
        Return the text with its spaces taken out."""),
    Function("without_punctuation", _sentence(lambda text: re.sub(r"[^\w\s]", "", text)), """
        Remove all punctuation.
        Write the sentence without any punctuation marks.
        Delete commas, periods and all other punctuation.
        Strip the punctuation and keep everything else.
        Return the text with its punctuation marks taken out."""),
    Function("without_end", _sentence(lambda text: text.rstrip(".!?")), """
        Remove the punctuation mark at the end of the sentence.
        Write the sentence without its final punctuation.
        Drop the last character, which is a punctuation mark.
        Strip the mark at the end, and nothing else.
        Return the text without the period or other mark that ends it."""),
    Function("initials", _applied(lambda text: "".join(word[0].upper() for word in text.split())), """
        Make an acronym of the first letters of the words, in capitals.
        Write the first letter of each word in uppercase, without spaces.
        Abbreviate the phrase to its initials.
        What is the acronym of these words?
        Build an abbreviation out of the words' first letters, in capitals."""),
    Function("words_to_list", _listed(" "), """
        Write the words as a list separated by {0}.
        Put {0} between the words, with spaces as usual.
        Separate the words by {0}.
        Turn the text into a list with {0} between the items.
        List the words, divided by {0}.""", _of(*_SEPARATORS)),
    Function("list_to_list", _listed(", "), """
        Change the separators of the list from commas to {0}.
        Separate the items of the comma-separated list by {0} instead.
        Replace the commas by {0}.
        Rewrite the list with {0} between its items.
        Take the comma-separated items and divide them by {0}.""", _of(*[x for x in _SEPARATORS if x != "commas"])),
    Function("list_to_text", _unlisted, """
        Remove the commas from the list.
        Write the items of the list one after another with spaces only.
        Turn the comma-separated list into plain words.
        Join the items with spaces instead of commas.
        Delete every comma and keep the words."""),
    Function("bullets", _bullets(lambda number, item: f"- {item}"), """
        Write the list as bullet points, one item a line, each after "- ".
        Turn the comma-separated items into a bulleted list with dashes.
        Put every item on a line of its own that begins with "- ".
        Make a Markdown bullet list out of these items.
        Format the items as lines that each start with a dash and a space."""),
    Function("numbered", _bullets(lambda number, item: f"{number}. {item}"), """
        Write the list as a numbered list: "1. ", "2. " and so on, one item a line.
        Number the items, each on its own line.
        Turn the comma-separated items into a numbered list.
        Put every item on its own line with its number and a period in front.
        Format the items as an enumerated list."""),
    Function("json", _applied(lambda text, key: json.dumps({key: text})), """
        Write the text as a JSON object with the key "{0}".
        Return JSON with one field, {0}, that holds the text.
        Wrap the text in JSON under the key "{0}".
        Output a JSON object whose "{0}" is the text.
        Format it as JSON: the field is called {0}, the value is the text.""",
        _of("text", "title", "name", "query", "message", "sentence", "answer", "label", "content", "note")),
    Function("json_two", _json_two, """
        The text has two words. Write them as JSON with the keys "{0}" and "{1}".
        Return a JSON object: {0} is the first word, {1} the second.
        Put the first word under "{0}" and the second under "{1}" in JSON.
        Output JSON with the fields {0} and {1} for the two words.
        Make a JSON object out of the two words, called {0} and {1}.""",
        [("first", "second"), ("key", "value"), ("from", "to"), ("word", "next"), ("left", "right"), ("a", "b"),
         ("source", "target"), ("old", "new")]),
    Function("surrounded", _applied(lambda text, name: _AROUND[name].format(text)), """
        Put the text in {0}.
        Surround the text with {0}.
        Wrap it in {0}.
        Write the text between {0}.
        Enclose everything in {0}.""", _of(*_AROUND)),
    Function("prefixed", _applied(lambda text, prefix: f"{prefix} {text}"), """
        Write "{0}" and a space before the text.
        Add the prefix "{0}" to the text.
        Begin the output with "{0}", then copy the text.
        Put {0} in front of the text.
        Copy the text behind the word "{0}".""",
        _of("Note:", "TODO:", "Title:", "Re:", "Warning:", "Question:", "Answer:", "Draft:", "Hello,", ">>")),
    Function("suffixed", _applied(lambda text, end: f"{text}{end}"), """
        Add "{0}" to the end of the text.
        Copy the text and put "{0}" right behind it.
        End the text with "{0}".
        Append {0} to it.
        Write the text followed at once by "{0}".""",
        _of("!", "?", "...", ".", ";", " (end)", " :)", "!!!", " - done")),
    Function("reversed_words", _applied(lambda text: " ".join(reversed(text.split()))), """
        Write the words in reverse order.
        Reverse the order of the words.
        Start with the last word and end with the first.
        Put the words the other way round.
        Return the words backwards, from last to first."""),
    Function("repeated", _one_word, """
        Write the word {0}.
        Repeat the word {0}, with spaces between.
        Say the word {0}.
        Output the word {0}, separated by spaces.
        The word should be there {0}, in a row.""", _of("twice", "three times", "four times")),
    Function("date_format", _date, """
        Write the date in the format {0}.
        Convert the date to {0}.
        Change this date into the form {0}.
        Reformat the date as {0}.
        Give the same date, but as {0}.""", _of(*_DATES)),
    Function("date_part", _date_part, """
        Return the {0} of the date.
        Which {0} is it?
        Extract only the {0}.
        What {0} does the date have?
        Give me the {0} alone.""", _of("year", "month", "day")),
    Function("last_first", _name(lambda first, last: f"{last}, {first}"), """
        Write the name as "Last, First".
        Put the family name first, then a comma and the first name.
        Swap first and last name, with a comma between.
        Turn the name around as in a library catalogue: surname, comma, given name.
        Give the surname, a comma, and the given name."""),
    Function("name_initials", _name(lambda first, last: f"{first[0]}. {last[0]}."), """
        Write the initials of the name, each with a period, such as "A. B.".
        What are the initials of this person? Use periods.
        Abbreviate both names to a letter and a period.
        Shorten the name to its two initials, with periods and a space between.
        Give me the person's initials in the form X. Y."""),
    Function("short_name", _name(lambda first, last: f"{first[0]}. {last}"), """
        Abbreviate the first name to its initial and a period; keep the last name.
        Shorten the first name to a letter, such as "A. Smith".
        Write the name with the first name as an initial.
        Give the first letter, a period, and the surname.
        Keep the surname and make an initial of the given name."""),
    Function("last_name", _name(lambda first, last: last), """
        Return the last name.
        What is the person's surname?
        Drop the first name and keep the family name.
        Extract the family name.
        Give me only the surname."""),
    Function("cut", _cut, """
        Cut the text after {0} words and add "...".
        Shorten the text to {0} words, followed by three dots.
        Keep {0} words and end with "...".
        Truncate it to the first {0} words plus an ellipsis.
        Write no more than the first {0} words, then three dots.""", _of(2, 3, 4, 5)),
    Function("tag", _applied(lambda text, tag: f"<{tag}>{text}</{tag}>"), """
        Put the text into an HTML tag {0}.
        Wrap the text in <{0}> and </{0}>.
        Write it as an HTML element of type {0}.
        Surround the text with the opening and closing tag {0}.
        Mark the text up with the tag <{0}>.""", _of("b", "i", "p", "h1", "h2", "code", "em", "li", "div", "span")),
    Function("filled", _filled, """
        Write the number with {0} digits, filled up with zeros on the left.
        Pad the number with leading zeros to {0} digits.
        Add zeros in front until the number has {0} digits.
        Make it {0} digits long by leading zeros.
        Give the number as {0} digits, zeros first.""", _of(3, 4, 5, 6)),
]  # fmt: skip
