"""Muon for the 2-D layer weights: momentum, made orthogonal by a Newton-Schulz iteration.

Weights of one shape are stacked, so that a step is a few batched products (see Keller Jordan's
description of Muon; the update is scaled by 0.2 sqrt(max dimension) to go with AdamW's rates)."""
import torch


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, ps in shapes.items():
                gs = []
                for p in ps:
                    buf = self.state[p].setdefault("buf", torch.zeros_like(p))
                    buf.lerp_(p.grad, 1 - group["momentum"])
                    gs.append(p.grad.lerp(buf, group["momentum"]))
                u = orthogonal(torch.stack(gs)) * (0.2 * max(shape) ** 0.5)
                for p, d in zip(ps, u):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(d, alpha=-group["lr"])


def orthogonal(g):
    x = g.bfloat16()
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if flip else x).float()
