"""Low-rank updates inside any backbone, a different one for each row of a batch if need be.

Forward hooks leave the backbone's class, modules and state-dict keys as they are. A hook finds what to apply in a
thread-local variable, so an adapter is in force for one call in one thread and nowhere else.
"""

import inspect
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Callable, Iterator, Optional, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# What modules of transformers call a key-value cache: from 5.24 on, before that, and in GPT-NeoX's layers.
CACHE_NAMES = ("cache", "past_key_values", "layer_past")


@dataclass
class Application:
    """Holds what is applied during one call of a backbone.

    Args:
        lora: Module -> (A, B), `A [tasks, rank, d_in]` and `B [tasks, d_out, rank]`.
        scaling: Factor of the update.
        task_index: `[batch]`, which of the tasks each row uses; `None` if there is one task, or if each has as many
            rows, side by side.
        fusion: Module -> function of that module's hidden states `[batch, seq, d_model]`.
        memory: Module -> what its input begins with, the same for every row of a task.
        arguments: Module -> function from the keyword arguments of its call to those it gets instead.
        new_cache: Makes the key-value cache that every layer is to see, for use under gradient checkpointing (which
            takes caches away from layers).
        checkpointing: Whether gradient checkpointing may recompute in this call.
    """

    lora: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)
    scaling: float = 1.0
    task_index: Optional[Tensor] = None
    fusion: dict[nn.Module, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    memory: dict[nn.Module, "TaskStates"] = field(default_factory=dict)
    arguments: dict[nn.Module, Callable[[dict], dict]] = field(default_factory=dict)
    new_cache: Optional[Callable[[], Any]] = None
    checkpointing: bool = True

    @classmethod
    def of(cls, adapter, backbone: nn.Module, task_index: Optional[Tensor] = None) -> "Application":
        """Returns the low-rank updates of a [`TagiAdapter`] on `backbone`, without its instruction memory."""
        routed = [path for path in adapter.lora_a if ".experts." in path]
        if routed and len(adapter) > 1:
            raise ValueError(
                f"{len(adapter)} adapters were given, but {routed[0]} is an expert, whose tokens are of any row: give "
                "one adapter for the whole batch, or leave experts out of target_modules"
            )
        lora = {backbone.get_submodule(path): (a, adapter.lora_b[path]) for path, a in adapter.lora_a.items()}
        for module in lora:  # an adapter from elsewhere may change more than this model's generator does
            hook_once(module, lora_hook)
        return cls(lora=lora, scaling=adapter.scaling, task_index=needed_index(task_index, len(adapter)))

    def by_row(self) -> "Application":
        """Returns the same, with the updates gathered by row once now instead of in every layer of every step."""
        if self.task_index is None:
            return self
        lora = {
            module: (a, b) if len(a) == 1 else (a[self.task_index], b[self.task_index])
            for module, (a, b) in self.lora.items()
        }
        return replace(self, lora=lora, task_index=None)

    def cast(self, dtype: torch.dtype) -> "Application":
        """Returns the same, with the updates cast to `dtype` once now instead of in every layer of every step."""
        return replace(self, lora={module: (a.to(dtype), b.to(dtype)) for module, (a, b) in self.lora.items()})

    def share(self, memory: Tensor, modules: Sequence[nn.Module]):
        """Lets `modules` project `memory [tasks, memory, d_in]`, with which each row's input is to begin, once a task
        instead of once a row."""
        for module in modules:
            hook_once(module, memory_hook)
        self.memory = dict.fromkeys(modules, TaskStates.of(memory, self))


@dataclass
class TaskStates:
    """Holds states that belong to the tasks of a batch, and what is applied to them.

    Args:
        states: `[tasks, seq, d_in]`.
        application: What is applied while a module works on `states`, as to a batch with a row a task.
        task_index: `[batch]`, the task of each row; `None` if there is one task, or one task a row.
    """

    states: Tensor
    application: Application
    task_index: Optional[Tensor] = None

    @classmethod
    def of(cls, states: Tensor, application: Application) -> "TaskStates":
        """Returns the `states` of `application`'s tasks, or of its rows if these are fewer."""
        application, index = replace(application, memory={}), application.task_index
        if index is not None and len(index) < len(states):
            return cls(states[index], application.by_row())
        return cls(states, replace(application, task_index=None), index)


class _InForce(threading.local):  # and no ContextVar, which torch.compile cannot trace
    def __init__(self):  # in every thread; a class's own None would be what torch 2.8 compiles
        self.application: Optional[Application] = None


_IN_FORCE = _InForce()
_HOOKING = threading.Lock()  # held while looking for a hook and registering it


@contextmanager
def applied(application: Optional[Application]):
    """Puts `application` (or, with `None`, nothing) in force for the calls inside the `with` block."""
    before = _IN_FORCE.application
    _IN_FORCE.application = application
    try:
        yield
    finally:
        _IN_FORCE.application = before


_SWITCHING = threading.Lock()
_SWITCHED_OFF: "WeakKeyDictionary[nn.Module, dict]" = WeakKeyDictionary()  # model -> switch -> [blocks, values before]


def evaluating(model: nn.Module):
    """Turns dropout off inside the `with` block."""
    return _switched_off(model, "training")


def frozen(model: nn.Module):
    """Keeps gradients from the model's weights, and dropout off, inside the `with` block."""
    return _switched_off(model, "training", "requires_grad")


def keeping_caches(model: nn.Module):
    """Turns gradient checkpointing off inside the `with` block, for calls without gradients: nothing is recomputed
    then, but layers would lose their key-value caches."""
    return _switched_off(model, "gradient_checkpointing")


@contextmanager
def _switched_off(model: nn.Module, *switches: str) -> Iterator[None]:
    """Sets attributes of the model's modules (or parameters) to `False` while any thread is inside the block; when the
    last one leaves, all have their earlier values again, whatever was done inside."""
    with _SWITCHING:
        held = _SWITCHED_OFF.setdefault(model, {})
        for switch in switches:
            if switch not in held:
                owners = model.parameters() if switch == "requires_grad" else model.modules()
                held[switch] = [0, [(owner, getattr(owner, switch)) for owner in owners if hasattr(owner, switch)]]
                for owner, _ in held[switch][1]:
                    setattr(owner, switch, False)
            held[switch][0] += 1
    try:
        yield
    finally:
        with _SWITCHING:
            for switch in switches:
                held[switch][0] -= 1
                if not held[switch][0]:
                    for owner, value in held.pop(switch)[1]:
                        setattr(owner, switch, value)


def find_targets(
    backbone: nn.Module, target_modules: list[str], layers: Optional[Sequence[int]] = None
) -> dict[str, tuple[int, int]]:
    """Returns the path and `(d_in, d_out)` of each module of `backbone` that `target_modules` names.

    Args:
        layers: The numbers of the layers that the modules are to be in; `None` takes all modules.

    Raises:
        ValueError: if a name matches no Linear or Conv1D, or a layer has none that is named.
    """
    targets, unmatched = {}, set(target_modules)
    for path, module in backbone.named_modules():
        names = [name for name in target_modules if path == name or path.endswith("." + name)]
        if names and isinstance(module, (nn.Linear, Conv1D)):
            targets[path] = _dimensions(module)
            unmatched.difference_update(names)
    if unmatched:
        linear = (p for p, m in backbone.named_modules() if isinstance(m, (nn.Linear, Conv1D)))
        known = sorted({path.rsplit(".", 1)[-1] for path in linear})
        raise ValueError(
            f"target_modules {sorted(unmatched)} match no Linear or Conv1D of {type(backbone).__name__}; "
            f"it has {', '.join(known)}"
        )
    if layers is None:
        return targets
    there = sorted({layer for path in targets if (layer := _layer_of(path)) is not None})
    if missing := sorted(set(layers) - set(there)):
        has = f"layers {there[0]} to {there[-1]}" if there else "no numbered layers"
        raise ValueError(
            f"layers_to_transform has {missing!s:.80}, but {type(backbone).__name__} has {target_modules} in {has}"
        )
    return {path: shape for path, shape in targets.items() if _layer_of(path) in layers}


def _layer_of(path: str) -> Optional[int]:
    """Returns the number of the layer that a module's path lies in: the first number in it, or `None`."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def _dimensions(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):  # GPT-2's; its weight lies (in, out)
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def hook_once(module: nn.Module, hook: Callable):
    """Registers a forward hook, unless `module` has it already: from a model that shares it, from the model it was
    copied from, or from another thread."""
    if _has(module._forward_hooks, hook):
        return
    with _HOOKING:
        if _has(module._forward_hooks, hook):
            return
        if hook is memory_hook:  # before the hook that says it is there
            module.register_forward_pre_hook(memory_pre_hook)
        # a lora_hook goes before a memory_hook, which lengthens the output
        module.register_forward_hook(hook, prepend=hook is lora_hook)


def pre_hook_once(module: nn.Module, hook: Callable):
    """Registers a forward pre-hook that takes keyword arguments, unless `module` has it."""
    with _HOOKING:
        if not _has(module._forward_pre_hooks, hook):
            module.register_forward_pre_hook(hook, with_kwargs=True)


def _has(hooks: dict, hook: Callable) -> bool:
    return hook in list(hooks.values())  # a list: torch 2.8 compiles no search of the values themselves


def remove_hooks(backbone: nn.Module):
    """Removes the hooks of this file from a backbone's modules."""
    ours = (lora_hook, fusion_hook, memory_hook, memory_pre_hook, arguments_pre_hook)
    for module in backbone.modules():
        for hooks, with_kwargs in (
            (module._forward_hooks, module._forward_hooks_with_kwargs),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if hook in ours]:
                del hooks[key]
                with_kwargs.pop(key, None)


def lora_hook(module: nn.Module, args: tuple, output: Tensor) -> Optional[Tensor]:
    """Returns `output + scaling * B A x`, or `None` if no adapter is in force for `module`; a forward hook."""
    application = _IN_FORCE.application
    if application is None or module not in application.lora:
        return None
    a, b = application.lora[module]
    return add_low_rank(output, args[0], a, b, application.scaling, application.task_index)


def fusion_hook(module: nn.Module, args: tuple, output):
    """Passes the hidden states (`output`, or its first element) through the fusion of `module`; a forward hook."""
    application = _IN_FORCE.application
    if application is None or module not in application.fusion:
        return None
    fuse = application.fusion[module]
    if isinstance(output, tuple):
        return (fuse(output[0]), *output[1:])
    return fuse(output)


def arguments_pre_hook(module: nn.Module, args: tuple, kwargs: dict) -> Optional[tuple]:
    """Passes the keyword arguments through the function that is in force for `module`; a forward pre-hook."""
    application = _IN_FORCE.application
    if application is None or module not in application.arguments:
        return None
    return args, application.arguments[module](kwargs)


def memory_pre_hook(module: nn.Module, args: tuple) -> Optional[tuple]:
    """Removes the tasks' memory from the front of the input, for `memory_hook` to put back; a forward pre-hook."""
    application = _IN_FORCE.application
    if application is None or module not in application.memory:
        return None
    return (args[0][:, application.memory[module].states.shape[1]:], *args[1:])


def memory_hook(module: nn.Module, args: tuple, output: Tensor) -> Optional[Tensor]:
    """Puts the memory, which `module` projects once a task, before each row's own output; a forward hook."""
    application = _IN_FORCE.application
    if application is None or module not in application.memory:
        return None
    memory = application.memory[module]
    states = memory.states.to(args[0].dtype)
    projected = module.forward(states)  # not a call: what gathers weights for one (ZeRO-3) would do so twice
    with applied(memory.application):
        updated = lora_hook(module, (states,), projected)
    projected = projected if updated is None else updated
    return torch.cat([take_rows(projected, len(output), memory.task_index), output], 1)


def add_low_rank(
    output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float = 1.0, task_index: Optional[Tensor] = None
) -> Tensor:
    """Returns `output + scaling * B A x`, each row of the batch with its own task's factors.

    Rows of one task that lie side by side share its factors in one product, and without gradients the update is
    added where the output lies: at full size new memory costs as much as the update itself.

    Args:
        output: `[batch, seq, d_out]`; overwritten if nothing here asks for a gradient.
        x: `[batch, seq, d_in]`, or any `[..., d_in]` (and `output` like it) if there is a single task.
        a: `[tasks, rank, d_in]`.
        b: `[tasks, d_out, rank]`.
        scaling: Factor of the update.
        task_index: `[batch]`; `None` if there is one task, or if each has as many rows, side by side.

    Returns:
        Like `output`.

    Raises:
        ValueError: if the number of rows is no multiple of the number of adapters.
    """
    if len(a) > 1:
        given = len(a) if task_index is None else len(task_index)
        _require_multiple(len(x), given)
        if task_index is not None:
            a, b = a[task_index], b[task_index]
    inner = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.to(x.dtype).transpose(1, 2)).to(output.dtype)
    b, flat = b.to(output.dtype).transpose(1, 2), output.reshape(len(a), -1, output.shape[-1])
    if torch.is_grad_enabled() and (flat.requires_grad or inner.requires_grad or b.requires_grad):
        return torch.baddbmm(flat, inner, b, alpha=scaling).view(output.shape).to(output.dtype)
    return torch.baddbmm(flat, inner, b, alpha=scaling, out=flat).view(output.shape)  # baddbmm_, but torch counts it


def needed_index(task_index: Optional[Tensor], tasks: int) -> Optional[Tensor]:
    """Returns `task_index [batch]`, or `None` if it is the default, so that nothing need be gathered: rows grouped by
    task, in order, equally many for each, as in the batches of training."""
    if task_index is None or torch.compiler.is_compiling() or len(task_index) % tasks:  # a graph knows no values
        return task_index
    plain = torch.arange(tasks, device=task_index.device).repeat_interleave(len(task_index) // tasks)
    return None if torch.equal(task_index, plain) else task_index


def take_rows(per_task: Tensor, rows: int, task_index: Optional[Tensor] = None) -> Tensor:
    """Returns the values of its task for each row of a batch.

    Beam search multiplies the rows of a batch, copies side by side; each copy keeps its row's task.

    Args:
        per_task: `[tasks, ...]`.
        rows: Rows of the batch.
        task_index: `[batch]`; `None` if there is one task, or if each has as many rows, side by side.

    Returns:
        `[rows, ...]`.

    Raises:
        ValueError: if `rows` is no multiple of what was given.
    """
    tasks = per_task.shape[0]
    if tasks == 1:
        return per_task.expand(rows, *per_task.shape[1:])
    given = tasks if task_index is None else task_index.shape[0]
    _require_multiple(rows, given)
    if task_index is None:
        return per_task if rows == tasks else per_task.repeat_interleave(rows // given, 0)
    return per_task[task_index if rows == given else task_index.repeat_interleave(rows // given)]


def _require_multiple(rows: int, given: int):
    if rows % given:
        raise ValueError(f"a batch of {rows} rows was given {given} adapters; give one for all rows, or one for each")


def carry_through_checkpointing(checkpoint: Callable) -> Callable:
    """Wraps a gradient-checkpointing function so that recomputation sees the adapter of the original call.

    The backward pass recomputes a layer after the call has ended, when no adapter is in force, or in another thread.
    """

    def checkpoint_with_application(function, *args, **kwargs):
        application = _IN_FORCE.application
        if application is None:
            return checkpoint(function, *args, **kwargs)

        def recomputable(*inputs, **named):
            with applied(application):
                if application.new_cache is None:
                    return function(*inputs, **named)
                # transformers hands over a partial whose cache it has set to None
                inputs, keywords = _with_cache(function, inputs, application.new_cache())
                return partial(function.func, *function.args, **keywords)(*inputs, **named)

        if not application.checkpointing:
            return recomputable(*args)
        return checkpoint(recomputable, *args, **kwargs)

    return checkpoint_with_application


def cache_name(module: nn.Module) -> str:
    """Returns the name of the argument in which `module` is handed a key-value cache."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), "past_key_values")


def _with_cache(function: partial, inputs: tuple, cache: Any) -> tuple[tuple, dict]:
    """Returns the positional inputs and the keywords of a layer's call, with `cache` where its cache belongs."""
    for name in CACHE_NAMES:
        if name in function.keywords:
            return inputs, {**function.keywords, name: cache}
    layer = function.args[0] if function.args else function.func.__self__  # by the version of transformers
    name = cache_name(layer)
    place = list(inspect.signature(layer.forward).parameters).index(name)
    if place < len(inputs):  # GPT-2's
        return (*inputs[:place], cache, *inputs[place + 1:]), function.keywords
    return inputs, {**function.keywords, name: cache}
