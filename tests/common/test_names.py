import os

import pytest

from modeling_tagi.common.names import file_name


@pytest.mark.parametrize("name", ["first", "task1_squad-1.1", "A_b.C-d", "x" * 80])
def test_an_ordinary_name_stays(name):
    assert file_name(name) == name


STRANGE = [
    "", ".", "..", "/", "a/b", "a-b/", "a b", "../../../../pwn", "/etc/passwd", "a\0b", "a\\b", "C:\\x", "nul",
    "NUL.txt", ".hidden", "-rf", "x.", "日本語", "日本", "🦊", "\ud800", "x" * 81, "x" * 300, "x" * 299 + "y", "a\nb", "a-b",
]  # fmt: skip


def test_any_other_name_stays_in_its_folder_and_apart():
    made = [file_name(name) for name in STRANGE]
    assert len(set(made)) == len(made) and file_name("a/b") == file_name("a/b")
    assert len({name.lower() for name in made}) == len(made)
    for name in made:
        assert os.path.basename(name) == name and name.isascii() and len(name) <= 100
        assert name.strip("-.") == name and not set(name) & set('\0/\\:*?"<>|\n ')


def test_no_name_can_be_chosen_to_meet_another():
    assert file_name(file_name("a/b")) != file_name("a/b")
