#!/usr/bin/env python3
"""A random checkpoint of a published shape (MODEL.md 1) with the draft adapter, drawn with torch on the GPU and written as it is drawn.

    scripts/gpu/make_model.py DIR --shape 8b [--shard-gb 5] [--device cuda]

The layout, tokenizer and scales are those of scripts/reference/checkpoint.py; values differ from its own, which NumPy would need many
minutes to draw. `tiny` and `small` are for rehearsals. Without torch, NumPy draws.
"""
import argparse
import json
import os
import shutil
import struct
import sys
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reference"))
import checkpoint  # noqa: E402

YARN = {"factor": 16.0, "original_max_position_embeddings": 16384}
PUBLISHED = dict(heads=32, kv_heads=8, head_dim=128, vocab=131072, max_positions=262144, yarn=YARN, query_beta=0.1, adapter_rank=128)
SHAPES = {
    "3b": dict(PUBLISHED, hidden=3072, layers=26, ff=9216, rope_theta=1e6),
    "8b": dict(PUBLISHED, hidden=4096, layers=34, ff=14336, rope_theta=1e6),
    "14b": dict(PUBLISHED, hidden=5120, layers=40, ff=16384, rope_theta=1e9),
    "tiny": dict(hidden=64, layers=2, ff=128, heads=4, kv_heads=2, head_dim=16, vocab=512, max_positions=4096, adapter_rank=8,
                 yarn=dict(YARN, original_max_position_embeddings=256), query_beta=0.1, rope_theta=1e6),
    "small": dict(hidden=256, layers=3, ff=512, heads=8, kv_heads=2, head_dim=32, vocab=4096, max_positions=4096, adapter_rank=16,
                  yarn=dict(YARN, original_max_position_embeddings=256), query_beta=0.1, rope_theta=1e6),
}
DEFAULTS = dict(tied=False, port_names=False, logit_spread=2.0, seed=1)
PIECE = 1 << 27  # elements drawn at once


def whole_shape(name):
    return {**DEFAULTS, **SHAPES[name]}


def drawer(device, seed):
    """(draw(name, n, scale, kind, dtype) -> bytes pieces): torch when it is there."""
    try:
        import torch
    except ImportError:
        torch = None
    if torch is None:
        def draw_numpy(name, shape, kind, s, dtype):
            for x in checkpoint.pieces(name, shape, kind, s):
                yield (checkpoint.f32_to_bf16(x) if dtype == "BF16" else x.astype("<f4")).tobytes()
        return draw_numpy
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    print(f"make_model: drawing with torch on {device}", file=sys.stderr)
    wide = {"BF16": torch.bfloat16, "F32": torch.float32}

    def draw(name, shape, kind, s, dtype):
        g = torch.Generator(device=device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        left = 1
        for n in shape:
            left *= n
        while left:
            n = min(left, PIECE)
            x = torch.randn(n, generator=g, device=device, dtype=torch.float32)
            x = 1 + 0.1 * x if kind == "norm" else x.mul_(float(checkpoint.scale_of(kind, shape, s)))
            yield memoryview(x.to(wide[dtype]).cpu().view(torch.uint8).numpy())
            left -= n
    return draw


def count(shape):
    n = 1
    for k in shape:
        n *= k
    return n


def write_file(path, tensors, dtype, draw, s):
    """One .safetensors file; returns the bytes of its tensors."""
    size, header, offset = {"F32": 4, "BF16": 2}[dtype], {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors:
        n = count(shape) * size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + n]}
        offset += n
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape, kind in tensors:
            for piece in draw(name, shape, kind, s, dtype):
                f.write(piece)
    return offset


def shards(tensors, limit):
    """Tensors in their order, split where a shard would pass `limit` bytes of bf16."""
    out, size = [[]], 0
    for t in tensors:
        n = count(t[1]) * 2
        if out[-1] and size + n > limit:
            out.append([])
            size = 0
        out[-1].append(t)
        size += n
    return out


def write_model(folder, name, shard_bytes=5 << 30, device=None):
    """Writes the checkpoint; returns the bytes of its tensors, the adapter included. An unfinished folder is never left behind."""
    s = whole_shape(name)
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(folder)) or ".").free
    needed = sum(count(shape) * 2 for _, shape, _ in checkpoint.tensor_shapes(s))
    if needed * 1.05 > free:
        sys.exit(f"make_model: {name} needs {needed >> 30} GiB and the disk has {free >> 30}")
    part = folder + ".part"
    shutil.rmtree(part, ignore_errors=True)
    # The small model of the same keys gives config, tokenizer and template; then its tensors are replaced.
    checkpoint.write_checkpoint(part, **{**SHAPES[name], "layers": 0, "hidden": 2, "adapter_rank": 0, "vocab": s["vocab"]})
    os.remove(os.path.join(part, "model.safetensors"))
    with open(os.path.join(part, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    config.update(num_hidden_layers=s["layers"], hidden_size=s["hidden"])
    checkpoint.write_json(os.path.join(part, "config.json"), config)
    draw = drawer(device, s["seed"])
    groups = shards(list(checkpoint.tensor_shapes(s)), shard_bytes)
    total, index = 0, {}
    for i, group in enumerate(groups):
        file = "model.safetensors" if len(groups) == 1 else f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        total += write_file(os.path.join(part, file), group, "BF16", draw, s)
        index.update({t[0]: file for t in group})
    if len(groups) > 1:
        checkpoint.write_json(os.path.join(part, "model.safetensors.index.json"), {"metadata": {"total_size": total}, "weight_map": index})
    lora = os.path.join(part, "linear_spec_lora")
    os.makedirs(lora)
    checkpoint.write_json(os.path.join(lora, "adapter_config.json"), {
        "peft_type": "LORA", "r": s["adapter_rank"], "lora_alpha": 4 * s["adapter_rank"], "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["o_proj"], "task_type": "CAUSAL_LM", "use_rslora": False, "use_dora": False})
    total += write_file(os.path.join(lora, "adapter_model.safetensors"), list(checkpoint.adapter_shapes(s)), "F32", draw, s)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(part, folder)
    return total


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--shape", choices=list(SHAPES), required=True)
    p.add_argument("--shard-gb", type=float, default=5)
    p.add_argument("--device", help="of torch (default: cuda if there)")
    a = p.parse_args()
    total = write_model(a.folder, a.shape, int(a.shard_gb * 1e9), a.device)
    print(f"{a.folder}: {total / 1e9:.2f} GB of tensors")


if __name__ == "__main__":
    main()
