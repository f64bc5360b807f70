"""`tagi study`: many runs from one file, into one table."""

import json

from ..common.arguments import positive
from ..common.writing import naming
from ..training.recipes import recipe_file
from .loading import announce
from .parsing import add_json

HELP = "methods x seeds x training tasks from one YAML file, into one table"
DESCRIPTION = "Runs every method with every seed that a study names; runs that are done are passed over."
EXAMPLE = "tagi study studies/builtin --workers 2"


def add_arguments(parser):
    add = parser.add_argument
    add("study", metavar="STUDY", help="a YAML file, or one that comes along, such as studies/builtin")
    add("--output_dir", metavar="FOLDER",
        help="where it goes, and where it was if it is to go on; default: outputs/<name of the file>")  # fmt: skip
    add("--workers", type=positive, metavar="N", help="runs side by side; default: what the file says")
    add("--threads", type=positive, metavar="N", help="CPU threads of each run; default: what the file says")
    add_json(parser, "print the summary as JSON instead of the table")


def call(options) -> int:
    file = recipe_file(options.study)
    announce(f"reading {file}")
    from ..studies.settings import load_study
    from ..studies.study import run_study

    given = {name: getattr(options, name) for name in ("output_dir", "workers", "threads")}
    study = load_study(file, {name: value for name, value in given.items() if value is not None})
    with naming(study.output_dir):
        folder = run_study(study, options.called)
    if options.json:
        print(json.dumps(json.loads((folder / "summary.json").read_text()), indent=2))
        return 0
    print((folder / "table.md").read_text())
    page = folder / "report" / "index.html"
    print(f"scores in per cent, means over tasks and seeds with 95 % intervals; {page} shows it all")
    return 0
