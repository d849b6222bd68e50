"""Data-parallel training over single-threaded processes that share memory.

On a machine whose cores are shared with other work, one process with several threads waits for
its slowest thread in every operation.  Processes with one thread each meet only once a step.
Progress is counted in CPU time of one process, so other work delays a training but takes nothing from it.
"""
import time

import torch
import torch.multiprocessing as mp


class Meeting:
    def __init__(self, procs, size, minutes):
        self.procs, self.seconds = procs, minutes * 60
        self.grads = torch.zeros(procs, size).share_memory_()
        self.updates = torch.zeros(size).share_memory_()
        self.progress = torch.zeros(1, dtype=torch.float64).share_memory_()
        self.barrier = mp.get_context("spawn").Barrier(procs)
        self.start = None

    def begin(self, progress=0.0):
        self.barrier.wait()
        self.start = time.process_time() - progress * self.seconds

    def average(self, rank, params):
        """Replace the gradients by their mean over the processes; -> progress 0..1, the same everywhere."""
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in params])
        self.grads[rank].copy_(flat)
        if rank == 0:
            self.progress[0] = (time.process_time() - self.start) / self.seconds
        self.barrier.wait(300)
        mean, progress = self.grads.mean(0), float(self.progress)
        self.barrier.wait(300)
        o = 0
        for p in params:
            p.grad = mean[o:o + p.numel()].view_as(p)
            o += p.numel()
        return progress


def launch(fn, args, procs, size, minutes):
    meeting = Meeting(procs, size, minutes)
    ps = [mp.get_context("spawn").Process(target=fn, args=(r, meeting, args)) for r in range(1, procs)]
    for p in ps:
        p.daemon = True
        p.start()
    fn(0, meeting, args)
    for p in ps:
        p.join()
