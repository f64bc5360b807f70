"""The recipes that come along: `hub_configs/` of a checkout, which an installed package has inside."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
FOLDER = next((x for x in (_PACKAGE / "hub_configs", _PACKAGE.parent / "hub_configs") if x.is_dir()), None)


def recipes() -> list[str]:
    """The names of the recipes for single runs."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml")) if FOLDER is not None else []


def recipe_file(name: str) -> Path:
    """Returns the YAML file of that name; or else the recipe of that name that comes along, such as `quickstart` or
    `studies/builtin`.

    Raises:
        FileNotFoundError: if there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if FOLDER is not None and not path.is_absolute():
        place = FOLDER / (name if path.suffix == ".yaml" else f"{name}.yaml")
        if place.is_file() and place.resolve().is_relative_to(FOLDER.resolve()):
            return place
    raise FileNotFoundError(
        f"there is no configuration {name}; give a YAML file, or the name of a recipe: {', '.join(recipes())}"
    )
