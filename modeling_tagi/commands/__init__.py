"""The commands of `tagi`, a file each: `HELP`, `EXAMPLE`, `add_arguments(parser)` and `call(options)`.

What takes long to import is imported where it is used: `tagi --help` must not wait for torch.
"""
