"""The rules of the house: imports go down, no modules import each other, and every folder has its layer."""

from pathlib import Path

import pytest
from imports import LAYERS, circles, layer_of, module_files, modules_imported, ships

ROOT = Path(__file__).parents[2]
FILES = module_files(ROOT)
IMPORTED = {name: modules_imported(name, FILES) for name in FILES}


def test_imports_go_down_only():
    upward = [
        f"{name} ({LAYERS[layer_of(name)] or 'flat'}) imports {other} ({LAYERS[layer_of(other)] or 'flat'})"
        for name in FILES
        for other in IMPORTED[name]
        if name and other and layer_of(other) > layer_of(name)
    ]
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other():
    assert not circles(IMPORTED)  # imports inside functions count as well


def test_every_folder_is_a_layer():
    folders = {name.split(".")[0] for name in FILES if "." in name}
    assert folders <= set(LAYERS)


def test_a_circle_and_an_import_upward_are_seen(tmp_path):
    package = tmp_path / "modeling_tagi"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "data" / "__init__.py").touch()
    (package / "data" / "one.py").write_text("from .two import b\n")
    (package / "data" / "two.py").write_text("def f():\n    from .one import a\n    return a\n")
    (package / "flat.py").write_text("from .data import one\n")
    files = module_files(tmp_path)
    imported = {name: modules_imported(name, files) for name in files}
    assert circles(imported) == [{"data.one", "data.two"}]
    assert not circles({name: modules_imported(name, files, lazy=False) for name in files})
    assert layer_of("data.one") > layer_of("flat") and imported["flat"] == {"data.one"}


@pytest.mark.parametrize("name", ["modeling_tagi", "lora"])
def test_flat_modules_ship(name):
    assert ships(name)
