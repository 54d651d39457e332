"""The three decoding loops (MODEL.md 3, 4, 5) over one Model: AR, block diffusion, linear self-speculation.

Counting: prefill is free; every other pass is one (AR row, denoise, seal, draft, verify). A result's tokens include the end-of-text
token that ended it. Every choice's margin is kept: the smallest says how safe a result is against another rounding.
"""
import math
from dataclasses import dataclass, field

import numpy as np

from choose import Params, choose


@dataclass
class Result:
    tokens: list = field(default_factory=list)
    finish: str = ""          # "stop": end of text; "length": max_tokens or the context's end
    passes: int = 0
    drafted: int = 0
    accepted: int = 0         # drafts that became output
    denoise_passes: int = 0
    blocks: int = 0           # diffusion: blocks of which at least one pass was run; self-speculation: cycles
    cycles: list = field(default_factory=list)    # self-speculation: tokens made final by each cycle
    commits: list = field(default_factory=list)   # diffusion: for each denoise pass the block positions it committed
    confidences: list = field(default_factory=list)  # diffusion: their confidences, as commits
    margin: float = math.inf


class Run:
    """What the loops share: one request's state."""

    def __init__(self, model, prompt, max_tokens, params):
        assert len(prompt) >= 1 and max_tokens >= 1
        self.model, self.params, self.prompt = model, params or Params(), list(prompt)
        self.config, self.cache, self.result = model.config, model.new_cache(), Result()
        self.limit = min(max_tokens, self.config.max_positions - len(prompt))  # tokens at most
        assert self.limit >= 1

    def choose(self, logits, position, extra=()):
        """extra: tokens beyond the output that count as history (a block's committed tokens, a draft's prefix)."""
        c = choose(logits, position, self.params, self.prompt, self.result.tokens + list(extra), self.config.mask_id)
        self.result.margin = min(self.result.margin, c.margin)
        return c

    def emit(self, token):
        """Adds a final token; True when it ends the generation."""
        r = self.result
        r.tokens.append(token)
        if token in self.config.eos:
            r.finish = "stop"
        elif len(r.tokens) == self.limit:
            r.finish = "length"
        return bool(r.finish)

    def prefill(self):
        logits = self.model.forward(self.prompt, self.cache)
        return self.choose(logits[-1], len(self.prompt)).token


def ar(model, prompt, max_tokens, params=None):
    run = Run(model, prompt, max_tokens, params)
    token = run.prefill()
    while not run.emit(token):
        logits = model.forward([token], run.cache)
        run.result.passes += 1
        token = run.choose(logits[0], run.cache.length).token
    return run.result


def self_speculation(model, prompt, max_tokens, params=None, block=32):
    run = Run(model, prompt, max_tokens, params)
    r, mask_id = run.result, run.config.mask_id
    seed = run.prefill()
    done = run.emit(seed)
    while not done:
        first = run.cache.length  # the seed's position; its KV is not computed yet
        length = min(block, run.limit - len(r.tokens))
        drafts = []
        if length > 1:
            logits = model.forward([seed] + [mask_id] * (length - 1), run.cache, "block", keep=False, adapter=model.has_adapter)
            r.passes += 1
            # History of every draft row: what is final, the seed included. Logits at i are for position i itself.
            drafts = [run.choose(logits[i], first + i).token for i in range(1, length)]
        rows = [seed] + drafts
        logits = model.forward(rows, run.cache)
        r.passes += 1
        r.blocks += 1
        r.drafted += len(drafts)
        emitted = 0
        for i in range(length):  # rows[0 .. i] are in r.tokens here: each was accepted
            token = run.choose(logits[i], first + i + 1).token
            accepted = i + 1 < length and token == rows[i + 1]
            r.accepted += accepted
            emitted += 1
            done = run.emit(token)
            if done or not accepted:
                break
        r.cycles.append(emitted)
        run.cache.crop(first + emitted)  # seed and accepted drafts; the last emitted token is the next seed
        seed = r.tokens[-1]
    return r


# ---- diffusion ------------------------------------------------------------------------------------------------------
# A commit policy gets {position in block: confidence} of the masked positions and says which to commit.


def commit_confidence(confidence, threshold, steps_left):
    best = max(confidence, key=lambda i: (confidence[i], -i))
    return [i for i in confidence if i == best or confidence[i] >= np.float32(threshold)]


def commit_schedule(confidence, threshold, steps_left):
    n = math.ceil(len(confidence) / max(steps_left, 1))
    return sorted(sorted(confidence, key=lambda i: (-confidence[i], i))[:n])


def commit_leftmost(confidence, threshold, steps_left):
    return [min(confidence)]


POLICIES = {"confidence": commit_confidence, "schedule": commit_schedule, "leftmost": commit_leftmost}


def confidence_distance(a, b):
    """How far apart two confidences are, in nats of log-odds (the unit of logits); near 1 float32 itself is coarse."""
    def odds(c):
        return math.log(max(c, 1e-12)) - math.log(max(1 - c, 1e-12))
    a, b = float(a), float(b)
    return min(abs(odds(a) - odds(b)), 200 * abs(a - b))


def commit_margin(policy, confidence, committed, threshold):
    """How far the confidences are from another decision."""
    values = sorted(confidence.values(), reverse=True)
    if policy == "leftmost" or len(values) == 1:
        return math.inf
    if policy == "schedule":
        n = len(committed)
        return confidence_distance(values[n - 1], values[n]) if n < len(values) else math.inf
    if values[0] >= threshold:
        return min(confidence_distance(v, threshold) for v in values)
    return min(confidence_distance(values[0], threshold), confidence_distance(values[0], values[1]))


def diffusion(model, prompt, max_tokens, params=None, block=32, threshold=0.9, steps=0, policy=None):
    """steps > 0: the schedule policy, `steps` passes a block."""
    run = Run(model, prompt, max_tokens, params)
    r, c = run.result, run.config
    policy = policy or ("schedule" if steps else "confidence")
    adapter = model.adapter_rows == "block"
    seed = run.prefill()
    while True:
        first = run.cache.length
        length = min(block, c.max_positions - first)
        tokens, masked = [seed] + [c.mask_id] * (length - 1), [False] + [True] * (length - 1)
        step = 0
        # A seed that already ends the generation needs no pass.
        if not (seed in c.eos or len(r.tokens) + 1 == run.limit):
            r.blocks += length > 1
            while any(masked) and not ended(tokens, masked, c.eos):
                logits = model.forward(tokens, run.cache, "block", keep=False, adapter=adapter)
                r.passes += 1
                r.denoise_passes += 1
                committed = [t for t, m in zip(tokens, masked) if not m]
                choices = {i: run.choose(logits[i], first + i, committed) for i in range(length) if masked[i]}
                confidence = {i: np.float32(ch.confidence) for i, ch in choices.items()}
                commit = POLICIES[policy](confidence, threshold, steps - step)
                r.margin = min(r.margin, float(commit_margin(policy, confidence, commit, threshold)))
                for i in commit:
                    tokens[i], masked[i] = choices[i].token, False
                r.commits.append(commit)
                r.confidences.append([float(confidence[i]) for i in commit])
                step += 1
        for token in tokens:  # emission stops by itself at an end of text, at max_tokens and at the context's end
            if run.emit(token):
                return r
        logits = model.forward(tokens, run.cache)  # seal
        r.passes += 1
        seed = run.choose(logits[-1], run.cache.length).token


def ended(tokens, masked, eos):
    """An end-of-text token stands in the block with no mask before it."""
    for token, m in zip(tokens, masked):
        if m:
            return False
        if token in eos:
            return True
    return False
