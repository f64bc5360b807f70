"""What a case from Python is: a call in a child of this process, which raises what says what is wrong, or is fine."""

import builtins
import copy
import sys
from functools import cached_property
from typing import Callable, Optional

from case import Case, Either, Fine, Outcome, Place, Refused
from world import INSTRUCTION

# What falls out of a fault rather than being said.
_ACCIDENTS = (AttributeError, KeyError, AssertionError, UnboundLocalError, StopIteration, RecursionError)


class Wrong(Exception):
    """Says that a case gave another result than it must."""


class Scene:
    """What calls are made with: the checkpoint's model, an adapter, and others that do not fit it."""

    def __init__(self, place: Place):
        self.place, self.here, self.world = place, place.here, place.world

    @property
    def m(self):
        return self.world.tagi_model

    @cached_property
    def ad(self):
        return self.m.generate_adapter(INSTRUCTION)

    @cached_property
    def two(self):
        return self.m.generate_adapter([INSTRUCTION, "say the first word"])

    @cached_property
    def batch(self):
        return self.m.encode_inputs(["dog plum", "cat pear"])

    @cached_property
    def other(self):
        """A model of the same shapes with other weights."""
        import torch

        model = copy.deepcopy(self.m)
        with torch.no_grad():
            for number, x in enumerate(model.parameters()):
                x += 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(number))
        model.config.backbone_sha256 = None
        return model

    def made(self, **fields):
        """A generator on the taught backbone, not the checkpoint's own."""
        from modeling_tagi import TagiModel

        small = {"r": 2, "generator_hidden_size": 8, "generator_index_size": 4}
        return TagiModel.from_backbone(str(self.world.backbone), **{**small, **fields}).eval()

    @cached_property
    def hint(self):
        return self.made(fusion="concat")

    @cached_property
    def wide(self):
        return self.made(r=4, lora_alpha=8, target_modules=["q", "k", "v"])

    def answers(self, adapter=None, model=None, **options):
        """Token ids of what the model answers."""
        model = model if model is not None else self.m
        return model.generate(**self.batch, adapter=adapter, max_new_tokens=3, do_sample=False, **options)


def finite(adapter):
    """The adapter, whose numbers are all finite and not all zero."""
    factors = [*adapter.lora_a.values(), *adapter.lora_b.values()]
    if not all(x.isfinite().all() for x in factors):
        raise Wrong("numbers that are not finite")
    if not any(x.abs().sum() for x in factors):
        raise Wrong("an update of zero")
    return adapter


def python_case(
    name: str, call: Callable[[Scene], object], expects, make: Optional[Callable] = None, accidents: bool = False,
    writes=("out",),
) -> Case:  # fmt: skip
    """A case of `call`; `accidents` lets it raise what usually falls out of a fault."""

    def program(place: Place):
        scene = Scene(place)
        try:
            result = call(scene)
        except Wrong as error:
            print(f"wrong: {error}", file=sys.stderr)
        except Exception as error:
            kinds = [kind for kind in type(error).__mro__ if kind.__module__ == builtins.__name__]
            usual = kinds[0] not in (Exception, BaseException) and (
                accidents or not isinstance(error, _ACCIDENTS))
            print(f"{'python' if usual else 'accident'}: {type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)
        else:
            print(f"OK: {str(result)[:150]}")

    def act(place: Place) -> Outcome:
        place.world.tagi_model
        return place.call(lambda: program(place))

    return Case(name, act, _checked(expects), make, tuple(writes), where="python")


def _checked(expects):
    if isinstance(expects, Either):
        return Either(expects.refused, _checked(expects.fine))
    if isinstance(expects, Fine):
        return Fine(_not_wrong, expects.replaces)
    return expects


def _not_wrong(place: Place, outcome: Outcome):
    return next((line for line in outcome.err.splitlines() if line.startswith("wrong: ")), None)


def refused(*words: str) -> Refused:
    return Refused(words)
