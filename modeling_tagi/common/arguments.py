"""The arguments of commands: a parser whose errors are one line, and types of values."""

import argparse
from typing import Callable, Optional


class Parser(argparse.ArgumentParser):
    """Parses arguments, and reports what is wrong with them in one line, without the usage that argparse prints first.

    `further`, if set, returns the end of the help; it is only called for `--help`, and so may take long.
    """

    further: Optional[Callable[[], str]] = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def format_help(self) -> str:
        """Returns what `--help` prints."""
        return super().format_help() + (f"\n{self.further()}\n" if self.further is not None else "")

    def error(self, message: str):
        """Ends the process with the message and exit code 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def positive(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """Parses a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def port(text: str) -> int:
    """Returns the number of a port, 0 for a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, a whole number from 0 to 65535")
    return int(text)


def share(text: str) -> float:
    """Returns a fraction above 0 and up to 1."""
    value = positive_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and up to 1")
    return value


def pair(text: str) -> tuple:
    """Returns the key and the value of `KEY=VALUE`, whose value is YAML."""
    import yaml

    name, equals, value = text.partition("=")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        equals = ""
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE with a value in YAML")
    return name, parsed


def fields(texts: list[str]) -> dict[str, str]:
    """Returns the values of `--field value` and `--field=value`, by name.

    Raises:
        ValueError: for a text that is no field, or a field without a value.
    """
    found, rest = {}, list(texts)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or not (equals or rest):
            raise ValueError(f"{name!r} is no field with a value; fields are given as --field value")
        found[name[2:]] = value if equals else rest.pop(0)
    return found
