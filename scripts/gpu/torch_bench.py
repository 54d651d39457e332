#!/usr/bin/env python3
"""Part `torch`: what torch does on the same GPU: transformers' Llama of the same shape with a static cache and CUDA graphs, batch 1 and 32, and
cuBLAS (torch.matmul) for every product at every row count. gpu.sh runs it; products.json of the part `products` gives our times beside cuBLAS.

A decode step is timed at the context in the middle of 128 tokens in and 1024 out, captured in a CUDA graph and replayed; the share is of the
same limit as ours. On a CPU (rehearsals) nothing is captured.
"""
import json
import os
import time

import common as c
import make_model

import torch

CUDA = torch.cuda.is_available() and not c.REHEARSE
DEVICE, DTYPE = ("cuda" if CUDA else "cpu"), torch.bfloat16
SHAPE = "small" if c.REHEARSE else "8b"
PROMPT, TOKENS = (32, 48) if c.REHEARSE else (128, 1024)
BATCHES = (1, 2) if c.REHEARSE else (1, 32)
ROWS = (1, 8) if c.REHEARSE else (1, 2, 4, 8, 16, 32, 64, 128, 256)
COLD_BYTES = 1 << 20 if c.REHEARSE else 300 << 20
# Up to here a product is ours; beyond, the backend takes the library's itself (kernels/cuda/README.md).
OURS_UP_TO = 64


def sync():
    if CUDA:
        torch.cuda.synchronize()


def times(run, n):
    """Median milliseconds of n runs of a captured step."""
    out = []
    for _ in range(n):
        if CUDA:
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            run()
            b.record()
            b.synchronize()
            out.append(a.elapsed_time(b))
        else:
            out.append(1e3 * c.timed(run))
    return c.median(out)


def captured(step):
    """The step as a CUDA graph's replay (after a warm-up on a side stream); the step itself on a CPU."""
    if not CUDA:
        step()
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# ---- transformers ----


def llama(s):
    """Random Llama of the shape, weights drawn where they live."""
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=s["vocab"], hidden_size=s["hidden"], intermediate_size=s["ff"], num_hidden_layers=s["layers"],
                         num_attention_heads=s["heads"], num_key_value_heads=s["kv_heads"], head_dim=s["head_dim"],
                         max_position_embeddings=4096, tie_word_embeddings=False, rms_norm_eps=1e-5, attn_implementation="sdpa")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(DTYPE).to_empty(device=DEVICE).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1) if "norm" in name else p.normal_(0, p.shape[-1] ** -0.5)
    # Buffers have no values after to_empty.
    with torch.device(DEVICE):
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model


def weight_bytes(model):
    """Of one step: all but the embedding table."""
    return sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "embed_tokens" not in n)


def decode_step(model, batch, context):
    """One greedy step of every sequence over a static cache; the KV of the context is that of random tokens. The cache counts its positions on
    the device, so each replay goes one position further, far fewer than there are."""
    from transformers import StaticCache
    cfg = model.config
    cache = StaticCache(config=cfg, max_cache_len=PROMPT + TOKENS)
    ids = torch.randint(128, cfg.vocab_size, (batch, context), device=DEVICE)
    position = torch.arange(context, device=DEVICE)
    model(input_ids=ids, past_key_values=cache, cache_position=position, position_ids=position[None].expand(batch, -1), use_cache=True,
          logits_to_keep=1)
    token = ids[:, :1].clone()
    at = torch.tensor([context], device=DEVICE)
    at2 = at[None].expand(batch, -1).contiguous()
    chosen = torch.zeros((batch, 1), dtype=torch.long, device=DEVICE)
    # One row sees what is cached up to itself. Given whole, so that nothing is decided on the host inside the capture.
    mask = (torch.arange(PROMPT + TOKENS, device=DEVICE) <= context)[None, None, None].expand(batch, 1, 1, -1)

    def step():
        out = model(input_ids=token, past_key_values=cache, cache_position=at, position_ids=at2, attention_mask=mask, use_cache=True)
        chosen.copy_(out.logits[:, -1:].argmax(-1))
    return step


def transformers_table():
    import transformers
    s = make_model.whole_shape(SHAPE)
    t = c.Table(f"transformers {transformers.__version__}, Llama of {SHAPE} shape, bf16, sdpa, static cache", "clients", "how", "ms a step", "tok/s",
                "limit tok/s", "share")
    context = PROMPT + TOKENS // 2
    start = time.monotonic()
    model = llama(s)
    c.say(f"built in {time.monotonic() - start:.1f} s")
    kv = 2 * s["layers"] * s["kv_heads"] * s["head_dim"] * 2
    lim = c.limits()["read_gbps"] * 1e9
    with torch.inference_mode():
        for batch in BATCHES:
            step = decode_step(model, batch, context)
            how = "CUDA graph" if CUDA else "eager"
            try:
                run = captured(step)
            except Exception as e:  # noqa: BLE001 - whatever a library's version refuses to capture
                c.say(f"capture failed: {type(e).__name__}: {e}")
                t.note(f"batch {batch} could not be captured ({type(e).__name__}): eager instead")
                run, how = step, "eager"
                sync()
            ms = times(run, 5 if c.REHEARSE else 30)
            rate, bound = batch / ms * 1e3, batch / ((weight_bytes(model) + batch * context * kv) / lim)
            t.row(str(batch), how, f"{ms:.3f}", f"{rate:.1f}", f"{bound:.1f}", c.percent(rate / bound))
    t.note(f"every step at context {context}; a static cache of {PROMPT + TOKENS} positions is read whole by sdpa; sampling is an argmax")
    del model
    if CUDA:
        torch.cuda.empty_cache()


# ---- cuBLAS ----


def products(s):
    """(name, [(outputs, inputs), ...]) of a layer and the head; q, k, v and gate, up as one matrix each, the best case for a library."""
    q, kv = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
    return [("qkv", q + 2 * kv, s["hidden"]), ("o", s["hidden"], q), ("gate_up", 2 * s["ff"], s["hidden"]), ("down", s["hidden"], s["ff"]),
            ("head", s["vocab"], s["hidden"])]


def library_us(outputs, cols, rows):
    """Microseconds of one torch.matmul, from one graph of many over as many copies of the weights as exceed the caches."""
    n = max(2, min(16, 2 + COLD_BYTES // (outputs * cols * 2)))
    w = [torch.randn(outputs, cols, device=DEVICE, dtype=DTYPE) for _ in range(n)]
    x = torch.randn(rows, cols, device=DEVICE, dtype=DTYPE)
    y = torch.empty(rows, outputs, device=DEVICE, dtype=DTYPE)
    many = 4 if c.REHEARSE else n * max(1, 40 // n)

    def step():
        for i in range(many):
            torch.matmul(x, w[i % n].t(), out=y)
    return 1e3 * times(captured(step), 7) / many


def library_table():
    s = make_model.whole_shape(SHAPE)
    ours, path = {}, os.path.join(c.OUT, "products.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            ours = {(p["product"], p["rows"]): p["us"] for p in json.load(f)["products"]}
    t = c.Table(f"products of {SHAPE} shapes in bf16: cuBLAS (torch.matmul, CUDA graph) beside ours", "product", "rows", "cuBLAS us", "ours us",
                "limit us", "cuBLAS share", "our share", "ours / cuBLAS", "ahead")
    lim = c.limits()["read_gbps"] * 1e9
    with torch.inference_mode():
        for name, outputs, cols in products(s):
            for rows in ROWS:
                if c.time_left() < 20:
                    t.note("out of time: the rest was left out")
                    return
                library = library_us(outputs, cols, rows)
                bound, mine = outputs * cols * 2 / lim * 1e6, ours.get((name, rows))
                t.row(name, str(rows), f"{library:.1f}", f"{mine:.1f}" if mine else None, f"{bound:.1f}", c.percent(bound / library),
                      c.percent(bound / mine) if mine else None, f"{mine / library:.2f}" if mine else None,
                      c.verdict(mine <= library) if mine and rows <= OURS_UP_TO else None)
    t.note("ours includes what is fused into it: swiglu in gate_up. The limit is the weights' bytes alone.")
    if not ours:
        t.note("our times were not there: run the part `products` first")


def main():
    c.limits_note(c.Table(f"torch {torch.__version__}: limits"))
    try:
        transformers_table()
    except Exception as e:  # noqa: BLE001 - another version of the library must not cost the other table
        c.say(f"transformers: {type(e).__name__}: {e}")
        c.expect(False, f"transformers could not be measured: {type(e).__name__}: {str(e)[:200]}")
    library_table()
    c.finish()


if __name__ == "__main__":
    main()
