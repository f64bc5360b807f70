"""What text functions work on: sentences and words of the user's passages, and made-up dates and addresses."""

import random
import re
from dataclasses import dataclass
from typing import Sequence

_MOST_SENTENCES = 20_000
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_PLAIN = re.compile(r"[A-Z][A-Za-z0-9 ,'\-$%:;]*[.!?]")  # of ASCII, without brackets and quotes
_WORD = re.compile(r"[A-Za-z]+")

FIRST_NAMES = (
    "Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Maria Nina Oscar Paul Rosa Sam Tina Will"
).split()
LAST_NAMES = (
    "Adams Baker Carter Davis Evans Fisher Gray Hill Jones King Lewis Moore Owens Price Reed Stone Turner Wood"
).split()
CITIES = (
    "Berlin Boston Cairo Delhi Dublin Geneva Lagos Lima London Madrid Miami Oslo Paris Prague Rome Seoul Tokyo Vienna"
).split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
COLOURS = "red blue green yellow black white brown pink grey purple".split()


@dataclass(frozen=True)
class Texts:
    """Holds the sentences and the words that inputs are made of.

    Args:
        sentences: Plain English sentences of 4 to 16 words.
        words: Different lower-case words of 3 to 9 letters from them.
    """

    sentences: Sequence[str]
    words: Sequence[str]

    @classmethod
    def of(cls, passages: Sequence[str]) -> "Texts":
        """Returns what there is in the passages."""
        found: dict[str, None] = {}
        for passage in passages:
            for sentence in _SENTENCE.split(" ".join(passage.split())):
                if 4 <= len(sentence.split()) <= 16 and len(sentence) <= 90 and _PLAIN.fullmatch(sentence):
                    found.setdefault(sentence)
            if len(found) >= _MOST_SENTENCES:
                break
        words = {word for sentence in found for word in sentence.split()[1:] if re.fullmatch("[a-z]{3,9}", word)}
        return cls(list(found), sorted(words))

    def sentence(self, rng: random.Random, fewest: int = 4, most: int = 16) -> str:
        """Returns a sentence of so many words."""
        while True:
            sentence = rng.choice(self.sentences)
            if fewest <= len(sentence.split()) <= most:
                return sentence

    def short(self, rng: random.Random) -> str:
        """Returns 3 to 6 words of a sentence, without punctuation."""
        words = tokens(self.sentence(rng, 5))
        length = rng.randint(3, min(6, len(words)))
        start = rng.randint(0, len(words) - length)
        return " ".join(words[start: start + length])

    def some(self, rng: random.Random, fewest: int = 3, most: int = 6) -> list[str]:
        """Returns so many different words."""
        return rng.sample(self.words, rng.randint(fewest, most))


def tokens(sentence: str) -> list[str]:
    """Returns the words of a sentence, without the punctuation around them."""
    return [word for part in sentence.split() if (word := part.strip(".,!?;:'\"$%-"))]


def letters(sentence: str) -> list[str]:
    """Returns the runs of letters of a sentence."""
    return _WORD.findall(sentence)


def person(rng: random.Random) -> tuple[str, str]:
    return rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)


def email(rng: random.Random) -> str:
    first, last = person(rng)
    host = rng.choice(("mail.com", "example.org", "post.net", "school.edu", "shop.co", "news.info"))
    return f"{first.lower()}{rng.choice(('.', '_', ''))}{last.lower()}{rng.choice(('', '7', '22'))}@{host}"


def url(rng: random.Random, words: Sequence[str]) -> str:
    return f"https://www.{rng.choice(words)}.{rng.choice(('com', 'org', 'net'))}/{rng.choice(words)}"


def date(rng: random.Random) -> tuple[int, int, int]:
    """Returns year, month and day."""
    return rng.randint(1950, 2029), rng.randint(1, 12), rng.randint(1, 28)


def phone(rng: random.Random) -> str:
    return f"{rng.randint(200, 999)}-{rng.randint(100, 999)}-{rng.randint(1000, 9999)}"


def inserted(rng: random.Random, sentence: str, piece: str) -> str:
    """Returns the sentence with `piece` between two of its words."""
    words = sentence.split()
    place = rng.randint(1, len(words) - 1)
    return " ".join([*words[:place], piece, *words[place:]])
