"""Raw text for pretraining: passages, and their cut into a, b, c."""

import random
from pathlib import Path
from typing import Union

from ..common.json_text import is_unicode, not_utf8
from .tables import field, read_json_rows

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")


def read_text(path: Union[str, Path]) -> list[str]:
    """Reads the passages of a file, or of all such files of a folder in the order of their names.

    Args:
        path: A .txt file with a passage a line, or a .jsonl or .jsonl.gz file with the field `text`.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if nothing readable is there, a line has no text, or no passage is found.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
    elif path.is_file():
        files = [path] if path.name.endswith(SUFFIXES) else []
    else:
        raise FileNotFoundError(f"{path} is neither a file nor a folder; give one with {', '.join(SUFFIXES)} text")
    if not files:
        raise ValueError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}; give one that does")
    passages = [passage for file in files for passage in _passages(file)]
    if not passages:
        raise ValueError(f"{path} holds no passage, just blank lines; give a text with a passage a line")
    return passages


def cut_passage(
    ids: list[int], rng: random.Random, max_length: int, min_part: int = 1
) -> tuple[list[int], list[int], list[int]]:
    """Cuts a passage at random into a, b, c for eq. 3: a for the hypernetwork, b for the LM, c to be predicted.

    A passage longer than `max_length` is first cut to a random window of that length. All pairs of cut points that
    leave every part long enough are equally likely, as if two points were drawn independently until they fit.

    Args:
        ids: Token ids.
        rng: Source of the draws.
        max_length: Most tokens of a, b and c together.
        min_part: Fewest tokens of each.

    Raises:
        ValueError: if three parts of `min_part` tokens do not fit into the passage or into `max_length`.
    """
    length = min(len(ids), max_length)
    spare = length - 3 * min_part
    if min_part < 1 or spare < 0:
        raise ValueError(
            f"a passage of {len(ids)} tokens, at most {max_length} of them used, cannot be cut into three parts of at "
            f"least {min_part} (1 or more); leave out passages under 3 * min_part tokens, or change the two settings"
        )
    start = rng.randint(0, len(ids) - length)
    # Two of spare + 2 places without order are one to one with the valid pairs: nothing has to be drawn twice.
    first, second = sorted(rng.sample(range(spare + 2), 2))
    first, second = start + first + min_part, start + second - 1 + 2 * min_part
    return ids[start:first], ids[first:second], ids[second:start + length]


def _passages(path: Path) -> list[str]:
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from None
        return [line.strip() for line in lines if line.strip()]
    passages = []
    for where, row in read_json_rows(path):
        text = field(row, "text", where)
        if not isinstance(text, str) or not text.strip() or not is_unicode(text):
            raise ValueError(
                f"{where}: field 'text' is {text!r:.200}, but must be a text that is not empty, and without lone "
                "surrogates"
            )
        passages.append(text)
    return passages
