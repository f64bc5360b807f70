"""What is wrong with the folder of a run that should be whole."""

import json

from case import Outcome, Place


def finished(place: Place, outcome=None):
    """What is wrong with a run's folder that should hold a whole run."""
    folder = place.out
    for name in ("results.json", "results.md", "model/model.safetensors", "model/config.json", "report/index.html"):
        if not (folder / name).is_file():
            return f"there is no {name}"
    return not_finite(folder / "model" / "model.safetensors")


def not_finite(file):
    from safetensors.torch import load_file

    bad = [name for name, x in load_file(file).items() if not x.isfinite().all()]
    return f"{len(bad)} tensors are not finite" if bad else None


def as_the_first(place: Place, outcome: Outcome):
    """What is wrong with a run that should have ended as the one that all cases share."""
    from safetensors.torch import load_file

    wrong = finished(place)
    if wrong:
        return wrong
    one, two = (load_file(run / "model" / "model.safetensors") for run in (place.world.run, place.out))
    if one.keys() != two.keys() or any(not one[name].equal(two[name]) for name in one):
        return "other weights than the run that was not cut off"
    first, second = (json.loads((run / "results.json").read_text())["splits"] for run in (place.world.run, place.out))
    return None if first == second else "other scores than the run that was not cut off"
