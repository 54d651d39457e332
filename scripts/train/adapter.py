#!/usr/bin/env python3
"""Step 5: the draft adapter. The backbone is frozen; a LoRA on o_proj learns to draft what the verifier will choose.

    python3 scripts/train/adapter.py     # build/train/checkpoint.pt -> build/train/adapter.pt; goes on if killed

One forward pass holds both sides: the clean rows are the verifier (causal, adapter off), the noisy rows are drafts
as self-speculation makes them ([seed, mask, mask, ...], adapter on). The loss counts in full up to the first
position where the draft fails, since nothing after it can be accepted, and little beyond.
"""
import argparse
import functools
import os
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import batches
import export
import workers
from model import Model
from tokenizer import MASK, MODEL_DIR
from train import TRAIN_DIR, save

BEYOND = 0.15  # weight of positions after the first failure: they matter once the failure is mended
SCALE = 4.0    # lora_alpha / r


def draft_loss(model, b):
    """(summed loss, sum of its weights, drafts accepted, drafts reached)."""
    lora_rows = b["noisy"].to(torch.bfloat16)
    h = model.hidden(b["tokens"], b["pos"], b["mask"], lora_rows)
    # Noisy rows whose token the verifier also predicts: row pos - 1 of the same sequence. Beyond the end it says nothing.
    known = b["noisy"] & (b["pos"] <= b["n_clean"][:, None])
    drafted = known & (b["tokens"] == MASK)
    seq, row = known.nonzero(as_tuple=True)
    draft = model.diffusion_head(h[seq, row]).float()
    with torch.no_grad():
        verify = model.diffusion_head(h[seq, b["pos"][seq, row] - 1]).float()
    draft[:, MASK] = verify[:, MASK] = -1e4
    choice = verify.argmax(-1)
    is_draft = drafted[seq, row]
    with torch.no_grad():
        miss = torch.zeros(b["tokens"].shape)
        miss[seq, row] = ((draft.argmax(-1) != choice) & is_draft).float()
        before = miss.cumsum(1) - miss
        start = torch.arange(miss.shape[1]) - (b["pos"] - b["first"])  # row of the block's seed
        before = before - before.gather(1, start.clamp(min=0))
        reached = (before == 0)[seq, row]  # everything before it in the block was accepted
        weight = torch.where(reached, 1.0, BEYOND) * is_draft
    log_q, p = draft.log_softmax(-1), verify.softmax(-1)
    ce = F.nll_loss(log_q, choice, reduction="none")
    kl = (p * (p.clamp(min=1e-9).log() - log_q)).sum(-1)
    tv = 0.5 * (p - log_q.exp()).abs().sum(-1)
    loss = ((ce + 0.5 * kl + 0.5 * tv) * weight).sum()
    reached = reached & is_draft
    return loss, weight.sum(), (reached & (miss[seq, row] == 0)).sum(), reached.sum()


def frozen_model():
    """The trained backbone as it will be served: rounded to bf16."""
    model = Model()
    model.load_state_dict(torch.load(os.path.join(TRAIN_DIR, "checkpoint.pt"), weights_only=False)["model"])
    for p in model.parameters():
        p.data = p.data.bfloat16().float()
        p.requires_grad_(False)
    return model


class Task:
    """What a worker process does (workers.py): one micro-batch."""

    def __init__(self, args):
        self.model = frozen_model()
        tok = Tokenizer.from_file(os.path.join(MODEL_DIR, "tokenizer.json"))
        self.stream = batches.Stream(tok, args.seed, args.rows, draft_only=True)
        self.expect = args.micros * args.rows / 8  # a fixed divisor; Adam does not mind its size

    def bind(self, parameters):
        self.model.set_adapter({i: tuple(parameters[2 * i:2 * i + 2]) for i in range(len(parameters) // 2)}, SCALE)

    def micro_step(self, step, i):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, weight, accepted, reached = draft_loss(self.model, self.stream.batch(i))
        (loss / self.expect).backward()
        return torch.tensor([loss.item(), weight.item(), accepted.item(), reached.item()])


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--steps", type=int, default=660)
    ap.add_argument("--rows", type=int, default=2048, help="rows of a micro-batch")
    ap.add_argument("--micros", type=int, default=4, help="micro-batches of a step")
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--workers", type=int, default=2, help="processes of one thread")
    ap.add_argument("--minutes", type=float, default=0, help="stop after this time instead of after --steps")
    ap.add_argument("--seed", type=int, default=100)
    args = ap.parse_args()
    path = os.path.join(TRAIN_DIR, "adapter.pt")
    adapter = {i: tuple(torch.nn.Parameter(t) for t in pair) for i, pair in export.new_adapter().items()}
    params = [t for pair in adapter.values() for t in pair]
    adam = torch.optim.AdamW(params, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    step = 0
    if os.path.exists(path):
        ck = torch.load(path, weights_only=False)
        for i, pair in ck["adapter"].items():
            for t, value in zip(adapter[i], pair):
                t.data.copy_(value)
        adam.load_state_dict(ck["adam"])
        step = ck["step"]
    pool = workers.Workers(functools.partial(Task, args), params, args.workers)
    shown, t0, last = torch.zeros(4), time.time(), step
    begin = time.time()
    while step < args.steps:
        left = 1 - (time.time() - begin) / (60 * args.minutes) if args.minutes else (args.steps - step) / args.steps
        if left <= 0:
            args.steps = step + 1  # this one is the last, and is saved as such
        for group in adam.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 20, max(0.0, left) / 0.6)
        shown += pool.gradients(step, args.micros)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        adam.step()
        step += 1
        if step % 10 == 0 or step == args.steps:
            print(f"step {step} loss {shown[0] / shown[1]:.3f} accepted {shown[2] / shown[3]:.4f} "
                  f"{(time.time() - t0) / (step - last):.2f} s/step", flush=True)
            shown, t0, last = torch.zeros(4), time.time(), step
        if step % 25 == 0 or step == args.steps:
            save(path, {"adapter": {i: tuple(t.data for t in pair) for i, pair in adapter.items()}, "adam": adam.state_dict(), "step": step})
    pool.close()


if __name__ == "__main__":
    main()
