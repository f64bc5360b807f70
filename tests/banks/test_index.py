import json

from modeling_tagi.banks.index import ADDED_FILE, INDEX_FILE, BankIndex


def filled(folder, number, start=0):
    index = BankIndex(folder)
    for n in range(start, start + number):
        index.add({f"task {n}": {"folder": f"f{n}"}})
    return index


def test_an_index_is_read_as_it_was_added_to_in_order(tmp_path):
    index = filled(tmp_path, 40)
    assert (tmp_path / ADDED_FILE).is_file()  # some of it stands beside
    again = BankIndex(tmp_path)
    assert list(again.items()) == list(index.items()) and list(again)[-1] == "task 39" and len(again) == 40
    filled(tmp_path, 1, start=40)
    assert list(BankIndex(tmp_path)) == [f"task {n}" for n in range(41)]


def test_adding_one_by_one_writes_each_entry_a_few_times_alone(tmp_path, monkeypatch):
    written, write = [], BankIndex.write
    monkeypatch.setattr(BankIndex, "write", lambda self: (written.append(len(self)), write(self)))
    filled(tmp_path, 500)
    assert len(BankIndex(tmp_path)) == 500 and 0 < sum(written) < 20 * 500


def test_a_few_adapters_are_all_in_the_one_file(tmp_path):
    filled(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_FILE]
    assert list(json.loads((tmp_path / INDEX_FILE).read_text())["adapters"]) == ["task 0", "task 1", "task 2"]


def test_a_line_that_was_cut_off_counts_as_not_added_and_is_written_over(tmp_path):
    filled(tmp_path, 40)
    before = (tmp_path / ADDED_FILE).read_bytes()
    (tmp_path / ADDED_FILE).write_bytes(before + b'{"cut of')
    assert list(BankIndex(tmp_path)) == [f"task {n}" for n in range(40)]
    BankIndex(tmp_path).add({"é": {"folder": "e"}})
    assert list(BankIndex(tmp_path)) == [*(f"task {n}" for n in range(40)), "é"]


def test_two_writers_lose_nothing_of_each_other(tmp_path):
    one, other = BankIndex(tmp_path), BankIndex(tmp_path)
    for number in range(40):
        (one if number % 3 else other).add({f"task {number}" * (number % 5 + 1): {"folder": f"f{number}"}})
    assert [entry["folder"] for entry in BankIndex(tmp_path).values()] == [f"f{number}" for number in range(40)]
    one.add({})
    one.add({"last": {"folder": "last"}})
    assert len(BankIndex(tmp_path)) == 41


def test_being_cut_off_between_the_two_files_changes_nothing(tmp_path):
    index = filled(tmp_path, 40)
    added = (tmp_path / ADDED_FILE).read_bytes()
    index.write()
    (tmp_path / ADDED_FILE).write_bytes(added)
    assert list(BankIndex(tmp_path).items()) == list(index.items())
