"""From logits to a token (MODEL.md 7): the noise of kernels/noise.h bit for bit, and the order of steps of kernels.h.

    raw logits -> log-probability -> allowed -> repetition, frequency, presence -> bias -> confidence
    -> temperature -> top-k -> top-p -> min-p -> + Gumbel noise -> argmax, lowest id on a tie

The noise uses single float32 operations in the order of noise.h; NumPy neither fuses nor reorders them.
"""
from dataclasses import dataclass, field

import numpy as np

F = np.float32
MASK32 = 0xFFFFFFFF

# ---- noise ----------------------------------------------------------------------------------------------------------


def philox(seed, position, quad):
    """The four words for tokens 4 * quad .. 4 * quad + 3; quad may be an array. -> uint32 [4][...]"""
    c0 = np.asarray(quad, dtype=np.uint64)
    c1 = np.full_like(c0, position & MASK32)
    c2 = np.full_like(c0, position >> 32)
    c3 = np.zeros_like(c0)
    k0, k1, low, half = seed & MASK32, seed >> 32, np.uint64(MASK32), np.uint64(32)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


LOG_POLYNOMIAL = [F(s) for s in ("-1.1514610310e-1", "1.1676998740e-1", "-1.2420140846e-1", "1.4249322787e-1", "-1.6668057665e-1",
                                 "2.0000714765e-1", "-2.4999993993e-1", "3.3333331174e-1")]


def noise_log(x):
    bits = np.asarray(x, dtype=F).view(np.uint32)
    exponent = (bits >> 23).astype(np.int32) - 126
    m = ((bits & np.uint32(0x007FFFFF)) | np.uint32(0x3F000000)).view(F)
    small = m < F(0.70710678)
    exponent = exponent - small
    m = np.where(small, m + m, m) - F(1)
    e = exponent.astype(F)
    z = m * m
    y = np.full_like(m, F("7.0376836292e-2"))
    for c in LOG_POLYNOMIAL:
        y = y * m + c
    y = (y * m) * z
    y = y + e * F("-2.12194440e-4")
    y = y - z * F(0.5)
    return (m + y) + e * F(0.693359375)


def noise_log1m(v):
    v = np.asarray(v, dtype=F)
    u = F(1) - v
    one = u == F(1)
    return np.where(one, v, (-noise_log(u) * v) / np.where(one, F(1), F(1) - u))


def gumbel(words):
    v = (np.asarray(words, dtype=np.uint32).astype(F) + F(0.5)) * F(2.3283064365386963e-10)
    return -noise_log(noise_log1m(np.minimum(v, F(0.99999994))))


def gumbel_row(seed, position, vocab):
    """Noise of every token at one position."""
    words = philox(seed, position, np.arange((vocab + 3) // 4))  # [4][quads]
    return gumbel(words.T.reshape(-1)[:vocab])


# ---- choice ---------------------------------------------------------------------------------------------------------


@dataclass
class Params:
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: dict = field(default_factory=dict)  # token -> bias; -100 or less forbids
    seed: int = 0


@dataclass
class Choice:
    token: int
    confidence: float  # softmax of the adjusted logits at temperature 1
    logprob: float     # of the raw logits
    margin: float      # how far the decision was from another one, in logits (nats): small = rounding could flip it


def log_sum_exp(x):
    top = x.max()
    return top + np.log(np.exp(x - top, dtype=np.float64).sum())


def choose(logits, position, params, prompt=(), output=(), banned=-1, allowed=None):
    """position: absolute position of the token being chosen. prompt, output: the history that penalties look at."""
    raw = np.array(logits, dtype=F)
    if banned >= 0:
        raw[banned] = -np.inf
    x = raw.copy()
    if allowed is not None:
        x[~np.asarray(allowed, dtype=bool)] = -np.inf
    for token in set(prompt) | set(output):
        if params.repetition_penalty != 1:
            x[token] = x[token] / F(params.repetition_penalty) if x[token] > 0 else x[token] * F(params.repetition_penalty)
        n = list(output).count(token)
        if n:
            x[token] -= F(params.frequency_penalty) * F(n) + F(params.presence_penalty)
    for token, bias in params.bias.items():
        x[token] = -np.inf if bias <= -100 else x[token] + F(bias)
    if params.temperature == 0:
        token, margin = int(np.argmax(x)), best_gap(x)
    else:
        scaled = x / F(params.temperature)
        kept, distance = candidates(scaled, params)
        free = scaled + gumbel_row(params.seed, position, len(x))
        noisy = np.where(kept, free, F(-np.inf))
        token = int(np.argmax(noisy))
        # A cut matters to the winner, and to those that would win if they had not been cut.
        rivals = ~kept & (free > free[token] - 1e-2)
        margin = min(best_gap(noisy), distance[token], distance[rivals].min(initial=np.inf)) * min(1.0, params.temperature)
    return Choice(token, float(np.exp(x[token] - log_sum_exp(x))), float(raw[token] - log_sum_exp(raw)), float(margin))


def best_gap(x):
    top = np.partition(x, -2)[-2:]
    return float(top[1] - top[0])


def candidates(scaled, params):
    """Which tokens survive top-k, then top-p of what top-k left, then min-p; and each token's distance from another verdict."""
    order = np.lexsort((np.arange(len(scaled)), -scaled))  # best first, lower id first on a tie
    order = order[np.isfinite(scaled[order])]
    distance = np.full(len(scaled), np.inf)
    if 0 < params.top_k < len(order):
        last, next_one = scaled[order[params.top_k - 1]], scaled[order[params.top_k]]
        distance[order[:params.top_k]] = scaled[order[:params.top_k]] - next_one
        distance[order[params.top_k:]] = last - scaled[order[params.top_k:]]
        order = order[:params.top_k]
    p = np.exp(scaled[order].astype(np.float64) - scaled[order[0]])
    if params.top_p < 1:
        # The smallest prefix holding top_p: a token stays if what stands before it is less than that.
        before = (np.cumsum(p) - p) / p.sum()
        distance[order] = np.minimum(distance[order], np.abs(before - params.top_p))
        order, p = order[before < params.top_p], p[before < params.top_p]
    if params.min_p > 0:
        distance[order] = np.minimum(distance[order], np.abs(np.log(np.maximum(p, 1e-300) / params.min_p)))
        order = order[p >= params.min_p]
    kept = np.zeros(len(scaled), bool)
    kept[order] = True
    return kept, distance
