"""The page itself, in Gradio."""

import shutil
import tempfile
import time
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Callable, Optional

import gradio as gr

from ..adapter import TagiAdapter
from ..function import Answer
from ..modeling_tagi import TagiModel
from .answers import MOST_INPUTS, WAYS, Shown, lines_of, shown
from .changes import plot_of_changes

KEPT_SECONDS = 3600  # that what was made for a visitor stays on the disk
EXAMPLE = "Decide whether the review is positive or negative."
INPUTS = "The plot was dull and I left early.\nA warm, funny film that I will see again."
OPTIONS = "positive, negative"
_HEADS = {"adapter": "with the adapter", "prompt": "with the instruction in the input", "neither": "with neither"}
_STYLE = """
.answers table { width: 100%; border-collapse: collapse; }
.answers table, .answers tr, .answers th, .answers td { border: 0 !important; }
.answers th, .answers td { text-align: left; vertical-align: top; padding: .4rem .6rem; overflow-wrap: anywhere; }
.answers tr { border-bottom: 1px solid var(--border-color-primary) !important; }
.answers td.own { font-weight: 600; }
@media (max-width: 640px) {
  .answers thead { display: none; }
  .answers td { display: block; padding: .1rem .4rem; }
  .answers td::before { content: attr(data-head) ": "; color: var(--body-text-color-subdued); font-weight: 400; }
  .answers tr { display: block; padding: .4rem 0; }
}
"""


def make_page(model: TagiModel, name: str) -> gr.Blocks:
    """Returns the page of a model, which `launch` offers.

    Args:
        model: In eval mode, on the device where it is to compute.
        name: The checkpoint's, for the title.
    """
    page = gr.Blocks(
        title=f"TAGI: {name}", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS), fill_width=False
    )

    with page:
        gr.Markdown(
            f"# From an instruction to an adapter\n`{escape(name)}` reads the instruction once and writes a LoRA for "
            "its language model, which then answers inputs that do not hold the instruction."
        )
        with gr.Row():
            with gr.Column(scale=1):
                instruction = gr.Textbox(EXAMPLE, label="Instruction", lines=3, elem_id="instruction")
                inputs = gr.Textbox(INPUTS, label=f"Inputs, one a line (up to {MOST_INPUTS})", lines=5,
                                    elem_id="inputs")  # fmt: skip
                options = gr.Textbox(OPTIONS, label="What may be answered, with commas between; empty: anything",
                                     elem_id="options")  # fmt: skip
                most = gr.Slider(1, 128, 32, step=1, label="Tokens of a free answer, at most")
                button = gr.Button("Answer", variant="primary", elem_id="answer")
            with gr.Column(scale=2):
                table = gr.HTML(elem_id="answers", elem_classes=["answers"])
                distance = gr.Markdown(elem_id="distance")
                with gr.Row():
                    peft = gr.DownloadButton("Adapter for PEFT", interactive=False, elem_id="peft")
                    gguf = gr.DownloadButton("Adapter as GGUF", interactive=False, elem_id="gguf")
                gr.Markdown("What the adapter changes: the size of its update by layer and module")
                changes = gr.Plot(show_label=False, elem_id="changes")
        shows = [table, distance, changes, peft, gguf]
        button.click(_pressed(model), [instruction, inputs, options, most], shows, api_visibility="private")
        gr.api(_answer(model), api_name="answer")
    return page


def _answer(model: TagiModel) -> Callable[..., list[str]]:
    """Returns the function that programs call; its docstring is what they are told of it."""

    def answer(
        instruction: str, inputs: list[str], options: Optional[list[str]] = None, max_new_tokens: int = 32
    ) -> list[str]:
        """Answers inputs by an instruction: a generator reads it once and writes an adapter for a language model.

        Args:
            instruction: What to do with each input.
            inputs: The texts to answer.
            options: What may be answered; nothing lets the model write freely.
            max_new_tokens: The most tokens of a free answer.
        """
        with _told():
            found = shown(model, instruction, inputs, options or (), max_new_tokens)
        return [one.text for one in found.answers["adapter"]]

    return answer


def _pressed(model: TagiModel) -> Callable[..., tuple]:
    """Returns the function of the page's button, which keeps files to download in a folder that ends with it."""
    files = tempfile.TemporaryDirectory(prefix="tagi-page-")

    def pressed(instruction: str, inputs: str, options: str, max_new_tokens: int):
        with _told():
            choices = [one.strip() for one in (options or "").split(",") if one.strip()]
            found = shown(model, instruction, lines_of(inputs), choices, int(max_new_tokens))
            peft, gguf = _files(found.adapter, Path(files.name))
        return (table_of(found), distance_of(found), plot_of_changes(found.adapter),
                gr.DownloadButton(value=peft, interactive=True),
                gr.DownloadButton(value=gguf, interactive=gguf is not None))  # fmt: skip

    return pressed


def launch(page: gr.Blocks, host: str, port: Optional[int], mcp: bool = False) -> str:
    """Offers the page from threads of its own, and returns its address; `page.block_thread()` waits for Ctrl-C.

    No fonts come from elsewhere, there is no tunnel, and nothing is told to Gradio's makers.

    Args:
        host, port: Where it listens; `None` takes a free port from 7860 on, or what `GRADIO_SERVER_PORT` says.
        mcp: Whether it is a tool of the Model Context Protocol too.

    Raises:
        OSError: if the port is taken.
    """
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Default(font=fonts[0], font_mono=fonts[1])
    return page.queue(max_size=64).launch(
        server_name=host, server_port=port, mcp_server=mcp, theme=theme, css=_STYLE, share=False, ssr_mode=False,
        footer_links=["api"], quiet=True, prevent_thread_lock=True,
    )[1]  # fmt: skip


def table_of(found: Shown) -> str:
    """Returns the answers as a table in HTML: a row for each input, a column for each way."""
    heads = ["input", *(_HEADS[way] for way in WAYS)]
    rows = []
    for place, text in enumerate(found.inputs):
        cells = [("", escape(text)), *((way, _cell(found.answers[way][place])) for way in WAYS)]
        rows.append("".join(
            f'<td class="{"own" if way == "adapter" else way}" data-head="{escape(head)}">{cell}</td>'
            for head, (way, cell) in zip(heads, cells)
        ))  # fmt: skip
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(answer: Answer) -> str:
    scores = answer.scores or {}
    told = "; ".join(f"{option}: {score:.2f}" for option, score in scores.items())
    text = escape(answer.text or "") or "<i>nothing</i>"
    return f'<span title="{escape(told)}">{text}</span>'


def distance_of(found: Shown) -> str:
    """Returns how far the instruction is from training's, and the nearest of these, as Markdown."""
    lines = [f"This instruction is {found.far}."] if found.far else []
    return "\n".join([*lines, *(f"* near: {_plain(text)}" for text in found.nearest)])


def _plain(text: str) -> str:
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#|!" else letter for letter in " ".join(text.split()))


@contextmanager
def _told():
    """Shows errors that are for people on the page; others go to the log alone."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def _files(adapter: TagiAdapter, folder: Path) -> tuple[str, Optional[str]]:
    """Writes an adapter as a zip of its PEFT folder and as GGUF, which is `None` where it cannot be one.

    What was written there for others goes when it is old; Gradio has copies of its own while they are offered.
    """
    for old in folder.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    place = Path(tempfile.mkdtemp(dir=folder))
    adapter.save_pretrained(place / "adapter")
    peft = shutil.make_archive(str(place / "adapter"), "zip", place / "adapter")
    shutil.rmtree(place / "adapter")
    gguf: Optional[str] = str(place / "adapter.gguf")
    try:
        adapter.save_gguf(gguf)
    except (ValueError, OSError, ImportError):  # a backbone that llama.cpp has not, or no package gguf
        gguf = None
    return peft, gguf
