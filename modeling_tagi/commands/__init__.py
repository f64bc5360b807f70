"""The commands of `tagi`, a file each; `table.py` lists them, `main.py` reads the arguments and calls one.

A command's file has `HELP` (its line in `tagi --help`), `DESCRIPTION`, `EXAMPLE`, `add_arguments(parser)` and
`call(options)`, which returns the exit code. `options.refuse(message)` ends it for arguments that do not go together,
and `options.called` is what was typed. It may also have:

* `take_rest(options)`: uses the arguments that its parser did not know, `options.rest`; without it they are refused.
* `split(arguments)`: which of its arguments the parser reads, and which go to `options.rest` as they are.
* `INTERRUPTED`: what is said after Ctrl-C.

What takes long to import is imported where it is used: `tagi --help` must not wait for torch.
"""
