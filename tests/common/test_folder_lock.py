import pytest

from modeling_tagi.common.folder_lock import alone_in


def test_one_at_a_time_is_in_a_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    with alone_in(folder):
        with pytest.raises(ValueError, match="another process is at work in .*b; wait, or choose another folder"):
            with alone_in(folder):
                raise AssertionError("two were in there")
        (folder / "result").write_text("mine")
    with alone_in(folder):
        assert (folder / "result").read_text() == "mine"


def test_a_folder_that_was_made_for_nothing_goes(tmp_path):
    with pytest.raises(OSError, match="failed"), alone_in(tmp_path / "new"):
        raise OSError("failed")
    assert not list(tmp_path.iterdir())
