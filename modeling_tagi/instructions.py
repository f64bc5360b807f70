"""How instructions, demonstrations and inputs become the texts that models read."""

from typing import Optional, Sequence

from .input_checks import require_unicode

# What a causal model reads between an input and its output. Begins and ends with a line's end, where any tokenizer
# starts afresh, so that the parts can be tokenized apart.
OUTPUT_HEAD = "\n\nOutput:\n"


def instruction_text(instruction: str, demonstrations: Optional[Sequence[tuple[str, str]]] = None) -> str:
    """What the hypernetwork reads: the instruction, followed by its worked examples.

    Raises:
        ValueError: if the instruction is empty or a demonstration is no (input, output) pair.
    """
    if isinstance(demonstrations, str):
        raise ValueError(f"the demonstrations are {demonstrations!r}, but must be a list of pairs (input, output)")
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"the instruction is {instruction!r}, but must be a text that is not empty")
    require_unicode(instruction, "the instruction")
    parts = [instruction.strip()]
    for number, pair in enumerate(demonstrations or (), start=1):
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise ValueError(f"demonstration {number} is {pair!r}, but must be a pair (input, output) of texts")
        require_unicode("".join(pair), f"demonstration {number}")
        parts.append(f"Example {number}: Input: {pair[0]} Output: {pair[1]}")
    return "\n\n".join(parts)


def prompt_text(instruction: str, input: str, demonstrations: Optional[Sequence[tuple[str, str]]] = None) -> str:
    """What a prompted model reads: instruction, demonstrations and input in one text."""
    return f"{prompt_head(instruction_text(instruction, demonstrations))}{input}"


def prompt_head(text: str) -> str:
    """What stands before the input in a prompt; `text` is `instruction_text`'s. Ends with a line's end, where any
    tokenizer starts afresh, so that head and input can be tokenized apart."""
    return f"{text}\n\nInput:\n"
