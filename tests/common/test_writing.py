import errno
from types import SimpleNamespace

import pytest

from modeling_tagi.common.writing import naming


@pytest.mark.parametrize("said", ["basic_ios::clear: iostream error", "[enforce fail at inline_container.cc:672] . "
                                  "unexpected pos 64 vs 0", "PytorchStreamWriter failed writing file data/3"])
def test_what_torch_says_of_a_full_disk_is_said_of_the_folder(tmp_path, monkeypatch, said):
    free = 1 << 30
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free))
    with pytest.raises(RuntimeError, match=said[:10].replace("[", ".")), naming(tmp_path / "x" / "y"):
        raise RuntimeError(said)
    free = 4096
    with pytest.raises(OSError) as caught, naming(tmp_path / "x" / "y"):
        raise RuntimeError(said)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "x" / "y")
