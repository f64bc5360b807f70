"""The arguments of `tagi evaluate` and `tagi compare` that say which data to score, and the settings they mean."""

import argparse

from ..common.arguments import pair, positive


def add_data(parser: argparse.ArgumentParser):
    """Adds the arguments that say which data to score, and how to read it."""
    from ..data.readers import DEFAULT, READERS

    add = parser.add_argument
    makers = " or ".join(repr(name) for name, reader in READERS.items() if not reader.in_folder)
    add("--data", "--path", "--data.path", dest="path", metavar="FOLDER_OR_FILE",
        help="JSON lines or parquet (a file, or a folder with one for each split), or a folder in the layout of "
             f"--source; {makers} makes its own tasks")  # fmt: skip
    add("--source", "--data.source", choices=sorted(READERS), help=f"the layout; default: {DEFAULT}")
    add("--t0_eval", "--data.t0_eval", metavar="FOLDER", help="T0 evaluation sets, added as splits")
    add("--options", "--data.options", nargs="+", action="extend", default=[], type=pair, metavar="KEY=VALUE",
        help="further arguments of the reader, values in YAML")  # fmt: skip
    add("--splits", nargs="+", metavar="SPLIT", help="which ones; default: all but train")
    add("--max_records", type=positive, metavar="N", help="most records of a split, spread over its tasks; default: "
        "all")  # fmt: skip
    add("--batch_size", type=positive, default=64, metavar="N", help="rows at once; default: %(default)s")
    add("--no_rank", action="store_true", help="answer records with options freely instead of ranking the options")
    add("--max_input_length", type=positive, default=512, metavar="N",
        help="tokens kept of an input; default: %(default)s")  # fmt: skip
    add("--max_target_length", type=positive, default=64, metavar="N",
        help="and of an output; default: %(default)s")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N",
        help="of what is drawn, such as wrong instructions; default: %(default)s")  # fmt: skip


def settings_of(options):
    """Returns the settings of a run that the arguments of `tagi evaluate` or `tagi compare` stand for.

    Args:
        options: The command's arguments, as argparse has them.

    Raises:
        ValueError: for an argument with a value that is not allowed, or arguments that do not go together.
    """
    from ..data.readers import DEFAULT, READERS
    from ..evaluation.references import REFERENCES, require_references
    from ..hub import require_folder_for
    from ..training.settings import build_settings

    source, path = options.source, options.path
    without_folder = [name for name, reader in READERS.items() if not reader.in_folder]
    if path in without_folder and source is None:
        source, path = path, None
    source = source or DEFAULT
    if path is None and source not in without_folder and (source != DEFAULT or options.t0_eval is None):
        raise ValueError(f"there is no data; give --data FOLDER, --data {without_folder[0]}, or --t0_eval FOLDER")
    if path is not None and source in without_folder:
        raise ValueError(f"--source {source} makes its own tasks, and has no use for --data {path}; leave out one")
    kinds = {name: REFERENCES[name] for name in options.references if name in REFERENCES}
    for name, kind in kinds.items():
        if kind.needs_bank and options.task_adapters is None:
            raise ValueError(f"the reference {name} needs --task_adapters FOLDER")
    if options.output_dir is not None:
        try:
            require_folder_for("evaluation", options.output_dir)
        except ValueError as error:
            raise ValueError(f"--output_dir: {error}") from None
    if any(kind.tunes for kind in kinds.values()) and dict(options.oracle).get("steps", 1) == 0:
        raise ValueError("--oracle steps=0 tunes nothing; give at least 1 step")
    settings = build_settings({
        "output_dir": options.output_dir,
        "seed": options.seed,
        "max_input_length": options.max_input_length,
        "max_target_length": options.max_target_length,
        "data": {"source": source, "path": path, "t0_eval": options.t0_eval,
                 "options": dict(options.options)},
        "task_adapters": {"given": options.task_adapters},
        "evaluation": {
            "splits": options.splits, "max_records": options.max_records, "batch_size": options.batch_size,
            "rank_options": not options.no_rank, "references": options.references, "oracle": dict(options.oracle),
        },
    })  # fmt: skip
    require_references(settings)
    return settings
