"""Generators of adapters: a pooled instruction in, the LoRA factors of every target module out (eq. 2)."""

import re
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over the positions that `mask` marks; padding does not count.

    Args:
        states: `[tasks, seq, d_model]`.
        mask: `[tasks, seq]`, 1 for a token, 0 for padding.

    Returns:
        `[tasks, d_model]`.
    """
    total = (states * mask.to(states.dtype).unsqueeze(-1)).sum(1)
    return total / mask.sum(1, keepdim=True).clamp_min(1)  # a whole number: bfloat16 cannot count beyond 256


class Standardised(nn.Module):
    """Standardises pooled instructions, feature by feature, by the training instructions' mean and deviation.

    Those of a pretrained causal model are nearly the same vector, and differ in what this makes large. A fresh one
    changes nothing.

    Args:
        d_model: Width of the pooled instruction.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_model))
        self.register_buffer("std", torch.ones(d_model))

    def initialise(self):
        """Sets mean 0 and deviation 1."""
        nn.init.zeros_(self.mean)
        nn.init.ones_(self.std)

    @property
    def is_set(self) -> bool:
        """Tells whether `set` was called, or a checkpoint with its result was loaded."""
        return bool(self.mean.any() or (self.std != 1).any())

    @torch.no_grad()
    def set(self, pooled: Tensor):
        """Takes the statistics of `pooled [instructions, d_model]`; a feature that hardly differs keeps its scale."""
        std, mean = torch.std_mean(pooled.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * mean.abs().clamp_min(1), std, torch.ones_like(std)))

    def forward(self, pooled: Tensor) -> Tensor:
        return (pooled - self.mean) / self.std


class MeanPooling(nn.Module):
    """Pools an instruction's states to their mean.

    Args:
        d_model: Width of the states.

    Attributes:
        width: That of a pooled instruction.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.width = d_model

    def kept(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `forward` needs of states, and its mask: their mean, as a sequence of one."""
        return masked_mean(states, mask).unsqueeze(1), torch.ones_like(mask[:, :1])

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pools `states [tasks, seq, d_model]`, `mask [tasks, seq]`, to `[tasks, width]`."""
        return masked_mean(states, mask)

    def flops(self, length: int) -> int:
        """Returns the FLOPs of pooling `length` tokens; sums do not count."""
        return 0


class AttentionPooling(MeanPooling):
    """Pools an instruction's states to their mean and to what 16 heads of learned attention find in them.

    A mean says what an instruction is about; a head can look for one word of it, such as a function's argument. Each
    head has a learned query, which is compared with the states themselves, and values of its own.
    """

    HEADS = 16

    def __init__(self, d_model: int):
        super().__init__(d_model)
        d_head = max(1, d_model // self.HEADS)
        self.width = d_model + self.HEADS * d_head
        self.queries = nn.Parameter(torch.empty(self.HEADS, d_model))
        self.values = nn.Parameter(torch.empty(self.HEADS, d_model, d_head))

    def initialise(self):
        """Initialises queries and values at random, so that scores and values are about 1 in size."""
        for weight in (self.queries, self.values):
            nn.init.normal_(weight, std=self.queries.shape[1] ** -0.5)

    def kept(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns all that is given."""
        return states, mask

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        mean = F.layer_norm(masked_mean(states, mask), states.shape[-1:])
        states = F.layer_norm(states, states.shape[-1:])
        scores = torch.einsum("tsd,hd->ths", states, self.queries)
        weights = scores.masked_fill(mask.unsqueeze(1) == 0, torch.finfo(scores.dtype).min).softmax(-1)
        found = torch.einsum("ths,tsd,hdv->thv", weights, states, self.values)
        return torch.cat([mean, F.layer_norm(found, found.shape[-1:]).flatten(1)], -1)

    def flops(self, length: int) -> int:
        return 4 * length * self.queries.numel() + 2 * self.values.numel()


# By the name that `config.pooling` takes.
POOLINGS = {"mean": MeanPooling, "attention": AttentionPooling}


class Hypernetwork(nn.Module):
    """Writes LoRA factors with two-layer ReLU MLPs, one MLP for each layer of the backbone (eq. 2, `"per_layer"`).

    An MLP reads the pooled instruction and a learned index of the target. A = a part that all tasks share + a
    generated part; B is generated. A fresh network generates zeros, so the update B A is exactly 0, while B's gradient
    is not, because the shared part of A is random.

    Args:
        targets: Path of each target module -> `(d_in, d_out)`.
        d_model: Width of the pooled instruction.
        rank: Rank of the update.
        hidden_size: Width of the MLPs' hidden layer.
        index_size: Width of the learned index of a target.
    """

    def __init__(
        self, targets: dict[str, tuple[int, int]], d_model: int, rank: int, hidden_size: int, index_size: int
    ):
        super().__init__()
        self.shared_a = SharedA(
            {_key(path): nn.Parameter(torch.empty(rank, d_in)) for path, (d_in, _) in targets.items()}
        )
        groups = defaultdict(list)
        for path in targets:
            groups[self.group(path)].append(path)
        stacks = defaultdict(list)  # groups whose targets have the same names and shapes are evaluated together
        for group, paths in groups.items():
            stacks[tuple((path[len(group):], targets[path]) for path in paths)].append(paths)
        self.stacks = nn.ModuleList(
            MlpStack(paths, [shape for _, shape in kinds], d_model, rank, hidden_size, index_size)
            for kinds, paths in stacks.items()
        )

    @staticmethod
    def group(path: str) -> str:
        """Returns the path prefix that all targets of one MLP have in common."""
        layer = re.match(r".*?\.\d+(?=\.)", path)
        return layer.group() if layer else ""

    def forward(self, pooled: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Writes the factors of each task.

        Args:
            pooled: `[tasks, d_model]`.

        Returns:
            A by path, `[tasks, rank, d_in]`, and B by path, `[tasks, d_out, rank]`.
        """
        pooled = F.layer_norm(pooled, pooled.shape[-1:])  # backbones differ in the scale of their states
        a, b = {}, {}
        for stack in self.stacks:
            for path, (generated_a, generated_b) in stack(pooled).items():
                shared = self.shared_a[_key(path)]
                if torch.is_grad_enabled() or shared.dtype != generated_a.dtype:
                    a[path] = shared + generated_a
                else:  # new memory would cost more than the sum
                    a[path] = generated_a.add_(shared)
                b[path] = generated_b
        return a, b

    def shared_factors(self) -> dict[str, Tensor]:
        """Returns the part of A that all tasks share, `[rank, d_in]` by path; task adapters start from it."""
        return {path: self.shared_a[_key(path)] for stack in self.stacks for paths in stack.paths for path in paths}

    def flops(self) -> int:
        """Returns the FLOPs of writing one adapter."""
        return sum(stack.flops() for stack in self.stacks)


class PerModule(Hypernetwork):
    """Writes LoRA factors with an MLP for each target module."""

    @staticmethod
    def group(path: str) -> str:
        return path


class Shared(Hypernetwork):
    """Writes LoRA factors with one MLP for all target modules."""

    @staticmethod
    def group(path: str) -> str:
        return ""


class Constant(nn.Module):
    """Writes the same LoRA factors for every instruction: one LoRA for all tasks, which generators are seen against.

    The arguments are those of [`Hypernetwork`], whose sizes are not needed.
    """

    def __init__(
        self, targets: dict[str, tuple[int, int]], d_model: int, rank: int, hidden_size: int = 0, index_size: int = 0
    ):
        super().__init__()
        self.shared_a = SharedA(
            {_key(path): nn.Parameter(torch.empty(rank, d_in)) for path, (d_in, _) in targets.items()}
        )
        self.b = ConstantB(
            {_key(path): nn.Parameter(torch.empty(d_out, rank)) for path, (_, d_out) in targets.items()}
        )
        self.paths = list(targets)

    def forward(self, pooled: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Writes the factors of each task, as [`Hypernetwork`] does; of `pooled` only the number of tasks counts."""
        tasks = len(pooled)
        a = {path: self.shared_a[_key(path)].repeat(tasks, 1, 1) for path in self.paths}
        return a, {path: self.b[_key(path)].repeat(tasks, 1, 1) for path in self.paths}

    def shared_factors(self) -> dict[str, Tensor]:
        """Returns A, `[rank, d_in]` by path."""
        return {path: self.shared_a[_key(path)] for path in self.paths}

    def flops(self) -> int:
        """Returns 0: nothing is computed."""
        return 0


# By the name that `config.generator` takes. A generator is a module with the constructor, `forward`, `shared_factors`
# and `flops` of Hypernetwork. Those of its modules that need more than torch's own initial values have `initialise`.
GENERATORS = {"per_layer": Hypernetwork, "per_module": PerModule, "shared": Shared, "constant": Constant}


class SharedA(nn.ParameterDict):
    """Holds the part of A that all tasks share, `[rank, d_in]` for each target."""

    def initialise(self):
        """Initialises A as PEFT does, uniform within 1 / sqrt(d_in).

        The values depend on the seed alone and are the same with and without fusion, so that a bank of task adapters
        can start from them.
        """
        generator = torch.Generator(next(iter(self.values())).device).manual_seed(torch.initial_seed())
        for a in self.values():
            nn.init.uniform_(a, -(a.shape[1] ** -0.5), a.shape[1] ** -0.5, generator=generator)


class ConstantB(nn.ParameterDict):
    """Holds B of one LoRA, `[d_out, rank]` for each target."""

    def initialise(self):
        """Initialises B with zeros, so that a fresh LoRA changes nothing."""
        for b in self.values():
            nn.init.zeros_(b)


class MlpStack(nn.Module):
    """Evaluates `layers` equal MLPs, each for `kinds` target modules, in one product.

    Args:
        paths: `[layers][kinds]` paths of the target modules.
        shapes: `(d_in, d_out)` of each kind. Kinds of equal shape share the output layer; the index tells them apart.
    """

    def __init__(self, paths, shapes, d_model: int, rank: int, hidden_size: int, index_size: int):
        super().__init__()
        self.paths, self.shapes, self.rank = paths, shapes, rank
        layers, kinds = len(paths), len(shapes)
        self.index = nn.Parameter(torch.empty(kinds, index_size))
        self.hidden_weight = nn.Parameter(torch.empty(layers, d_model + index_size, hidden_size))
        self.hidden_bias = nn.Parameter(torch.empty(layers, hidden_size))
        self.kinds_by_shape = defaultdict(list)
        for kind, shape in enumerate(shapes):
            self.kinds_by_shape[shape].append(kind)
        self.output_weights = nn.ParameterList(
            nn.Parameter(torch.empty(layers, hidden_size, rank * (d_in + d_out)))
            for d_in, d_out in self.kinds_by_shape
        )

    def initialise(self):
        """Initialises the index and hidden layer at random, and the output layers with zeros."""
        nn.init.normal_(self.index)
        nn.init.normal_(self.hidden_weight, std=self.hidden_weight.shape[1] ** -0.5)
        nn.init.zeros_(self.hidden_bias)
        for weight in self.output_weights:
            nn.init.zeros_(weight)

    def flops(self) -> int:
        """Returns the FLOPs of the MLPs for one instruction; a product of `[d_in]` and `[d_in, d_out]` counts
        2 d_in d_out."""
        layers, inputs, hidden = self.hidden_weight.shape
        kinds, index_size = self.index.shape
        outputs = sum(self.rank * (d_in + d_out) for d_in, d_out in self.shapes)
        return 2 * layers * hidden * (inputs - index_size + kinds * index_size + outputs)

    def forward(self, pooled: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Maps `pooled [tasks, d_model]` to generated `(A [tasks, rank, d_in], B [tasks, d_out, rank])` by path."""
        d_model = pooled.shape[-1]
        from_pooled = torch.einsum("td,ldh->tlh", pooled, self.hidden_weight[:, :d_model])
        from_index = torch.einsum("ki,lih->lkh", self.index, self.hidden_weight[:, d_model:])
        # [tasks, layers, kinds, hidden]
        hidden = F.relu(from_pooled.unsqueeze(2) + from_index + self.hidden_bias.unsqueeze(1))
        hidden = hidden * hidden.shape[-1] ** -0.5  # an optimizer step then moves the output equally at any width
        factors = {}
        for (shape, kinds), weight in zip(self.kinds_by_shape.items(), self.output_weights):
            d_in, d_out = shape
            flat = torch.einsum("tlkh,lho->tlko", hidden[:, :, kinds], weight)
            a, b = flat.split([self.rank * d_in, self.rank * d_out], dim=-1)
            # unbind instead of indexing: the gradient of each index would be as large as the whole tensor
            a, b = a.unflatten(-1, (self.rank, d_in)), b.unflatten(-1, (d_out, self.rank))
            for paths, *of_layer in zip(self.paths, a.unbind(1), b.unbind(1)):
                for kind, one_a, one_b in zip(kinds, *(x.unbind(1) for x in of_layer)):
                    factors[paths[kind]] = (one_a, one_b)
        return factors


def _key(path: str) -> str:
    return path.replace(".", "-")  # a ParameterDict's keys must not hold dots
