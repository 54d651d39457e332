#!/usr/bin/env python3
"""Steps 3 and 4: trains the backbone. Stage 1 is AR alone, stage 2 the joint loss L_AR + w L_diff (MODEL.md 8).

    python3 scripts/train/train.py     # starts, or goes on from build/train/checkpoint.pt

May be killed at any time; the state is saved every few minutes and batch i depends only on (seed, i).
"""
import argparse
import functools
import os
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import batches
import data
import workers
from model import Model
from tokenizer import MODEL_DIR

TRAIN_DIR = os.environ.get("TRIMODE_TRAIN_DIR", os.path.join(data.HERE, "..", "..", "build", "train"))


class Muon:
    """Momentum whose update is orthogonalised (Newton-Schulz); for the layers' matrices. Learns from about a third fewer
    tokens than AdamW here, which is what counts on two cores. Matrices of one shape go through together."""

    def __init__(self, params, lr, momentum=0.95, decay=0.02):
        self.lr, self.momentum, self.decay = lr, momentum, decay
        self.groups = {}
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.buf = {k: torch.zeros(len(v), *k) for k, v in self.groups.items()}

    @torch.no_grad()
    def step(self, scale):
        for shape, params in self.groups.items():
            g = torch.stack([p.grad for p in params])
            buf = self.buf[shape].mul_(self.momentum).add_(g)
            x = (g + self.momentum * buf).bfloat16()
            tall = shape[0] > shape[1]
            x = x.mT if tall else x
            x = x / (x.float().norm(dim=(1, 2), keepdim=True).bfloat16() + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = (x.mT if tall else x).float()
            step = self.lr * scale * max(1, shape[0] / shape[1]) ** 0.5
            for p, u in zip(params, x):
                p.mul_(1 - self.lr * scale * self.decay).add_(u, alpha=-step)


class Task:
    """What a worker process does: one micro-batch's loss and gradients."""

    def __init__(self, args):
        self.args = args
        tok = Tokenizer.from_file(os.path.join(MODEL_DIR, "tokenizer.json"))
        self.model = Model()
        # Stage 1 needs no noisy copies; its batches hold as many rows.
        self.streams = [batches.Stream(tok, args.seed, args.rows, make_noise=False), batches.Stream(tok, args.seed + 1, args.rows)]
        # Global averaging: fixed divisors, the expected sums of the loss weights over a whole step.
        self.expect = []
        for s in self.streams:
            some = [s.batch(i) for i in range(32)]
            self.expect.append([max(1.0, sum(float(b[w].sum()) for b in some) / 32 * args.micros) for w in ("w_ar", "w_diff")])

    def bind(self, parameters):
        owners = [(m, name) for m in self.model.modules() for name, _ in m.named_parameters(recurse=False)]
        # Module order and parameter order agree, as both walk the same tree.
        assert len(owners) == len(parameters)
        by_shape = [getattr(m, name) for m, name in owners]
        for (m, name), old, new in zip(owners, by_shape, parameters):
            assert old.shape == new.shape
            setattr(m, name, new)

    def micro_step(self, step, i):
        joint = step >= self.args.ar_steps
        b = self.streams[joint].batch(i)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.model.hidden(b["tokens"], b["pos"], b["mask"])
            take = (b["w_ar"] + b["w_diff"]) > 0  # the head only where there is a loss
            logits = self.model.diffusion_head(h[take])
        ce = F.cross_entropy(logits.float(), b["target"][take], reduction="none")
        wa, wd = b["w_ar"][take], b["w_diff"][take]
        ar, diff = (ce * wa).sum(), (ce * wd).sum()
        expect = self.expect[joint]
        (ar / expect[0] + self.args.diff_weight * diff / expect[1]).backward()
        return torch.tensor([ar.item(), wa.sum().item(), diff.item(), wd.sum().item()])


def schedule(step, total):
    """Warm-up, constant, then linear to zero over the last 60 %."""
    return min(1, (step + 1) / 50, max(0.0, (total - step) / (0.6 * total)))


def save(path, value):
    torch.save(value, path + ".tmp")
    os.replace(path + ".tmp", path)  # a kill in the middle leaves the old file


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--steps", type=int, default=5000)
    ap.add_argument("--ar-steps", type=int, default=200, help="length of stage 1")
    ap.add_argument("--rows", type=int, default=2048, help="rows of a micro-batch")
    ap.add_argument("--micros", type=int, default=4, help="micro-batches of a step")
    ap.add_argument("--muon-lr", type=float, default=0.02)
    ap.add_argument("--adam-lr", type=float, default=3e-3)
    ap.add_argument("--diff-weight", type=float, default=0.5)
    ap.add_argument("--workers", type=int, default=2, help="processes of one thread")
    ap.add_argument("--save-every", type=int, default=50)
    ap.add_argument("--eval-every", type=int, default=200)
    ap.add_argument("--minutes", type=float, default=0,
                    help="stop after this time instead; the learning rate falls linearly from where the schedule has it")
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    torch.set_num_threads(1)  # threads that wait for each other suffer most from company (workers.py)
    torch.manual_seed(args.seed)
    os.makedirs(TRAIN_DIR, exist_ok=True)
    path = os.path.join(TRAIN_DIR, "checkpoint.pt")
    tok = Tokenizer.from_file(os.path.join(MODEL_DIR, "tokenizer.json"))
    model = Model()
    matrices = [p for n, p in model.named_parameters() if "_proj" in n]
    others = [p for n, p in model.named_parameters() if "_proj" not in n]
    muon = Muon(matrices, args.muon_lr)
    adam = torch.optim.AdamW([{"params": [p for p in others if p.dim() == 2]}, {"params": [p for p in others if p.dim() == 1]}],
                             lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    step, seconds = 0, 0.0
    if os.path.exists(path):
        ck = torch.load(path, weights_only=False)
        model.load_state_dict(ck["model"])
        adam.load_state_dict(ck["adam"])
        muon.buf, step, seconds = ck["muon"], ck["step"], ck["seconds"]
        print(f"resumed at step {step}, {seconds / 60:.1f} minutes in", flush=True)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    pool = workers.Workers(functools.partial(Task, args), list(model.parameters()), args.workers)
    shown, t0 = [0.0, 0.0, 0], time.time()
    begin, begin_scale = time.time(), schedule(step, args.steps)
    while step < args.steps:
        scale = schedule(step, args.steps)
        if args.minutes:
            left = 1 - (time.time() - begin) / (60 * args.minutes)
            scale = begin_scale * max(0.0, left)
            if left <= 0:
                args.steps = step + 1  # this one is the last, and is saved as such
        sums = pool.gradients(step, args.micros)
        ar, diff = (sums[0] / sums[1]).item(), (sums[2] / sums[3].clamp(min=1)).item()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for group in adam.param_groups:
            group["lr"] = args.adam_lr * scale
        adam.step()
        muon.step(scale)
        step += 1
        shown = [shown[0] + ar, shown[1] + diff, shown[2] + 1]
        if step % 20 == 0:
            dt = time.time() - t0
            print(f"step {step} ar {shown[0] / shown[2]:.3f} diff {shown[1] / shown[2]:.3f} lr {scale:.2f} "
                  f"{dt / shown[2]:.2f} s/step", flush=True)
            seconds += dt
            shown, t0 = [0.0, 0.0, 0], time.time()
        if step % args.save_every == 0 or step == args.steps:
            save(path, {"model": model.state_dict(), "adam": adam.state_dict(), "muon": muon.buf, "step": step, "seconds": seconds,
                        "args": vars(args)})
        if step % args.eval_every == 0 or step == args.steps:
            import evaluate
            evaluate.quick(model, tok)
            t0 = time.time()
    pool.close()
    print(f"trained {step} steps in {seconds / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
