"""`tagi push`: a folder to the Hub."""

import json

from .loading import announce
from .parsing import add_json

HELP = "a checkpoint, adapter or bank folder -> the Hub"
DESCRIPTION = (
    "Uploads a folder (of a run, a checkpoint, an adapter, a bank of task adapters) to a repository on the Hub, made\n"
    "if it is not there. Log in first with `hf auth login`, or set HF_TOKEN."
)
EXAMPLE = "tagi push outputs/quickstart/model me/my-generator --private --tag v1"


def add_arguments(parser):
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="what goes to the Hub")
    add("repo_id", metavar="USER/NAME", help="where it goes")
    add("--private", action="store_true", help="nobody else sees a repository that is made; default: everybody does")
    add("--revision", metavar="BRANCH", help="the branch, which is made if it is not there; default: main")
    add("--tag", metavar="TAG", help="a name for what is uploaded, such as v1; default: none")
    add("--message", metavar="TEXT", help="the commit's message; default: one that says what it is")
    add_json(parser, "print the repository and the commit's address as JSON instead of the address alone")


def call(options) -> int:
    announce(f"looking at {options.folder}")
    from ..publishing.push import push_folder

    names = ("private", "revision", "tag", "message")
    url = push_folder(options.folder, options.repo_id, **{name: getattr(options, name) for name in names})
    print(json.dumps({"repo_id": options.repo_id, "url": str(url)}, indent=2) if options.json else url)
    return 0
