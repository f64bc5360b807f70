"""Reads which module of the package imports which."""

import ast
from pathlib import Path

PACKAGE = "modeling_tagi"
# From the bottom up: a module imports from its own layer, and from those before it. Modules and folders of the
# package; what is named nowhere is flat and ships in every checkpoint. `experiments` and `cli` are in old checkouts
# alone.
LAYERS = ["", "common", "data", "banks", "costs", "training", "evaluation", "planning", "publishing", "pipeline",
          "serving", "demo", "experiments", "studies", "commands", "cli"]  # fmt: skip


def module_files(root: Path) -> dict[str, Path]:
    """Returns the file of every module, by its name without the package's."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def modules_imported(name: str, files: dict[str, Path], lazy: bool = True) -> set[str]:
    """Returns the modules that one imports; without `lazy` only those outside of functions."""
    path = files[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    found = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), lazy):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            base = node.module.split(".")[1:]
        else:
            continue
        for alias in node.names:
            one = ".".join([*base, alias.name])
            found.add(one if one in files else ".".join(base))
    return {one for one in found if one in files and one != name}


def _nodes(tree: ast.AST, lazy: bool):
    for node in ast.iter_child_nodes(tree):
        yield node
        if lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _nodes(node, lazy)


def layer_of(name: str) -> int:
    """Returns the number of a module's layer, the lowest first; the package's own `__init__` is above all."""
    if not name:
        return len(LAYERS)
    first = name.split(".")[0]
    return LAYERS.index(first) if first in LAYERS else 0


def ships(name: str) -> bool:
    """Tells whether a module is one that every checkpoint carries."""
    return bool(name) and layer_of(name) == 0


def circles(imported: dict[str, set[str]]) -> list[set[str]]:
    """Returns the sets of modules that import each other, however many steps it takes; the package's own `__init__`
    left out (Tarjan's strongly connected components)."""
    number, low, stack, found = {}, {}, [], []

    def visit(name: str):
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(imported[name]):
            if not other:
                continue
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            members = set()
            while not members or name not in members:
                members.add(stack.pop())
            if len(members) > 1:
                found.append(members)

    for name in sorted(imported):
        if name and name not in number:
            visit(name)
    return found
