"""The built-in suite in English as people write it, for a language model that has read much text.

The tasks are those of the plain wordings; the instructions are others, and lists have commas.
"""

import random

from .builtin_families import CATEGORIES, with_article

TRAIN_WORDINGS, NEW_WORDINGS = range(8), range(8, 12)
# What may stand before and after a wording; "" is drawn as often as it stands here.
_OPENINGS = ("", "", "", "", "The input is a list of words. ", "You get some words, with commas between them. ",
             "Here is a small task with a list of words. ", "Read the words carefully. ")  # fmt: skip
_CLOSINGS = ("", "", "", "", " Answer with nothing else.", " Do not explain your answer.", " Give only the answer.",
             " I only need the answer itself, thanks.")  # fmt: skip
_NEW_OPENINGS = ("", "", "Below you will find a few words. ", "I have a list of words for you. ")
_NEW_CLOSINGS = ("", "", " No explanation, please.", " Reply with just that.")
_COMMAS = (" Put a comma between words.", " Separate words by commas.")
_NEW_COMMAS = (" Use commas between words.",)
_SAID = {"last but one": "second-to-last"}  # words of the plain wordings that few people would use here

# Twelve instructions for each family, one a line; the last four are kept for "new_wordings". `{0:a}` is an argument
# with its article, `{0:s}` its plural, and `{0:S}` that at the start of a sentence.
_WORDINGS = {
    "contains_category": """Does the list contain {0:a}? Answer yes or no.
        Is any of these words {0:a}? Reply with yes or no.
        Say yes if the list mentions {0:a}, and no if it does not.
        Look through the words. If at least one of them is {0:a}, answer "yes"; otherwise answer "no".
        I want to know whether there is {0:a} among the words. Yes or no?
        Check the list for {0:s}. Answer yes if you find one and no if you find none.
        Any {0:s} in the list (yes/no)?
        Decide whether one or more of the words name {0:a}. Your answer must be yes or no.
        Can you find {0:a} in the list? Write yes if you can and no if you cannot.
        Tell me with a yes or a no whether some word stands for {0:a}.
        Answer "no" when none of the words is {0:a}, and "yes" otherwise.
        yes or no: is {0:a} listed?""",
    "label_if_category": """If the list contains {0:a}, answer "{1}"; otherwise answer "{2}".
        Write {1} if there is {0:a} among the words and {2} if there is none.
        We mark lists that mention {0:a} as {1} and all other lists as {2}. Which mark does this list get?
        Label the list: {1} means that it has at least one {0}, {2} means that it has none.
        {0:S} in the list: {1}. No {0:s}: {2}.
        Check whether any of the words is {0:a}. If one is, reply {1}. If not, reply {2}.
        Your answer is either {1} or {2}. It is {1} when one of the words names {0:a}, and {2} when none does.
        Say "{2}" if the list has no {0}, and "{1}" if it has one.
        Sort the list into one of two boxes. The box {1} is for lists with {0:a}, the box {2} for lists without.
        Do you see {0:a}? Then the answer is {1}. If you see none, the answer is {2}.
        Choose {1} for a list that includes some {0}, or {2} for one that does not.
        Lists with {0:s} are {1}, lists without are {2}. What is this one?""",
    "first_of_category": """Write the first {0} in the list.
        Which {0} comes first? Write only that word.
        Read the words from left to right and copy the first one that is {0:a}.
        Of all the {0:s} in the list, give the one that appears earliest.
        First {0} only.
        Find the {0} nearest to the beginning of the list and write it down.
        The list has one or more {0:s}. Tell me which of them is mentioned first.
        Ignore every word that is not {0:a}. What is the first word that remains?
        Go through the list until you meet {0:a}, then stop and write that word.
        What is the first {0} mentioned here?
        Starting at the beginning, name the first {0} you come across.
        Give me the {0} that is listed before any other {0}.""",
    "last_of_category": """Write the last {0} in the list.
        Which {0} comes last? Write only that word.
        Read the words from left to right and copy the last one that is {0:a}.
        Of all the {0:s} in the list, give the one that appears latest.
        Last {0} only.
        Find the {0} nearest to the end of the list and write it down.
        The list has one or more {0:s}. Tell me which of them is mentioned last.
        Ignore every word that is not {0:a}. What is the last word that remains?
        Go backwards from the end of the list until you meet {0:a}, and write that word.
        What is the last {0} mentioned here?
        Starting at the end and reading backwards, name the first {0} you come across.
        Give me the {0} that is listed after every other {0}.""",
    "all_of_category": """List every {0} among the words, in the order in which they appear.
        Keep the {0:s} and drop all other words. Separate them with commas.
        Copy all words that name {0:a}, in order.
        Which of the words are {0:s}? Write them in the order of the list, with commas between them.
        {0:S} only.
        Remove everything from the list that is not {0:a}.
        I am only interested in {0:s}. Please give me all of those in the list, and keep their order.
        Filter the list so that only {0:s} are left.
        Write down each {0} you find, from the first to the last.
        Extract the {0:s} from the list.
        Strike out the words that are not {0:s} and tell me what remains.
        Find all {0:s} and give them as a comma-separated list.""",
    "nth_word": """Write the {0} word of the list.
        What is the {0} word?
        Copy only the word in {0} position.
        Count through the list and give me the {0} word.
        {0} word only
        Which word stands in {0} place? Write it and nothing more.
        Skip all words but the {0} one.
        From the list, return the {0} item.
        Pick out the {0} of these words.
        Could you tell me which word is the {0} in the list?
        Leave everything out except for the {0} word.
        Find the {0} item of the list and repeat it.""",
    "kind_of_nth": """What kind of thing is the {0} word: {kinds}?
        Look at the {0} word of the list. Is it {a_kinds}?
        Name the category of the {0} word. The categories are {kinds_and}.
        Each word belongs to one of these groups: {kinds_and}. Which group does the {0} word belong to?
        Category of the {0} word ({kinds})
        Take the word in {0} position and say what it is, choosing from {kinds_and}.
        Classify the {0} word as {kinds}.
        Does the {0} word name {a_kinds}? Answer with the kind.
        Tell me what sort of thing the {0} word stands for. Possible answers: {kinds}.
        Put the {0} item of the list into one of these classes: {kinds_and}.
        Of the kinds {kinds_and}, which one fits the {0} word?
        Decide if the {0} word is {a_kinds}, and write which.""",
    "nth_is_category": """Is the {0} word {1:a}? Answer yes or no.
        Say yes if the {0} word names {1:a}, and no otherwise.
        Look at the word in {0} position. If it is {1:a}, answer "yes"; if it is anything else, answer "no".
        Does {1:a} stand in {0} place? Reply with yes or no.
        {0} word = {1}? yes/no
        Check whether the {0} item of the list is {1:a}, and tell me yes or no.
        I would like to know if the {0} word belongs to the {1:s}. Write yes if it does and no if it does not.
        Answer with yes when the {0} of these words is a kind of {1}, and with no when it is not.
        Find the {0} word. Would you call it {1:a}? Yes or no.
        Is it true that the {0} word is {1:a}? Write yes or no.
        Write no unless the {0} word is {1:a}; in that case write yes.
        Among {1:s}, would you count the {0} word? Say yes or no.""",
    "repeat_nth": """Write the {0} word of the list {1}.
        Repeat the {0} word so that it appears {1}, with commas in between.
        Copy the word in {0} position {1}.
        Say the {0} word {1}, one after another.
        {0} word, {1}
        Find the {0} word and write it {1}, separated by commas.
        Your answer should be the {0} word of the list, written {1}.
        Which word is the {0}? Give it {1} in a row.
        Take the {0} item of the list and say it {1}.
        I want to read the {0} word {1}.
        Print the {0} word {1}, with a comma after each but the last.
        Pick the {0} of these words and put it down {1}.""",
    "two_words": """Write the {0} word and then the {1} word.
        Copy the {0} and the {1} word of the list, in this order.
        Give two words: first the {0} one, then the {1} one.
        Which words are in {0} and in {1} position? Write both, separated by a comma.
        {0} word, {1} word
        From the list, return the {0} item followed by the {1} item.
        Take the {0} word, add the {1} word after it, and leave out the rest.
        Find the {0} word of the list and write it down. Do the same with the {1} word.
        Answer with the {0} word, a comma, and the {1} word.
        Tell me the {0} word and after that the {1} one.
        I need just two items of the list, the {0} and then the {1}.
        Make a new list out of the {0} and the {1} word.""",
    "nth_then_noun": """Write the {0} word of the list and then the word "{1}".
        Copy the {0} word and add {1} after it.
        Give the {0} word, followed by "{1}".
        Find the word in {0} position. Write it, a comma, and then {1}.
        {0} word, then {1}
        Take the {0} item of the list and put the word {1} behind it, separated by a comma.
        Your answer has two words: the {0} word of the list, and "{1}".
        Start with the {0} word of the list and end with {1}.
        What is the {0} word? Write it down and continue with the word {1}.
        Leave out all but the {0} word, then add "{1}" at the end.
        Make a list of two: the {0} of these words, and {1}.
        After the {0} word of the list, write {1}.""",
    "which_first": """Which word comes first in the list, {0} or {1}?
        Does {0} or {1} come earlier? Write that word.
        The list contains both "{0}" and "{1}". Which of the two stands nearer to the beginning?
        Of {0} and {1}, give the one that appears before the other.
        First in the list: {0} or {1}?
        Read the list until you meet {0} or {1}, and write the one you met.
        Find {0} and find {1}. Answer with whichever of them is listed earlier.
        Tell me which is mentioned first, {0} or {1}.
        Choose between {0} and {1}: write the one that is nearer to the front of the list.
        Going from left to right, do you reach {0} or {1} sooner?
        Compare the places of {0} and {1} in the list and name the earlier word.
        Who is ahead in the list, {0} or {1}?""",
    "add_noun": """Copy the list and add "{0}" at the end.
        Write all the words, and {0} after them.
        Append {0} to the list.
        Put the word {0} at the end of the list and give me the whole list.
        the whole list plus {0}
        Repeat every word in the same order. Then add one more word: {0}.
        The word "{0}" is missing at the end of this list. Write the list with it.
        Extend the list by {0}, keeping the commas.
        Give back the list with {0} as its new last word.
        Say the whole list again and finish with {0}.
        Please attach {0} to the end of these words and write everything.
        Reproduce the list, followed by {0}.""",
    "noun_then_nth": """Write "{0}" and then the {1} word of the list.
        First write {0}, then copy the {1} word.
        Give {0}, followed by the {1} word of the list.
        Put the word {0} before the {1} word and write both, with a comma between them.
        the word {0}, then the {1} word
        Begin your answer with {0}. After a comma, add the word in {1} position.
        Your answer has two words: "{0}", and the {1} word of the list.
        Start with {0} and end with the {1} item of the list.
        Say {0} and continue with the {1} word.
        Keep just the {1} word and place {0} in front of it.
        Make a list of two: {0}, and the {1} of these words.
        Before the {1} word of the list, write {0}; leave the other words out.""",
    "category_then_noun": """Write the {0} in the list and then the word "{1}".
        Copy the {0} and add {1} after it.
        Give the {0} from the list, followed by "{1}".
        Find the word that is {0:a}. Write it, a comma, and then {1}.
        the {0}, then {1}
        One of the words names {0:a}. Take it and put the word {1} behind it, separated by a comma.
        Your answer has two words: the {0} from the list, and "{1}".
        Start with the {0} that is in the list and end with {1}.
        Which word is {0:a}? Write it down and continue with the word {1}.
        Leave out all but the {0}, then add "{1}" at the end.
        Make a list of two: the {0} among these words, and {1}.
        After the only {0} of the list, write {1}.""",
    "two_categories": """Write the {0} in the list and then the {1}.
        Copy the {0} and the {1} from the list, in this order.
        Give two words: first the {0}, then the {1}.
        Which word is {0:a}, and which is {1:a}? Write both, separated by a comma.
        the {0}, the {1}
        From the list, return the {0} followed by the {1}.
        Take the word that names {0:a}, add the one that names {1:a} after it, and leave out the rest.
        Find the {0} and write it down. Do the same with the {1}.
        Answer with the {0}, a comma, and the {1}.
        Tell me the {0} and after that the {1}.
        I need just two words of the list, the {0} and then the {1}.
        Make a new list out of the {0} and the {1}.""",
    "noun_then_category": """Write "{0}" and then the {1} in the list.
        First write {0}, then copy the {1} from the list.
        Give {0}, followed by the {1} from the list.
        Put the word {0} before the {1} and write both, with a comma between them.
        the word {0}, then the {1}
        Begin your answer with {0}. After a comma, add the word of the list that is {1:a}.
        Your answer has two words: "{0}", and the {1} from the list.
        Start with {0} and end with the {1} that is in the list.
        Say {0} and continue with the {1}.
        Keep just the {1} and place {0} in front of it.
        Make a list of two: {0}, and the {1} among these words.
        Before the only {1} of the list, write {0}; leave the other words out.""",
    "either_category": """Write the word that is {0:a} or {1:a}.
        Find the {0} or the {1} in the list and write it.
        The list has either {0:a} or {1:a}. Copy that word.
        One of the words names {0:a} or {1:a}. Which one?
        {0} or {1} in the list
        Look for {0:a}. If you find none, look for {1:a}. Write the word you found.
        Only one of these words is {0:a} or {1:a}; give me that one.
        Pick out the single word that belongs to the {0:s} or the {1:s}.
        Leave out each word that is neither {0:a} nor {1:a}. What remains?
        Tell me the {0}, or the {1} if that is what the list has.
        Which word would you find among {0:s} or {1:s}?
        Search the list for any {0} or {1} and return it.""",
    "category_or_noun": """Write the {0} in the list, or "{1}" if there is none.
        If one of the words is {0:a}, copy it. Otherwise write {1}.
        Find the {0}. If the list has no {0}, answer {1}.
        Which word is {0:a}? Say "{1}" if none is.
        the {0}, or else {1}
        Give me the {0} from the list. Should there be none, give me the word {1} instead.
        Look for {0:a} among the words and write it; when you find nothing, write {1}.
        The answer is the word that names {0:a}. Without such a word, the answer is {1}.
        Answer {1} unless the list has {0:a}; if it has, answer with that word.
        Return the {0}, with {1} as the answer for lists without one.
        Is there {0:a}? Then write it down. If not, {1} is what you write.
        Name the {0} in the list, and if you cannot find one, just say {1}.""",
    "repeat_category": """Write the {0} in the list {1}.
        Repeat the {0} so that it appears {1}, with commas in between.
        Copy the word that is {0:a} {1}.
        Say the {0} {1}, one after another.
        the {0}, {1}
        Find the {0} and write it {1}, separated by commas.
        Your answer should be the {0} from the list, written {1}.
        Which word names {0:a}? Give it {1} in a row.
        Take the {0} out of the list and say it {1}.
        I want to read the {0} {1}.
        Print the {0} {1}, with a comma after each but the last.
        Pick the only {0} among these words and put it down {1}.""",
    "always_noun": """Write the word "{0}", whatever the list says.
        Ignore the list and answer {0}.
        The answer is always {0}.
        Do not read the words. Just write {0}.
        just {0}, no matter what
        For every list the right answer is the word {0}, so write that.
        Leave out all of the words and say {0} instead.
        Reply with "{0}" and nothing else, even if the list does not contain it.
        Never mind the words you are given; your answer is {0}.
        Say {0}. The list does not matter.
        Forget about the list and write down {0}.
        Regardless of the input, respond with {0}.""",
}
_SEVERAL = {"all_of_category", "repeat_nth", "two_words", "nth_then_noun", "add_noun", "noun_then_nth",
            "category_then_noun", "two_categories", "noun_then_category", "repeat_category"}  # fmt: skip


class _Argument(str):
    """Holds an argument of a task: `format` writes it as it is, or as the format `a`, `s` or `S` says."""

    def __format__(self, form: str) -> str:
        plural = self + "s"
        return {"": str(self), "a": with_article(str(self)), "s": plural, "S": plural.capitalize()}[form]


def _listed(items: list[str], word: str) -> str:
    return f"{', '.join(items[:-1])} {word} {items[-1]}"


_KINDS = {
    "kinds": _listed(list(CATEGORIES), "or"),
    "a_kinds": _listed([with_article(kind) for kind in CATEGORIES], "or"),
    "kinds_and": _listed(list(CATEGORIES), "and"),
}


def english_instruction(family: str, arguments: tuple[str, ...], wording: int) -> str:
    """Returns one of a task's twelve instructions.

    Some get a sentence before or after what stands in the table, drawn for the task and the wording; those that
    "new_wordings" gets are others than those of training.
    """
    lines = _WORDINGS[family].splitlines()
    said = lines[wording].strip().format(*[_Argument(_SAID.get(word, word)) for word in arguments], **_KINDS)
    said = said[0].upper() + said[1:]
    new = wording in NEW_WORDINGS
    openings, closings = (_NEW_OPENINGS, _NEW_CLOSINGS) if new else (_OPENINGS, _CLOSINGS)
    if family in _SEVERAL and "comma" not in said:
        closings += _NEW_COMMAS if new else _COMMAS
    rng = random.Random(f"{family} {','.join(arguments)} {wording}")
    opening, closing = rng.choice(openings), rng.choice(closings)
    if closing and said[-1] not in ".?!":
        said += "."
    return opening + said + closing
