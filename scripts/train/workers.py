"""Data parallelism over processes with one thread each.

A step is a number of micro-batches that the processes take from a shared counter; gradients are added once per step.
On a machine that others use too, this beats threads inside the operators by far: with two threads, every one of some
two thousand parallel regions per step waits for whichever thread has just been preempted (measured with one compiler
running beside: 10 s a step against 2).
"""
import torch
import torch.multiprocessing as mp


def _work(index, make_task, parameters, counter, pipe, grad):
    torch.set_num_threads(1)
    task = make_task()
    parameters = [torch.nn.Parameter(p) for p in parameters]  # the same memory, own gradients
    task.bind(parameters)
    while True:
        try:
            message = pipe.recv()
        except EOFError:  # the parent was killed
            return
        if message is None:
            return
        step, micros = message
        for p in parameters:
            p.grad = None
        totals = torch.zeros(4)
        while True:
            with counter.get_lock():
                j = counter.value
                counter.value += 1
            if j >= micros:
                break
            totals += task.micro_step(step, step * micros + j)
        at = 0
        for p in parameters:
            n = p.numel()
            grad[at:at + n] = 0 if p.grad is None else p.grad.reshape(-1)
            at += n
        pipe.send(totals)


class Workers:
    """make_task() runs in each process and returns an object with bind(parameters) and micro_step(step, i) -> tensor[4],
    which adds to the parameters' gradients. The parameters live in shared memory."""

    def __init__(self, make_task, parameters, n):
        context = mp.get_context("spawn")
        self.parameters = parameters
        for p in parameters:
            p.data.share_memory_()
        self.counter = context.Value("q", 0)
        size = sum(p.numel() for p in parameters)
        self.grads = [torch.zeros(size).share_memory_() for _ in range(n)]
        self.pipes = []
        for i in range(n):
            here, there = context.Pipe()
            context.Process(target=_work, args=(i, make_task, [p.data for p in parameters], self.counter, there, self.grads[i]),
                            daemon=True).start()
            self.pipes.append(here)

    def gradients(self, step, micros):
        """Sets p.grad of every parameter to the sum over all micro-batches; returns the summed totals."""
        self.counter.value = 0
        for pipe in self.pipes:
            pipe.send((step, micros))
        totals = sum(pipe.recv() for pipe in self.pipes)
        total, at = torch.stack(self.grads).sum(0), 0
        for p in self.parameters:
            p.grad = total[at:at + p.numel()].view_as(p)
            at += p.numel()
        return totals

    def close(self):
        for pipe in self.pipes:
            pipe.send(None)
