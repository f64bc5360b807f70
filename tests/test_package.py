import configparser
from pathlib import Path

import modeling_tagi
from modeling_tagi.training.recipes import FOLDER, recipe_file, recipes

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def lines(section, name):
    return [line for line in SETUP[section][name].split("\n") if line]


def test_a_wheel_has_every_package_and_every_recipe():
    folders = {file.parent for file in (ROOT / "modeling_tagi").rglob("__init__.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(lines("options", "packages")) == packages | {"modeling_tagi.hub_configs"}
    assert lines("options", "package_dir") == ["modeling_tagi.hub_configs = hub_configs"]
    data = {name: value.split(", ") for name, value in SETUP["options.package_data"].items()}
    shipped = {file for pattern in data["modeling_tagi.hub_configs"] for file in (ROOT / "hub_configs").glob(pattern)}
    assert shipped == {file for file in (ROOT / "hub_configs").rglob("*") if file.is_file()}
    beside = {file for file in (ROOT / "modeling_tagi").rglob("*") if file.is_file() and file.suffix not in
              (".py", ".pyc")}  # fmt: skip
    assert ROOT / "modeling_tagi" / "py.typed" in beside
    found = {file for name, patterns in data.items() if name != "modeling_tagi.hub_configs" for pattern in patterns
             for file in ROOT.joinpath(*name.split(".")).glob(pattern)}  # fmt: skip
    assert beside == found


def test_the_version_has_one_source():
    assert SETUP["metadata"]["version"] == "attr: modeling_tagi.__version__"
    assert modeling_tagi.__version__.count(".") == 2


def test_a_recipe_is_found_by_its_name_and_a_file_by_its_path(tmp_path, monkeypatch):
    assert FOLDER == ROOT / "hub_configs" and {"quickstart", "smoke", "my-data"} <= set(recipes())
    assert recipe_file("smoke") == recipe_file("smoke.yaml") == FOLDER / "smoke.yaml"
    assert recipe_file("studies/builtin") == FOLDER / "studies" / "builtin.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.yaml").write_text("seed: 1\n")
    assert recipe_file("smoke.yaml") == Path("smoke.yaml") and recipe_file("smoke") == FOLDER / "smoke.yaml"
