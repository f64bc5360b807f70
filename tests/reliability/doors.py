"""The public doors through which files of others come in; each is a function of a case's place."""

import contextlib
import io
from functools import partial
from typing import Callable

from hostile_world import Place
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, pipeline

from modeling_tagi import TagiAdapter, TagiModel, load_function
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.commands.main import main


class Refused(Exception):
    """What a command wrote to standard error before it ended with exit code 2."""


def command(*arguments) -> str:
    """Returns what `tagi` printed, or raises what it refused."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    if code:
        raise Refused(f"{err.getvalue().strip()} (exit code {code})")
    return out.getvalue()


def model(place: Place, name="checkpoint"):
    return type(TagiModel.from_pretrained(place / name)).__name__


def used(place: Place, name="checkpoint"):
    """Loads a checkpoint and answers with it."""
    loaded = TagiModel.from_pretrained(place / name).eval()
    return loaded.function("say it", max_new_tokens=2)("abc")


def backbone(place: Place, name="backbone", **given):
    return type(TagiModel.from_backbone(place / name, target_modules=["q", "v"], **given)).__name__


def gguf(place: Place):
    return type(TagiModel.from_backbone(place / "model.gguf")).__name__


def adapter(place: Place, name="adapter"):
    return TagiAdapter.from_pretrained(place / name)


def bank(place: Place):
    return AdapterBank.open(place / "bank").load()


def bank_added(place: Place):
    """Adds an adapter to a bank that is there."""
    opened = AdapterBank(place / "bank")
    opened.add(["three"], TagiAdapter.from_pretrained(place / "adapter"))
    return len(opened)


def function(place: Place):
    return load_function(place / "function")("abc")


def run(place: Place, name="checkpoint"):
    return command("run", place / name, "say it", "abc", "--max_new_tokens", 2)


def run_adapter(place: Place):
    return command("run", place / "checkpoint", "abc", "--adapter", place / "adapter", "--max_new_tokens", 2)


def generate(place: Place):
    return command("generate", place / "checkpoint", "say it", "--output_dir", place / "made")


def push(place: Place, name: str):
    return command("push", place / name, "user/name")


def release(place: Place):
    return command("release", place / "checkpoint", place / "made")


def auto(place: Place, name="checkpoint"):
    """transformers' own way, without trust_remote_code."""
    kind = AutoModelForCausalLM if name == "chat" else AutoModelForSeq2SeqLM
    return type(kind.from_pretrained(place / name)).__name__


def auto_config(place: Place):
    return type(AutoConfig.from_pretrained(place / "checkpoint")).__name__


def piped(place: Place):
    return pipeline("tagi-function", model=str(place / "checkpoint"))


def saved_again(place: Place):
    """Loads a checkpoint, and returns what the config.json of a copy says of code."""
    TagiModel.from_pretrained(place / "checkpoint").save_pretrained(place / "made")
    return (place / "made" / "config.json").read_text()


def at(door: Callable, name: str) -> Callable:
    """A door at another folder."""
    return partial(door, name=name)
