#!/usr/bin/env python3
"""Bytes, operations and the least time of every kernel of one pass, as a Markdown table: kernels/cuda/README.md holds its output.

  scripts/gpu/roofline.py [--model 8B] [--rows 1,32,256] [--context 1152] [--tb-per-s 3.35] [--tflop-per-s 989]

A time is the larger of bytes / bandwidth and operations / rate: nothing can run faster. Rows are one AR row of as many sequences, but
for 32, which is one block of one sequence (its rows share the keys and values they read).
"""
import argparse

MODELS = {  # hidden, layers, feed-forward, heads, kv heads, head_dim
    "3B": (3072, 26, 9216, 32, 8, 128),
    "8B": (4096, 34, 14336, 32, 8, 128),
    "14B": (5120, 40, 16384, 32, 8, 128),
}
VOCAB = 131072


def linear_parts(outputs, cols, rows):
    """krn_cuda_linear_sums: partial sums of a product (kernels/cuda/linear.cu). More than 64 rows are the library's, in one part."""
    if rows > 64:
        return 1
    tiles = -(-outputs // 128)
    return max(1, min(8, 148 // tiles, cols // 512))


def kernels(model, rows, context, block, weight_bytes):
    hidden, layers, ff, heads, kv_heads, dim = MODELS[model]
    q, kv = heads * dim, kv_heads * dim
    readers = 1 if block else rows  # sequences whose keys and values are read

    def product(name, outputs, cols, out_bytes, times=layers):
        return (name, times, outputs * cols * weight_bytes + rows * cols * 2 + out_bytes, 2 * rows * outputs * cols)

    q_sums, kv_sums = q * linear_parts(q, hidden, rows), 2 * kv * linear_parts(kv, hidden, rows)
    qkv_out = rows * (q_sums + kv_sums) * 4
    o_out, down_out = (rows * hidden * 4 * linear_parts(hidden, cols, rows) for cols in (q, ff))
    yield ("embed", 1, rows * hidden * 6, 0)
    yield ("norm, adding o or down", 2 * layers, rows * hidden * 10 + (o_out + down_out) // 2, rows * hidden * 6)
    yield product("linear q, k, v", q + 2 * kv, hidden, qkv_out)
    yield ("rope_write", layers, qkv_out + rows * (q + 2 * kv) * 2, rows * (q + kv) * 6)
    yield ("attention", layers, readers * context * 2 * kv * 2 + rows * q * 4, 4 * rows * q * context)
    yield product("linear o", hidden, q, o_out)
    yield product("linear gate, up, with swiglu", 2 * ff, hidden, rows * ff * 2)
    yield product("linear down", hidden, ff, down_out)
    yield product("linear head", VOCAB, hidden, rows * VOCAB * 4, times=1)
    yield ("select", 1, rows * VOCAB * 4, rows * VOCAB * 8)


def text_of_bytes(n):
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.3g} {unit}"
        n /= 1000


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", default="8B", choices=MODELS)
    p.add_argument("--rows", default="1,32,256")
    p.add_argument("--context", type=int, default=1152)
    p.add_argument("--tb-per-s", type=float, default=3.35)
    p.add_argument("--tflop-per-s", type=float, default=989)
    p.add_argument("--weight-bytes", type=float, default=2)
    a = p.parse_args()
    print(f"{a.model}, context {a.context}, {a.weight_bytes:g} bytes a weight, {a.tb_per_s:g} TB/s, {a.tflop_per_s:g} TFLOP/s\n")
    print("| rows | kernel | launches a pass | bytes | operations | least time a launch | of a pass |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for rows in map(int, a.rows.split(",")):
        total = 0.0
        for name, times, nbytes, flops in kernels(a.model, rows, a.context, rows == 32, a.weight_bytes):
            seconds = max(nbytes / a.tb_per_s / 1e12, flops / a.tflop_per_s / 1e12)
            bound = "" if nbytes / a.tb_per_s >= flops / a.tflop_per_s else " (operations)"
            total += times * seconds
            print(f"| {rows} | {name} | {times} | {text_of_bytes(nbytes)} | {flops / 1e9:.3g} G | {seconds * 1e6:.3g} us{bound} |"
                  f" {times * seconds * 1e6:.0f} us |")
        print(f"| {rows} | **whole pass** | | | | | **{total * 1e3:.2f} ms** |")


if __name__ == "__main__":
    main()
