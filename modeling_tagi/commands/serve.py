"""`tagi serve`: a checkpoint behind an API like OpenAI's."""

import json
import os
from pathlib import Path

from ..common.arguments import port, positive, positive_number
from .parsing import add_checkpoint, add_json

HELP = "a server: instructions in, answers out, in OpenAI's API"
DESCRIPTION = (
    "Serves a checkpoint on one machine in the shapes of OpenAI's API. A request's `model` is `tagi:` and an\n"
    "instruction; its adapter is made when it is first asked for, kept on the disk, and requests with different\n"
    "adapters are answered in one batch. It needs the extra: pip install 'tagi[serve]'."
)
EXAMPLE = "tagi serve me/my-generator --port 8000"
KEY = "TAGI_API_KEY"


def add_arguments(parser):
    add_checkpoint(parser)

    def add(name: str, help: str, **options):
        default = "" if options.get("default") is None else "; default: %(default)s"
        parser.add_argument(name, help=f"{help}{default}", **options)

    add("--host", "the address to listen at", metavar="ADDRESS", default="127.0.0.1")
    add("--port", "0 takes a free one", type=port, metavar="N", default=8000)
    add("--adapters", "where adapters are kept, which servers may share; default: one in the Hugging Face cache",
        metavar="FOLDER")  # fmt: skip
    add("--adapters_gb", "what it may grow to, then those used longest ago leave", type=positive_number, default=10.0,
        metavar="GB")  # fmt: skip
    add("--names", "short names of instructions, {name: instruction} in YAML", metavar="FILE")
    add("--api_key_file", f"holds the key that clients must send; else the variable {KEY} does", metavar="FILE")
    add("--max_batch", "most answers written at once", type=positive, default=32, metavar="N")
    add("--max_waiting", "answers that may wait before clients get a 429", type=positive, default=1024, metavar="N")
    add("--max_input_tokens", "of an input", type=positive, default=2048, metavar="N")
    add("--max_new_tokens", "of an answer", type=positive, default=512, metavar="N")
    add("--max_body_kb", "of a request", type=positive, default=1024, metavar="KB")
    add("--window_ms", "a batch starts when so long nothing new came", type=positive_number, default=4.0, metavar="MS")
    add_json(parser, 'print {"url": …, "backbone": …} when requests are taken, instead of a line of text')


def call(options) -> int:
    key = _key(options)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        options.refuse(f"{error.name} is not installed; pip install 'tagi[serve]'")
    from ..serving.model_names import read_names

    names = read_names(options.names) if options.names else {}  # before what takes longer
    from .loading import load_model

    model = load_model(options.checkpoint)
    from ..serving.adapters_on_disk import AdaptersOnDisk, adapters_folder
    from ..serving.api import make_app
    from ..serving.limits import Limits
    from ..serving.server import serve
    from ..serving.service import Service

    limits = Limits(
        body_bytes=options.max_body_kb << 10,
        input_tokens=options.max_input_tokens,
        new_tokens=options.max_new_tokens,
        waiting=options.max_waiting,
        batch=options.max_batch,
        window=options.window_ms / 1000,
    )
    disk = AdaptersOnDisk.of(model, adapters_folder(options.adapters), int(options.adapters_gb * 1e9))
    service = Service(model, disk, limits, names)

    def ready(url: str):
        said = {"url": url, "backbone": service.names.backbone, "adapters": str(service.disk.folder)}
        print(json.dumps(said) if options.json else f"serving {options.checkpoint} at {url} (Ctrl-C stops it)",
              flush=True)  # fmt: skip

    serve(make_app(service, key), options.host, options.port, ready)
    return 0


def _key(options):
    """Returns the key that clients must send, or `None`."""
    if options.api_key_file is None:
        key = os.environ.get(KEY)
        where = f"the variable {KEY}"
    else:
        key, where = Path(options.api_key_file).read_text(encoding="utf-8").strip(), options.api_key_file
    if key is not None and (not key or not key.isascii() or not key.isprintable()):
        options.refuse(f"{where} holds no key; give printable ASCII characters on one line, or none of it")
    return key
