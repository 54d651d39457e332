"""Training batches: the two-stream layout of MODEL.md 8, with noise placed as decoding will meet it.

A sequence is laid out as [clean: prompt + answer + end][noisy: a copy of the answer in blocks]. Only the answer has
a noisy copy (the prompt is never masked), which saves half of the rows that a full copy would cost.
"""
import random

import numpy as np
import torch

import data
from tokenizer import EOS, MASK

BLOCKS, BLOCK_WEIGHTS = [4, 8, 16, 32], [1, 2, 3, 4]
FILL_WEIGHT = 0.1  # loss weight of positions past the end; a draft runs past it, but nothing there is ever emitted


class Stream:
    """An endless, seekable stream of batches: batch i is a function of (seed, i) alone, so a resumed run sees the
    same data as one that was never stopped."""

    POOL = 96  # batches generated together and cut by length, so that a batch holds similar lengths

    def __init__(self, tokenizer, seed, rows_per_batch, make_noise=True, draft_only=False):
        self.tok, self.seed, self.rows = tokenizer, seed, rows_per_batch
        self.noise, self.draft_only = make_noise, draft_only
        self.pool_index, self.pool = -1, []

    def batch(self, i):
        index, within = divmod(i, self.POOL)
        if index != self.pool_index:
            self.pool_index, self.pool = index, self._make_pool(index)
        return collate(self.pool[within % len(self.pool)], np.random.default_rng([self.seed, i]), self.noise, self.draft_only)

    def _make_pool(self, index):
        r = random.Random(f"{self.seed} {index}")
        examples, total = [], 0
        while total < self.rows * self.POOL:
            prompt, answer = data.render(data.training_example(r, data.TRAIN_MIX)[1])
            p, a = (self.tok.encode(t).ids for t in (prompt, answer))
            if len(p) + len(a) < 360:
                examples.append((p, a + [EOS]))
                total += len(p) + (2 * len(a) + 12 if self.noise else len(a))
        examples.sort(key=lambda e: len(e[0]) + (2 if self.noise else 1) * len(e[1]))
        # Equal numbers of rows, so every step costs about the same.
        cuts, cost = [[]], 0
        for e in examples:
            cuts[-1].append(e)
            cost += len(e[0]) + (2 * len(e[1]) + 12 if self.noise else len(e[1]))
            if cost >= self.rows and len(cuts) < self.POOL:
                cuts.append([])
                cost = 0
        cuts = [c for c in cuts if c]
        r.shuffle(cuts)
        return cuts


def noisy_copy(answer, g, draft_only):
    """Blocks over an answer: ids after noise, targets, offsets in the answer, block starts, loss weights."""
    n = len(answer)
    size = int(g.choice(BLOCKS[1:] if draft_only else BLOCKS, p=None if draft_only else np.array(BLOCK_WEIGHTS) / sum(BLOCK_WEIGHTS)))
    # Decoding starts a block at the first answer token; after accepted drafts blocks start anywhere.
    offset = 0 if g.random() < 0.4 else int(g.integers(1, size))
    starts = list(range(offset - size if offset else 0, n, size))
    end = starts[-1] + size
    off = np.arange(0, end)
    target = np.full(end, EOS)
    target[:n] = answer
    block = (off - starts[0]) // size
    start = np.maximum(starts[0] + block * size, 0)
    n_blocks = len(starts)
    t = np.where(g.random(n_blocks) < 0.5, 1.0, g.random(n_blocks)) if not draft_only else np.ones(n_blocks)
    p = (1 - 1e-3) * t + 1e-3
    masked = g.random(end) < p[block]
    # The seed of a block is known when it is decoded.
    seeded = (g.random(n_blocks) < 0.9) if not draft_only else np.ones(n_blocks, bool)
    masked &= ~((off == start) & seeded[block])
    # 1 / p as the paper, but bounded: a rare mask in an almost clean block should not outweigh fifty others.
    weight = np.where(masked, 1 / np.maximum(p[block], 0.2), 0) * np.where(off >= n, FILL_WEIGHT, 1.0)
    return np.where(masked, MASK, target), target, off, start, block, weight, masked


def collate(examples, g, make_noise, draft_only):
    b = len(examples)
    copies = [noisy_copy(a, g, draft_only) for _, a in examples] if make_noise else None
    # The end token is never an input of a causal row. The noisy copy follows its clean rows directly.
    s = max(len(p) + len(a) - 1 + (len(copies[i][0]) if make_noise else 0) for i, (p, a) in enumerate(examples))
    tokens = np.zeros((b, s), np.int64)
    pos = np.zeros((b, s), np.int64)
    block = np.full((b, s), -1)         # -1: clean row, -2: padding
    first = np.zeros((b, s), np.int64)  # noisy rows: first position of the own block
    block[:, :] = -2
    target = np.zeros((b, s), np.int64)
    w_ar = np.zeros((b, s), np.float32)
    w_diff = np.zeros((b, s), np.float32)
    for i, (p, a) in enumerate(examples):
        ids = (p + a)[:-1]
        n = len(ids)
        tokens[i, :n], pos[i, :n], block[i, :n] = ids, np.arange(n), -1
        target[i, len(p) - 1:n] = a
        w_ar[i, len(p) - 1:n] = 1
        if make_noise:
            noisy, want, off, start, blk, weight, _ = copies[i]
            e = n + len(noisy)
            tokens[i, n:e], target[i, n:e], w_diff[i, n:e] = noisy, want, weight
            pos[i, n:e], first[i, n:e], block[i, n:e] = off + len(p), start + len(p), blk
    tokens, pos, block, first, target = (torch.from_numpy(x) for x in (tokens, pos, block, first, target))
    clean = block == -1
    noisy = block >= 0
    limit = torch.where(noisy, first, pos + 1)  # clean keys strictly before this position are seen
    see = clean[:, None, :] & (pos[:, None, :] < limit[:, :, None])
    if make_noise:
        see |= noisy[:, None, :] & (block[:, None, :] == block[:, :, None])
    see |= torch.eye(s, dtype=torch.bool)[None]  # padding sees itself: a softmax needs one key
    mask = torch.zeros(see.shape, dtype=torch.bfloat16).masked_fill_(~see, float("-inf"))[:, None]
    return {"tokens": tokens, "pos": pos, "mask": mask, "target": target, "noisy": noisy, "first": first, "n_clean": clean.sum(1),
            "w_ar": torch.from_numpy(w_ar), "w_diff": torch.from_numpy(w_diff)}
