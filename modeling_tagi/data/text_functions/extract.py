"""Functions that extract what stands in a text: numbers, dates, addresses, quotations, fields."""

import re

from .function import Function
from .select import _of
from .texts import (
    CITIES,
    COLOURS,
    DAYS,
    FIRST_NAMES,
    MONTHS,
    date,
    email,
    inserted,
    person,
    phone,
    url,
)


def _with_piece(piece, answer=None):
    """Puts what `piece(rng, texts)` returns into a sentence; the output is that, or `answer` of it."""
    def make(rng, texts):
        made = piece(rng, texts)
        return inserted(rng, texts.sentence(rng, 4, 9), made), answer(made) if answer else made

    return make


def _no_digits(sentence):
    return not re.search(r"\d", sentence)


def _number(rng, texts):
    sentence = texts.sentence(rng, 4, 9)
    number = str(rng.choice((rng.randint(2, 99), rng.randint(100, 9999))))
    return (inserted(rng, sentence, number), number) if _no_digits(sentence) else None


def _year(rng, texts):
    sentence, (year, *_) = texts.sentence(rng, 4, 9), date(rng)
    return (inserted(rng, sentence, f"in {year}"), str(year)) if _no_digits(sentence) else None


def _numbers(choose):
    def make(rng, texts):
        sentence = texts.sentence(rng, 5, 9)
        if not _no_digits(sentence):
            return None
        found = rng.sample(range(2, 200), rng.randint(2, 3))
        words = sentence.split()
        for number, place in zip(found, sorted(rng.sample(range(1, len(words)), len(found)))):
            words.insert(place + found.index(number), str(number))
        return " ".join(words), choose(found)

    return make


def _field(rng, texts, name):
    first, last = person(rng)
    fields = {
        "name": f"{first} {last}", "city": rng.choice(CITIES), "age": str(rng.randint(18, 90)),
        "colour": rng.choice(COLOURS), "price": f"${rng.randint(2, 400)}", "day": rng.choice(DAYS),
        "item": rng.choice(texts.words), "phone": phone(rng),
    }  # fmt: skip
    chosen = rng.sample([key for key in fields if key != name], 3) + [name]
    rng.shuffle(chosen)
    return "; ".join(f"{key}: {fields[key]}" for key in chosen), fields[name]


def _speaker(rng, texts):
    first, last = person(rng)
    return f"{first} {last}: {texts.sentence(rng, 4, 9)}", f"{first} {last}"


def _between(left, right):
    def make(rng, texts):
        piece = texts.short(rng)
        return inserted(rng, texts.sentence(rng, 4, 8), f"{left}{piece}{right}"), piece

    return make


def _one_of(values):
    def make(rng, texts):
        sentence, value = texts.sentence(rng, 4, 9), rng.choice(values)
        if any(word in sentence for word in values):
            return None
        return inserted(rng, sentence, f"({value})"), value

    return make


def _email_part(part):
    def make(rng, texts):
        address = email(rng)
        return address, address.split("@")[part]

    return make


def _file(part):
    def make(rng, texts):
        name = "_".join(texts.some(rng, 1, 2))
        kind = rng.choice(("txt", "pdf", "png", "csv", "docx", "py", "html", "json"))
        return f"{name}.{kind}", name if part == 0 else kind

    return make


FUNCTIONS = [
    Function("number", _number, """
        Extract the number from the text.
        Which number is mentioned in the sentence?
        Return only the number.
        Find the digits in the text and write them down.
        What is the number that occurs in this text?"""),
    Function("year", _year, """
        Extract the year from the text.
        Which year is mentioned?
        Return the year as four digits.
        In what year was it, according to the sentence?
        Find the year that the text names."""),
    Function("all_numbers", _numbers(lambda found: ", ".join(map(str, found))), """
        List all numbers of the text in their order, separated by commas.
        Which numbers occur in the sentence? Separate them by commas.
        Extract every number, with commas between them.
        Find the numbers and join them with commas.
        Give me all the numbers that are mentioned, as a comma-separated list."""),
    Function("largest_number", _numbers(lambda found: str(max(found))), """
        Return the largest number in the text.
        Which of the numbers is the biggest?
        Find the highest number.
        What is the maximum of the numbers in the sentence?
        Pick the greatest number that is mentioned."""),
    Function("smallest_number", _numbers(lambda found: str(min(found))), """
        Return the smallest number in the text.
        Which of the numbers is the lowest?
        Find the least of the numbers.
        What is the minimum of the numbers in the sentence?
        Pick the smallest number that is mentioned."""),
    Function("email", _with_piece(lambda rng, texts: email(rng)), """
        Extract the e-mail address.
        Which email address is in the text?
        Return only the e-mail address.
        Find the mail address in this message.
        What is the e-mail address that is mentioned?"""),
    Function("url", _with_piece(lambda rng, texts: url(rng, texts.words)), """
        Extract the link from the text.
        Which web address is mentioned?
        Return only the URL.
        Find the URL in this message.
        What is the link that the text has?"""),
    Function("hashtag", _with_piece(lambda rng, texts: f"#{rng.choice(texts.words)}"), """
        Extract the hashtag.
        Which hashtag is used in the post?
        Return only the hashtag, with its # sign.
        Find the word that is marked with #.
        What is the hashtag of this text?"""),
    Function("topic_of_hashtag", _with_piece(lambda rng, texts: f"#{rng.choice(texts.words)}", lambda x: x[1:]), """
        Extract the hashtag without the # sign.
        Which word is the hashtag? Leave out the #.
        Return the hashtag's word alone, with no # in front.
        Find the word behind the # sign.
        Give me the hashtag, but drop the # character."""),
    Function("mention", _with_piece(lambda rng, texts: f"@{rng.choice(FIRST_NAMES).lower()}{rng.randint(1, 99)}"), """
        Extract the user who is mentioned with @.
        Which account is mentioned in the post?
        Return only the @ mention.
        Find the user name that begins with @.
        What is the handle in this text?"""),
    Function("phone", _with_piece(lambda rng, texts: phone(rng)), """
        Extract the phone number.
        Which telephone number is in the text?
        Return only the phone number.
        Find the number that one could call.
        What is the phone number mentioned here?"""),
    Function("price", _with_piece(lambda rng, texts: f"${rng.randint(2, 900)}"), """
        Extract the price.
        How much money is mentioned?
        Return only the amount in dollars, with its $ sign.
        Find the price in the text.
        What does it cost, according to the sentence?"""),
    Function("time", _with_piece(lambda rng, texts: f"at {rng.randint(1, 23)}:{rng.randint(10, 59)}",
                                 lambda x: x[3:]), """
        Extract the time of day.
        At what time is it, according to the text?
        Return only the clock time.
        Find the time in the sentence.
        Which hour and minute are mentioned?"""),
    Function("iso_date", _with_piece(lambda rng, texts: "{}-{:02}-{:02}".format(*date(rng))), """
        Extract the date.
        Which date is in the text?
        Return only the date, as it is written.
        Find the calendar date in this message.
        What is the date that is mentioned?"""),
    Function("quoted", _between('"', '"'), """
        Return the text between the quotation marks.
        What is quoted in the sentence? Leave out the quotation marks.
        Extract the quotation without its marks.
        Find the words in double quotes.
        Give me what stands inside the quotes."""),
    Function("in_brackets", _between("(", ")"), """
        Return the text in parentheses.
        What stands between the brackets? Leave out the brackets.
        Extract the words inside ( and ).
        Find the remark in parentheses.
        Give me the bracketed part without the brackets."""),
    Function("in_stars", _between("*", "*"), """
        Return the text between the asterisks.
        What stands between the two stars? Leave out the stars.
        Extract the words inside * and *.
        Find the emphasised part, which is marked with asterisks.
        Give me what the stars surround, without the stars."""),
    Function("speaker", _speaker, """
        Who is speaking? Return the name.
        Extract the speaker's name.
        Return the name before the colon.
        Find out whose line this is.
        Give me only the name of the person who says it."""),
    Function("field", _field, """
        Return the value of the field "{0}".
        What is the {0} in this record?
        Extract the {0}.
        Find "{0}" among the fields and give me its value.
        Look up {0} and write down what it says.""",
        _of("name", "city", "age", "colour", "price", "day", "item", "phone")),
    Function("city", _one_of(CITIES), """
        Which city is mentioned?
        Extract the name of the city.
        Return only the city.
        Find the town in the text.
        Give me the place that is named here."""),
    Function("month", _one_of(MONTHS), """
        Which month is mentioned?
        Extract the name of the month.
        Return only the month.
        Find the month in the text.
        Give me the month of the year that is named here."""),
    Function("weekday", _one_of(DAYS), """
        Which day of the week is mentioned?
        Extract the weekday.
        Return only the day of the week.
        Find the weekday in the text.
        Give me the day that is named here."""),
    Function("colour", _one_of(COLOURS), """
        Which colour is mentioned in brackets?
        Extract the colour.
        Return only the color in parentheses.
        Find the color in the brackets.
        Give me the colour that is named in parentheses."""),
    Function("email_user", _email_part(0), """
        Return the part of the e-mail address before the @ sign.
        What is the user name of this e-mail address?
        Cut the address off at the @ and keep the left part.
        Extract the local part of the address.
        Give me what stands in front of the @."""),
    Function("email_host", _email_part(1), """
        Return the part of the e-mail address after the @ sign.
        What is the domain of this e-mail address?
        Drop everything up to the @ and keep the rest.
        Extract the host of the address.
        Give me what stands behind the @."""),
    Function("file_kind", _file(1), """
        Return the extension of the file name, without the dot.
        What kind of file is it, by its ending?
        Extract the file extension.
        Give the letters after the dot.
        Which file type does the name end with?"""),
    Function("file_stem", _file(0), """
        Return the file name without its extension.
        Drop the dot and what follows it.
        Extract the name of the file before the dot.
        Remove the file ending.
        Give me the part in front of the dot."""),
]  # fmt: skip
