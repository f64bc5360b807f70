"""The commands of `tagi`. To add one, write a file in this folder and a line here."""

from importlib import import_module

# in the order of `tagi --help`
COMMANDS = {
    name: import_module(f"{__package__}.{name}")
    for name in (
        "generate",
        "run",
        "train",
        "evaluate",
        "compare",
        "demo",
        "serve",
        "vllm",
        "export",
        "release",
        "push",
        "study",
        "plan",
    )
}
