"""Muon for the 2-D layer weights: momentum, made orthogonal by a Newton-Schulz iteration.

Weights of one shape are stacked, so that a step is a few batched products (see Keller Jordan's
description of Muon; the update is scaled by 0.2 sqrt(max dimension) to go with AdamW's rates)."""
import torch


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, meeting=None, rank=0):
        """With a meeting of processes, each makes its share of the updates orthogonal."""
        jobs, offset = [], 0
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                buf = self.state[p].setdefault("buf", torch.zeros_like(p))
                buf.lerp_(p.grad, 1 - group["momentum"])
                shapes.setdefault(p.shape, []).append((p, p.grad.lerp(buf, group["momentum"]), offset))
                offset += p.numel()
            for shape, all_ in shapes.items():
                mine = all_[rank::meeting.procs] if meeting else all_
                if mine:
                    u = orthogonal(torch.stack([g for _, g, _ in mine])) * (0.2 * max(shape) ** 0.5)
                    for (p, g, o), d in zip(mine, u):
                        if meeting:
                            meeting.updates[o:o + p.numel()] = d.flatten()
                        else:
                            g.copy_(d)
                jobs += [(group, p, g, o) for p, g, o in all_]
        if meeting:
            meeting.barrier.wait(300)
        for group, p, g, o in jobs:
            d = meeting.updates[o:o + p.numel()].view_as(p) if meeting else g
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
