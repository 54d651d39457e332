"""The model of MODEL.md 1 and 2 in NumPy: config, weights, KV cache, forward pass. Slow and plain on purpose.

Independent of the C code: written from MODEL.md alone, so that a mistake has to be made twice to go unnoticed.
Everything is computed in `dtype` (float32 by default, float64 to measure what float32 rounding does). bf16 weights
are widened exactly. Leaves out: batches of several sequences (one sequence is one Model.forward at a time).
"""
import json
import math
import os
import re
import struct
from dataclasses import dataclass, field

import numpy as np

# ---- safetensors: 8-byte little-endian header length, JSON header, raw data -----------------------------------------

NUMPY_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8"), "BF16": np.dtype("<u2")}


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(x):
    """Round to nearest, ties to even; finite values only."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def read_safetensors(path):
    """{name: array}; BF16 comes back widened to float32."""
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
        data = f.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[begin:end], dtype=NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = bf16_to_f32(array) if entry["dtype"] == "BF16" else array
    return tensors


def read_weights(folder):
    """All tensors of a checkpoint, from model.safetensors or from the shards its index names."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.exists(index):
        return read_safetensors(os.path.join(folder, "model.safetensors"))
    with open(index, encoding="utf-8") as f:
        shards = sorted(set(json.load(f)["weight_map"].values()))
    tensors = {}
    for shard in shards:
        tensors.update(read_safetensors(os.path.join(folder, shard)))
    return tensors


# ---- config ---------------------------------------------------------------------------------------------------------


@dataclass
class Config:
    hidden: int
    layers: int
    ff: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    eps: float
    tied: bool
    bos: int
    eos: list
    mask_id: int
    block_size: int
    rope: dict = field(default_factory=dict)


def load_config(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    generation = {}
    path = os.path.join(folder, "generation_config.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            generation = json.load(f)
    eos = []
    for value in (c.get("eos_token_id"), generation.get("eos_token_id")):
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if token not in eos:
                eos.append(token)
    rope = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
    rope.setdefault("rope_theta", c.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    heads = c["num_attention_heads"]
    return Config(
        hidden=c["hidden_size"], layers=c["num_hidden_layers"], ff=c["intermediate_size"], heads=heads,
        kv_heads=c["num_key_value_heads"], head_dim=c.get("head_dim") or c["hidden_size"] // heads,
        vocab=c["vocab_size"], max_positions=c["max_position_embeddings"], eps=c["rms_norm_eps"],
        tied=c.get("tie_word_embeddings", False), bos=c.get("bos_token_id", -1), eos=eos,
        mask_id=c.get("mask_token_id", -1), block_size=c.get("block_size", 32), rope=rope)


# ---- rotary embedding -----------------------------------------------------------------------------------------------


def rope_frequencies(config):
    """(inverse frequencies [head_dim / 2] in float64, attention factor). YaRN: arXiv 2309.00071 as transformers reads it."""
    r, d = config.rope, config.head_dim
    base = float(r["rope_theta"])
    inv = 1.0 / base ** (np.arange(0, d, 2, dtype=np.float64) / d)
    if r["rope_type"] == "default":
        return inv, 1.0
    assert r["rope_type"] == "yarn", r["rope_type"]
    factor, original = float(r["factor"]), r.get("original_max_position_embeddings") or config.max_positions

    def dimension_of(rotations):  # the dimension that turns `rotations` times over the original context
        return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension_of(r.get("beta_fast") or 32), dimension_of(r.get("beta_slow") or 1)
    if r.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    if low == high:
        high += 0.001
    interpolate = np.clip((np.arange(d // 2) - low) / (high - low), 0, 1)  # 0: fast dimension, kept as it is
    inv = inv / factor * interpolate + inv * (1 - interpolate)

    def mscale(m):
        return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0

    attention = r.get("attention_factor")
    if attention is None:
        m, m_all = r.get("mscale"), r.get("mscale_all_dim")
        attention = mscale(m) / mscale(m_all) if m and m_all else mscale(1.0)
    return inv, float(attention)


# ---- the model ------------------------------------------------------------------------------------------------------


class Cache:
    """KV of one sequence: causal KV of final tokens and nothing else. `length` positions are held."""

    def __init__(self, config, dtype):
        self.k = [np.zeros((0, config.kv_heads, config.head_dim), dtype) for _ in range(config.layers)]
        self.v = [np.zeros((0, config.kv_heads, config.head_dim), dtype) for _ in range(config.layers)]

    @property
    def length(self):
        return len(self.k[0])

    def crop(self, length):
        self.k = [k[:length] for k in self.k]
        self.v = [v[:length] for v in self.v]


class Model:
    def __init__(self, folder, dtype=np.float32, adapter=True):
        self.config = c = load_config(folder)
        self.dtype = dtype
        tensors = {self._canonical(n): t.astype(dtype) for n, t in read_weights(folder).items()}
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.embed = self._take(tensors, "embed_tokens", (c.vocab, c.hidden))
        self.norm = self._take(tensors, "norm", (c.hidden,))
        self.head = self.embed if c.tied else self._take(tensors, "head", (c.vocab, c.hidden))
        shapes = {"input_layernorm": (c.hidden,), "post_attention_layernorm": (c.hidden,),
                  "self_attn.q_proj": (q, c.hidden), "self_attn.k_proj": (kv, c.hidden),
                  "self_attn.v_proj": (kv, c.hidden), "self_attn.o_proj": (c.hidden, q),
                  "mlp.gate_proj": (c.ff, c.hidden), "mlp.up_proj": (c.ff, c.hidden), "mlp.down_proj": (c.hidden, c.ff)}
        self.layers = [{n.split(".")[-1]: self._take(tensors, f"layers.{i}.{n}", s) for n, s in shapes.items()}
                       for i in range(c.layers)]
        assert not tensors, f"left over: {sorted(tensors)}"
        self.inv_freq, self.attention_factor = rope_frequencies(c)
        self.inv_freq = self.inv_freq.astype(np.float32).astype(dtype)
        self.adapter, self.adapter_scale, self.adapter_rows = [{} for _ in range(c.layers)], 0.0, None
        lora = os.path.join(folder, "linear_spec_lora")
        if adapter and os.path.isdir(lora):
            self._load_adapter(lora)

    @staticmethod
    def _canonical(name):
        """The published name or its ports' -> ours: the part after encoder. or model., without .weight."""
        name = re.sub(r"^(encoder|model)\.", "", name)
        name = re.sub(r"^(diffusion_head|lm_head)\.", "head.", name)
        return name.removesuffix(".weight")

    @staticmethod
    def _take(tensors, name, shape):
        assert name in tensors, f"missing: {name}"
        tensor = tensors.pop(name)
        assert tensor.shape == shape, f"{name}: {tensor.shape}, expected {shape}"
        return tensor

    def _load_adapter(self, folder):
        with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as f:
            a = json.load(f)
        self.adapter_scale = self.dtype(a["lora_alpha"] / a["r"])
        self.adapter_rows = a.get("trimode_rows", "draft")
        assert self.adapter_rows in ("draft", "block"), self.adapter_rows
        for name, tensor in read_safetensors(os.path.join(folder, "adapter_model.safetensors")).items():
            layer, target, side = re.search(r"layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight$", name).groups()
            assert target in a["target_modules"], name
            self.adapter[int(layer)].setdefault(target, {})[side] = tensor.astype(self.dtype)

    @property
    def has_adapter(self):
        return self.adapter_rows is not None

    def new_cache(self):
        return Cache(self.config, self.dtype)

    def forward(self, tokens, cache, mask="causal", keep=True, adapter=False):
        """One pass over `tokens` at the positions that follow the cache -> logits [rows][vocab].

        mask "causal": row i sees the cache and rows 0 .. i. "block": the cache and every row.
        keep: the rows' KV stays in the cache (causal only: the cache holds causal KV of final tokens).
        """
        c, T = self.config, self.dtype
        assert mask in ("causal", "block") and not (keep and mask == "block") and not (adapter and mask == "causal")
        tokens = np.asarray(tokens)
        rows, first = len(tokens), cache.length
        positions = np.arange(first, first + rows)
        visible = np.ones((rows, first + rows), bool)
        if mask == "causal":
            visible = np.arange(first + rows)[None, :] <= positions[:, None]
        x = self.embed[tokens]
        for i, w in enumerate(self.layers):
            h = self._rms_norm(x, w["input_layernorm"])
            q = self._linear(h, i, "q_proj", adapter).reshape(rows, c.heads, c.head_dim)
            k = self._linear(h, i, "k_proj", adapter).reshape(rows, c.kv_heads, c.head_dim)
            v = self._linear(h, i, "v_proj", adapter).reshape(rows, c.kv_heads, c.head_dim)
            q = self._rotate(q, positions) * self._query_scale(positions)
            k = np.concatenate([cache.k[i], self._rotate(k, positions)])
            v = np.concatenate([cache.v[i], v])
            if keep:
                cache.k[i], cache.v[i] = k, v
            attended = np.empty_like(q)
            for head in range(c.heads):
                g = head // (c.heads // c.kv_heads)
                scores = q[:, head] @ k[:, g].T / T(math.sqrt(c.head_dim))
                scores = np.where(visible, scores, T(-np.inf))
                p = np.exp(scores - scores.max(axis=1, keepdims=True))
                attended[:, head] = p / p.sum(axis=1, keepdims=True) @ v[:, g]
            x = x + self._linear(attended.reshape(rows, -1), i, "o_proj", adapter)
            h = self._rms_norm(x, w["post_attention_layernorm"])
            gate, up = self._linear(h, i, "gate_proj", adapter), self._linear(h, i, "up_proj", adapter)
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up, i, "down_proj", adapter)
        return self._rms_norm(x, self.norm) @ self.head.T

    def _rms_norm(self, x, weight):
        return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + self.dtype(self.config.eps)) * weight

    def _linear(self, x, layer, name, adapter):
        y = x @ self.layers[layer][name].T
        if adapter and name in self.adapter[layer]:
            a = self.adapter[layer][name]
            y = y + self.adapter_scale * (x @ a["A"].T @ a["B"].T)
        return y

    def _rotate(self, x, positions):
        """Half-split (NeoX) rotation: (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of the head."""
        angle = (positions[:, None] * self.inv_freq[None, :]).astype(self.dtype)[:, None, :]
        cos, sin = np.cos(angle) * self.dtype(self.attention_factor), np.sin(angle) * self.dtype(self.attention_factor)
        a, b = np.split(x, 2, axis=2)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=2)

    def _query_scale(self, positions):
        beta = self.config.rope.get("llama_4_scaling_beta")
        if not beta:
            return self.dtype(1)
        original = self.config.rope.get("original_max_position_embeddings") or self.config.max_positions
        return (1 + beta * np.log(1 + np.floor(positions / original))).astype(self.dtype)[:, None, None]
