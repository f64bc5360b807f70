"""`tagi demo`: a page in the browser to try a checkpoint on."""

import json

from ..common.arguments import port
from .parsing import add_checkpoint, add_json

HELP = "a page to try a checkpoint on, in the browser"
DESCRIPTION = (
    "Offers a page: an instruction and inputs in; answers with its adapter, with a prompt and with neither, side by\n"
    "side, what the adapter changes where, and the adapter to take along.\n"
    "It needs the extra: pip install 'tagi[demo]'."
)
EXAMPLE = "tagi demo me/my-generator"


def add_arguments(parser):
    add_checkpoint(parser)
    add = parser.add_argument
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="the address to listen at; default: %(default)s")
    add("--port", type=port, metavar="N", default=7860, help="0 takes a free one; default: %(default)s")
    add("--mcp", action="store_true", help="offer it as a tool of the Model Context Protocol too; needs gradio[mcp]")
    add_json(parser, 'print {"url": …} when the page is there, instead of a line of text')


def call(options) -> int:
    try:
        import gradio  # noqa: F401

        if options.mcp:
            import mcp  # noqa: F401
    except ImportError as error:
        extra = "'gradio[mcp]'" if error.name == "mcp" else "'tagi[demo]'"
        options.refuse(f"{error.name} is not installed; pip install {extra}")
    from .loading import load_model

    model = load_model(options.checkpoint)
    from ..demo.page import launch, make_page

    page = make_page(model, options.checkpoint)
    url = launch(page, options.host, options.port or None, options.mcp)
    said = json.dumps({"url": url}) if options.json else f"{options.checkpoint} at {url} (Ctrl-C stops it)"
    print(said, flush=True)
    page.block_thread()
    return 0
