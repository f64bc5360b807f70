"""What an adapter changes where: the size of its updates by layer and module."""

import re

from matplotlib.figure import Figure

from ..adapter import TagiAdapter


def update_norms(adapter: TagiAdapter) -> dict[str, float]:
    """Returns the Frobenius norm of the update `s B A` of each module, by its path, of an adapter for one task.

    The update itself is not built: `|B A|² = <Bᵀ B, A Aᵀ>`, of which both are `[rank, rank]`.
    """
    norms = {}
    for path, a in adapter.lora_a.items():
        a, b = a[0].double(), adapter.lora_b[path][0].double()
        square = ((b.T @ b) * (a @ a.T)).sum().clamp_min(0)
        norms[path] = adapter.scaling * square.sqrt().item()
    return norms


def placed(path: str) -> tuple[int, str]:
    """Returns the number of a module's layer, and what it is there, such as `(15, "self_attn.q_proj")`."""
    found = re.fullmatch(r"(.*?)\.?(\d+)\.(.+)", path)
    if found is None:
        return 0, path
    before, layer, rest = found.groups()
    side = [part for part in before.split(".") if part in ("encoder", "decoder")]
    kind = ".".join(part for part in rest.split(".") if not part.isdigit() and part != "layer")
    return int(layer), " ".join([*side, kind])


def plot_of_changes(adapter: TagiAdapter) -> Figure:
    """Draws the norms of an adapter's updates: a row for each kind of module, a column for each layer."""
    norms = {placed(path): norm for path, norm in update_norms(adapter).items()}
    layers = sorted({layer for layer, _ in norms})
    kinds = list(dict.fromkeys(kind for _, kind in norms))
    figure = Figure(figsize=(6.4, 1.1 + 0.3 * len(kinds)), layout="constrained")
    axes = figure.add_subplot()
    grid = [[norms.get((layer, kind), float("nan")) for layer in layers] for kind in kinds]
    image = axes.imshow(grid, aspect="auto", cmap="Blues", vmin=0)
    axes.set_yticks(range(len(kinds)), kinds)
    places = range(0, len(layers), max(1, len(layers) // 12))
    axes.set_xticks(places, [layers[place] for place in places])
    axes.set_xlabel("layer")
    figure.colorbar(image, ax=axes, label="|ΔW|")
    return figure
