"""The least that a generator of adapters can be, for tests of what is new to the package."""

import torch
from torch import nn


class LinearGenerator(nn.Module):
    """Writes B with one linear map of the pooled instruction; A is learned and the same for every task."""

    def __init__(self, targets, d_model, rank, hidden_size, index_size):
        super().__init__()
        self.targets, self.rank = targets, rank
        self.a = nn.ParameterList(nn.Parameter(torch.empty(rank, d_in)) for d_in, _ in targets.values())
        self.weight = nn.Parameter(torch.empty(d_model, rank * sum(d_out for _, d_out in targets.values())))

    def initialise(self):
        for a in self.a:
            nn.init.normal_(a)
        nn.init.zeros_(self.weight)

    def forward(self, pooled):
        widths = [d_out for _, d_out in self.targets.values()]
        flat = (pooled @ self.weight).split([self.rank * d_out for d_out in widths], dim=-1)
        b = {path: x.unflatten(-1, (-1, self.rank)) for path, x in zip(self.targets, flat)}
        return {path: a.expand(len(pooled), -1, -1) for path, a in self.shared_factors().items()}, b

    def shared_factors(self):
        return dict(zip(self.targets, self.a))

    def flops(self):
        return 2 * self.weight.numel()
