import gzip
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from modeling_tagi.data.text import cut_passage, read_text

REAL = Path(os.environ.get("TAGI_DATA", Path(__file__).parents[2].parent / "shared" / "data"), "text")


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    (tmp_path / "b.txt").write_text("one\n\n  two words \n", encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "zero\\nzero", "source": "s"}\n'))
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n')
    (tmp_path / "notes.md").write_text("not text")
    assert read_text(tmp_path) == ["zero\nzero", "one", "two words", "three"]
    assert read_text(tmp_path / "b.txt") == ["one", "two words"]


@pytest.mark.parametrize("name, content, message", [
    ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "a.jsonl, line 2.*'text'"),
    ("a.jsonl", b'{"text": 3}\n', "line 1.*3"),
    ("a.jsonl", b'{"text": " "}\n', "line 1"),
    ("a.txt", b"\n \n", "no passage"),
    ("a.txt", b"one\n\xff\xfe", "a.txt, line 2: not UTF-8"),
    ("a.jsonl", b'{"text": "half \\ud83d"}\n', "a.jsonl, line 1: .* without lone"),
    ("a.md", b"text", "ends in"),
])
def test_unusable_text_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=message):
            read_text(path)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_text(tmp_path / "nowhere")


@pytest.mark.parametrize("length, max_length, min_part", [
    (3, 3, 1), (50, 100, 1), (50, 20, 5), (15, 15, 5), (9, 8, 2),
])
def test_a_cut_gives_three_neighbouring_parts_in_bounds(length, max_length, min_part):
    rng = random.Random(0)
    for _ in range(200):
        a, b, c = cut_passage(list(range(length)), rng, max_length, min_part)
        whole = a + b + c
        assert whole == list(range(whole[0], whole[0] + min(length, max_length)))
        assert min(map(len, (a, b, c))) >= min_part


def test_every_valid_pair_of_cuts_is_equally_likely():
    # 7 tokens in parts of 1 or more: (7 - 1 choose 2) = 15 pairs, so 200 of 3000 draws each; the standard deviation
    # is sqrt(3000 * 1/15 * 14/15) = 13.7, and 60 is more than four of them.
    rng = random.Random(0)
    draws = Counter(tuple(map(len, cut_passage(list(range(7)), rng, 7))) for _ in range(3000))
    assert len(draws) == 15
    assert all(abs(count - 200) < 60 for count in draws.values())


def test_the_window_moves_over_the_whole_passage():
    rng = random.Random(0)
    starts = {cut_passage(list(range(10)), rng, 4)[0][0] for _ in range(300)}
    assert starts == set(range(7))


def test_cuts_follow_the_seed():
    def cuts(seed):
        rng = random.Random(seed)
        return [cut_passage(list(range(30)), rng, 20) for _ in range(5)]

    assert cuts(0) == cuts(0) != cuts(1)


@pytest.mark.parametrize("length, max_length, min_part", [(2, 10, 1), (10, 2, 1), (8, 10, 3), (10, 10, 0)])
def test_what_cannot_be_cut_is_refused(length, max_length, min_part):
    with pytest.raises(ValueError, match=f"{length} tokens"):
        cut_passage(list(range(length)), random.Random(0), max_length, min_part)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here; set TAGI_DATA to the folder that holds text/")
def test_real_text_is_read():
    passages = read_text(REAL)
    assert len(passages) == 10797  # as its README counts
    assert min(map(len, passages)) >= 200
