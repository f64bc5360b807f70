"""Folders made to do harm: nothing of them runs, reads, writes or takes memory; one line says what is wrong."""

import importlib.util
import re

import doors
import hostile_config_cases
import hostile_file_cases
import pytest
from hostile_world import World
from jail import jailed

MOST_BYTES = 400 << 20  # mapped libraries that a door imports at first are most of it
DOCUMENTED = ("ValueError", "OSError", "FileNotFoundError", "HubError", "ImportError", "Refused")
OF_TRANSFORMERS = (doors.auto, doors.auto_config, doors.piped)  # whose messages have several lines
CASES = [pytest.param(case, marks=[pytest.mark.slow] * case.slow, id=case.name.replace("/", " "))
         for case in (*hostile_config_cases.CASES, *hostile_file_cases.CASES)]  # fmt: skip


@pytest.fixture(scope="module")
def world(make_model, make_backbone, tokenizer, tmp_path_factory):
    """Good folders of every kind; each case has a copy of its own."""
    return World(tmp_path_factory.mktemp("hostile") / "world", make_model, make_backbone, tokenizer)


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_a_hostile_folder_happens(case, world, tmp_path):
    if case.door is doors.gguf and importlib.util.find_spec("gguf") is None:
        pytest.skip("pip install gguf")
    place = world.copied(tmp_path / "case")
    case.plant(place)
    outcome = jailed(lambda: case.door(place), place.given, place.outside, tmp_path / "report")
    assert not (outcome.ran or outcome.touched or outcome.written or outcome.connected), outcome
    assert outcome.allocated < MOST_BYTES, outcome
    if case.words is None:
        assert outcome.error is None and "other/repo" not in outcome.message, outcome
    else:
        assert outcome.error in DOCUMENTED and re.search(case.words, outcome.message), outcome
        assert "\n" not in outcome.message or case.door in OF_TRANSFORMERS, outcome
        assert len(outcome.message) < 1000, outcome


def test_the_jail_sees_what_happens(world, tmp_path):
    place = world.copied(tmp_path / "case")
    ran = place.code("ran.py")

    def harm():
        exec(compile(ran.read_text(), str(ran), "exec"), {})
        (tmp_path / "written").write_text("")
        held = bytearray(1 << 29)
        raise RuntimeError(f"{len(held)} bytes")

    outcome = jailed(harm, place.given, place.outside, tmp_path / "report")
    assert outcome.ran == [str(ran)] and outcome.touched == ["outside/ran"] and outcome.allocated >= 1 << 29
    assert set(outcome.written) == {str(place.outside / "ran"), str(tmp_path / "written")}
    assert (outcome.error, outcome.message) == ("RuntimeError", f"{1 << 29} bytes")
    assert jailed(lambda: bytearray(1 << 31), place.given, place.outside, tmp_path / "report").error == "MemoryError"
