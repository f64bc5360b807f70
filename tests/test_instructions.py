import pytest

from modeling_tagi.instructions import instruction_text, prompt_text


def test_demonstrations_follow_the_instruction():
    text = instruction_text(" Say no. ", [("a", "no"), ["b", "no"]])
    assert text == "Say no.\n\nExample 1: Input: a Output: no\n\nExample 2: Input: b Output: no"


def test_a_prompt_ends_with_the_input():
    assert prompt_text("Say no.", "a?") == "Say no.\n\nInput:\na?"
    assert prompt_text("Say no.", "a?", [("b", "no")]) == instruction_text("Say no.", [("b", "no")]) + "\n\nInput:\na?"


@pytest.mark.parametrize("instruction", ["", "  \n", None, 3])
def test_an_empty_instruction_is_refused(instruction):
    with pytest.raises(ValueError, match="the instruction is .* not empty"):
        instruction_text(instruction)


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", "b", "c"), 3, ("a", None), [("a", "b"), ("c", "d")]])
def test_a_malformed_demonstration_is_named(pair):
    with pytest.raises(ValueError, match=r"demonstration 2 is .* pair \(input, output\)"):
        instruction_text("Say no.", [("a", "no"), pair])


def test_demonstrations_as_one_text_are_refused():
    with pytest.raises(ValueError, match="the demonstrations are 'ab'.*list of pairs"):
        instruction_text("Say no.", "ab")
