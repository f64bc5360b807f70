import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from modeling_tagi import TagiAdapter
from modeling_tagi.serving.adapters_on_disk import AdaptersOnDisk
from modeling_tagi.serving.generator_mark import generator_mark

FORKED = multiprocessing.get_context("fork")


def written(text):
    """An adapter that tells which instruction it is of."""
    number = float(sum(text.encode()))
    return TagiAdapter({"q": torch.full((1, 2, 3), number)}, {"q": torch.ones(1, 4, 2)}, 4.0).described(
        {"instruction": text}
    )


def number_of(adapter):
    return float(adapter.lora_a["q"][0, 0, 0])


def test_an_adapter_is_computed_once_and_found_after_a_restart(tmp_path):
    asked = []
    cache = AdaptersOnDisk(tmp_path, lambda text: asked.append(text) or written(text), "mark")
    folder = cache.folder_for("say no")
    assert cache.folder_for(" say no ") == folder and asked == ["say no"]
    assert number_of(TagiAdapter.from_pretrained(folder)) == number_of(written("say no"))
    again = AdaptersOnDisk(tmp_path, None, "mark")
    name = again.id_of("say no")
    assert again.find(name) == folder and again.instruction_of(name) == "say no" and again.ids() == [name]
    assert AdaptersOnDisk(tmp_path, None, "other").find(name) is None
    assert again.find("../mark/" + name) is None and again.find("0" * 64) is None
    assert again.instruction_of("0" * 64) is None


def test_threads_that_ask_at_once_compute_it_once(tmp_path):
    asked, together = [], threading.Barrier(64)

    def slow(text):
        asked.append(text)
        time.sleep(0.02)
        return written(text)

    cache = AdaptersOnDisk(tmp_path, slow, "mark")

    def ask(number):
        together.wait()
        return cache.folder_for(f"say {number % 4}")

    with ThreadPoolExecutor(64) as pool:
        folders = set(pool.map(ask, range(64)))
    assert len(folders) == 4 and sorted(asked) == [f"say {number}" for number in range(4)]


def test_processes_that_ask_at_once_compute_it_once(tmp_path):
    def noted(text):
        with open(tmp_path / "asked", "a") as file:
            file.write(f"{text}\n")
        time.sleep(0.05)
        return written(text)

    def work():
        cache = AdaptersOnDisk(tmp_path / "cache", noted, "mark")
        for number in range(5):
            assert number_of(cache.load(f"say {number}")) == number_of(written(f"say {number}"))

    processes = [FORKED.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted((tmp_path / "asked").read_text().split("\n")[:-1]) == [f"say {number}" for number in range(5)]


def test_a_killed_process_leaves_no_half_of_an_adapter(tmp_path):
    def work():
        cache = AdaptersOnDisk(tmp_path, written, "mark")
        for number in range(10**6):
            cache.folder_for(f"say {number}")

    for number, seconds in enumerate((0.0, 0.03, 0.06)):
        process = FORKED.Process(target=work)
        process.start()
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("mark/*"))) <= number and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    cache = AdaptersOnDisk(tmp_path, written, "mark")
    found = cache.ids()
    assert found
    for name in found:
        adapter, expected = TagiAdapter.from_pretrained(cache.find(name)), written(cache.instruction_of(name))
        assert number_of(adapter) == number_of(expected)
    for number in range(len(found) + 1):  # no lock was left behind
        cache.folder_for(f"say {number}")


def test_what_was_used_longest_ago_leaves_when_the_folder_is_full(tmp_path):
    cache = AdaptersOnDisk(tmp_path, written, "mark", spared_seconds=0)
    one = cache.folder_for("say 0")
    cache.max_bytes = 3 * cache.nbytes() + 50
    for number in (1, 2):
        cache.folder_for(f"say {number}")
    for age, number in enumerate((0, 2, 1)):
        os.utime(cache.find(cache.id_of(f"say {number}")), (1000 - age, 1000 - age))
    cache.folder_for("say 3")
    assert cache.nbytes() <= cache.max_bytes and one.exists()
    assert {cache.instruction_of(name) for name in cache.ids()} == {"say 0", "say 2", "say 3"}
    AdaptersOnDisk(tmp_path, written, "another", cache.max_bytes, spared_seconds=0).folder_for("say 4")
    assert {cache.instruction_of(name) for name in cache.ids()} == {"say 0", "say 3"}  # the bound is on all


def test_what_was_just_used_is_spared(tmp_path):
    cache = AdaptersOnDisk(tmp_path, written, "mark", max_bytes=1)
    folders = [cache.folder_for(f"say {number}") for number in range(3)]
    assert all(folder.exists() for folder in folders)
    os.utime(folders[0], (0, 0))
    cache.folder_for("say 3")
    assert not folders[0].exists() and folders[1].exists()


def test_a_damaged_adapter_is_computed_anew(tmp_path):
    cache = AdaptersOnDisk(tmp_path, written, "mark")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (cache.folder_for("say no") / name).write_bytes(b"")
        assert number_of(cache.load("say no")) == number_of(written("say no"))
        assert number_of(TagiAdapter.from_pretrained(cache.folder_for("say no"))) == number_of(written("say no"))


@pytest.mark.parametrize("instruction", ["", "  ", "\ud800", "x" * 5000])
def test_an_instruction_that_cannot_be_read_leaves_nothing(instruction, make_model, tokenizer, tmp_path):
    model = make_model("t5")
    model.tokenizer = tokenizer
    cache = AdaptersOnDisk.of(model, tmp_path)
    with pytest.raises(ValueError):
        cache.folder_for(instruction)
    assert cache.ids() == [] and not [path for path in tmp_path.rglob("*") if ".json" in path.name]


def test_the_mark_is_of_the_weights_and_settings_and_not_of_the_place(make_model, tmp_path):
    model, same = make_model("llama", fusion="none"), make_model("llama", fusion="none")
    model.save_pretrained(tmp_path / "copy")
    mark = generator_mark(model)
    assert mark == generator_mark(same) == generator_mark(type(model).from_pretrained(tmp_path / "copy"))
    with torch.no_grad():
        next(same.hypernetwork.parameters()).mul_(1.01)
    marks = {mark, generator_mark(same), generator_mark(make_model("llama", fusion="none", seed=3)),
             generator_mark(make_model("llama", fusion="none", lora_alpha=4))}  # fmt: skip
    assert len(marks) == 4
