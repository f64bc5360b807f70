"""Functions of two steps, and templates that are filled in."""

import json

from .function import Function
from .select import _of
from .texts import CITIES, email, inserted, person, tokens

_TAKEN = {
    "the first word": lambda words: words[0], "the last word": lambda words: words[-1],
    "the second word": lambda words: words[1], "the longest word": lambda words: max(words, key=len),
    "the first two words": lambda words: " ".join(words[:2]), "the last two words": lambda words: " ".join(words[-2:]),
}  # fmt: skip
_WRITTEN = {
    "in capital letters": str.upper, "in lower case": str.lower, "in double quotes": lambda x: f'"{x}"',
    "with an exclamation mark behind it": lambda x: f"{x}!", "in square brackets": lambda x: f"[{x}]",
    'as JSON under the key "answer"': lambda x: json.dumps({"answer": x}),
}  # fmt: skip
_FILLED = [
    "Hello {first}!", "Dear {first} {last},", "Welcome back, {first}.", "Mr. or Ms. {last}", "{last}_{first}",
    "Name: {first}; Surname: {last}", "user: {first}{last}", "{first} says hi.",
]  # fmt: skip


def _taken(rng, texts, what, how):
    sentence = texts.sentence(rng, 5, 10)
    words = tokens(sentence)
    if what == "the longest word" and sorted(map(len, words))[-2] == max(map(len, words)):
        return None
    return sentence, _WRITTEN[how](_TAKEN[what](words))


def _item(reverse):
    def make(rng, texts):
        items = texts.some(rng, 3, 5)
        return ", ".join(items), sorted(items, reverse=reverse)[0]

    return make


def _sorted_joined(rng, texts, mark):
    items = texts.some(rng, 3, 4)
    return ", ".join(items), f" {mark} ".join(sorted(items))


def _number_plus(rng, texts, more):
    sentence, number = texts.sentence(rng, 4, 7), rng.randint(2, 60)
    if any(character.isdigit() for character in sentence):
        return None
    return inserted(rng, sentence, str(number)), str(number + more)


def _sum(rng, texts):
    numbers = [rng.randint(1, 20) for _ in range(2)]
    return ", ".join(map(str, numbers)), str(sum(numbers))


def _address(rng, texts, host):
    first, last = person(rng)
    return f"{first} {last}", f"{first}.{last}@{host}".lower()


def _template(rng, texts, template):
    first, last = person(rng)
    return f"{first} {last}", template.replace("{first}", first).replace("{last}", last)


def _filled(rng, texts, number):
    return _template(rng, texts, _FILLED[int(number)])


def _name_of_address(rng, texts):
    first, last = person(rng)
    return f"{first}.{last}@{email(rng).split('@')[1]}".lower(), f"{first} {last}"


def _city_of(rng, texts):
    (first, last), city = person(rng), rng.choice(CITIES)
    return f"{first} {last} from {city}", f"{city}: {first} {last}"


def _count_upper(rng, texts):
    words = texts.some(rng, 2, 4)
    return " ".join(words), f"{len(words)}: {' '.join(words).upper()}"


def _first_letters(rng, texts):
    items = texts.some(rng, 3, 5)
    return ", ".join(items), ", ".join(item[0] for item in items)


def _each(change):
    def make(rng, texts):
        items = texts.some(rng, 2, 4)
        return ", ".join(items), ", ".join(map(change, items))

    return make


def _example(number: int) -> str:
    return _FILLED[number].replace("{first}", "Jane").replace("{last}", "Doe")


class _Shown(str):
    """Names a template by its number, and is shown in a wording as what it gives for Jane Doe."""

    def __format__(self, spec):
        return _example(int(self))


FUNCTIONS = [
    Function("take_and_write", _taken, """
        Take {0} and write it {1}.
        Return {0} {1}.
        Find {0} of the text, then output it {1}.
        First pick {0}. Then write it {1}.
        Give me {0}, but {1}.""", [(what, how) for what in _TAKEN for how in _WRITTEN]),
    Function("first_by_alphabet", _item(False), """
        Return the item that comes first in alphabetical order.
        Sort the list and give its first item.
        Which entry of the list is the first by the alphabet?
        Which of these words would stand first in a dictionary?
        Find the alphabetically smallest item."""),
    Function("last_by_alphabet", _item(True), """
        Return the item that comes last in alphabetical order.
        Sort the list and give its last item.
        Which entry of the list is the last by the alphabet?
        Which of these words would stand last in a dictionary?
        Find the alphabetically greatest item."""),
    Function("sort_and_join", _sorted_joined, """
        Sort the items alphabetically and separate them by " {0} ".
        Put the list in alphabetical order, with {0} between the items instead of commas.
        Order the words from A to Z and join them with {0}.
        First sort, then write {0} between the items.
        Give the sorted list, divided by {0}.""", _of("|", ";", "/", "+", ">", "-")),
    Function("number_plus", _number_plus, """
        Find the number in the text and add {0} to it.
        Take the number that is mentioned, plus {0}.
        What is the number in the sentence increased by {0}?
        Extract the number, add {0}, and return the sum.
        Return the number of the text + {0}.""", _of(1, 2, 5, 10)),
    Function("sum", _sum, """
        Add the two numbers.
        What is the sum of the numbers?
        Return the total of both numbers.
        Sum up the list.
        How much do the numbers make together?"""),
    Function("address", _address, """
        Make an e-mail address of the name: first.last@{0}, in small letters.
        What would be this person's address at {0}? Use first name, dot, last name, in lower case.
        Build the mail address first.last@{0}.
        Turn the name into an address of {0}, with a dot between the names and no capitals.
        Write the person's e-mail at {0}, as firstname.lastname.""",
        _of("example.com", "mail.org", "shop.net", "school.edu", "home.info")),
    Function("name_of_address", _name_of_address, """
        Whose e-mail address is it? Write first and last name with capitals.
        Turn the part before the @ into a name: "john.smith@..." becomes "John Smith".
        Return the person's name, as the address has it.
        Extract the full name from the address.
        Read the name off the e-mail address and write it properly."""),
    Function("template", _filled, """
        Fill in the name as in this example: for "Jane Doe" the output is "{0}".
        Write the name in the way in which "Jane Doe" becomes "{0}".
        Jane Doe -> {0}. Do the same with this name.
        With Jane Doe the result would be "{0}". Make the same of the given name.
        As "{0}" is made from "Jane Doe", make a text from this name.""",
        [(_Shown(number),) for number in range(len(_FILLED))]),
    Function("city_first", _city_of, """
        Write the city, a colon, and the name.
        Turn "NAME from CITY" into "CITY: NAME".
        Put the city in front, then a colon and the person.
        Rearrange it as city: person.
        Give the place first, with a colon, and then who it is."""),
    Function("count_and_upper", _count_upper, """
        Write the number of words, a colon, and the text in capitals.
        Count the words, then output the count, ": " and the text in uppercase.
        Return the word count and the text in capital letters, with a colon between.
        Put the number of words and a colon before the text, which is to be in upper case.
        Give the count of words, then a colon, then everything in capitals."""),
    Function("first_letters", _first_letters, """
        Return the first letter of each item, separated by commas.
        Keep only the first letter of every word in the list.
        Shorten each list item to its initial letter.
        Write the beginning letters of the items with commas between.
        Reduce every entry of the list to one letter, its first."""),
    Function("each_upper", _each(str.upper), """
        Write each item of the list in capital letters.
        Make all list items uppercase and keep the commas.
        Convert the list to upper case.
        Put every entry of the list into capitals.
        Return the same list, but with capital letters only."""),
    Function("each_quoted", _each(lambda item: f'"{item}"'), """
        Put each item of the list in double quotes.
        Surround every list item with quotation marks and keep the commas.
        Quote the items of the list one by one.
        Write quotes around each entry.
        Return the same list with every item quoted."""),
    Function("each_starred", _each(lambda item: f"*{item}*"), """
        Put each item of the list between asterisks.
        Surround every list item with stars and keep the commas.
        Emphasise the items one by one with * on both sides.
        Write an asterisk before and after each entry.
        Return the same list with every item in stars."""),
    Function("each_title", _each(str.capitalize), """
        Begin each item of the list with a capital letter.
        Capitalise every list item and keep the commas.
        Make the first letter of each entry uppercase.
        Write the items with capitals at their beginning.
        Return the same list with every item capitalised."""),
]  # fmt: skip
