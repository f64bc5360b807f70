"""Metrics for the library `evaluate`: each folder stands alone, is loaded from here and goes to the Hub as it is."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def load_metric(name: str, **options):
    """Loads the `evaluate` metric of the folder `name`, without the network.

    Args:
        name: `"sni_answers"` or `"rank_classification"`.
        options: Options of `evaluate.load`; `keep_in_memory=True` writes no temporary files.

    Raises:
        ValueError: if there is no such folder.
        ImportError: if `evaluate` is not installed.
    """
    names = sorted(script.stem for script in FOLDER.glob("*/*.py") if script.stem == script.parent.name)
    if name not in names:
        raise ValueError(f"there is no metric {name!r}; give one of {', '.join(map(repr, names))}")
    try:
        import evaluate  # seconds, and wanted by few
    except ImportError as error:
        raise ImportError(f"the metric {name!r} needs evaluate, which is missing; pip install evaluate") from error
    return evaluate.load(str(FOLDER / name), **options)
