#!/usr/bin/env python3
"""Step 7: exact match and tokens per forward pass on the held-out prompts, by task and mode.

    python3 scripts/train/evaluate.py --backend http --url http://127.0.0.1:8000 [--plain-url URL of a server without adapter]
    python3 scripts/train/evaluate.py --backend torch      # the algorithms of MODEL.md 3 to 5 in PyTorch, in batches

The http back-end needs the standard library only. evaluate.sh starts the servers for it.
"""
import argparse
import concurrent.futures
import json
import os
import sys
import time
import urllib.request

import data

MAX_TOKENS = 160
BLOCKS = (8, 16, 32)
# (label, mode, block length, with the draft adapter)
RUNS = ([("AR", "ar", None, True)] + [(f"diff {b}", "diffusion", b, True) for b in BLOCKS]
        + [(f"spec {b}", "self_speculation", b, True) for b in BLOCKS]
        + [(f"plain {b}", "self_speculation", b, False) for b in BLOCKS])


# ---- http back-end -----------------------------------------------------------------------------------------------

def ask(url, prompt, mode, block, threshold):
    """One chat completion: (text, completion tokens, forward passes)."""
    body = {"messages": [{"role": "user", "content": prompt}], "mode": mode, "temperature": 0, "max_tokens": MAX_TOKENS}
    if block:
        body["block_length"] = block
    if mode == "diffusion":
        body["threshold"] = threshold
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as f:
        answer = json.load(f)
    stats = answer["trimode"]
    return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"], stats["forward_passes"]


def run_http(url, prompts, mode, block, threshold, workers):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda p: ask(url, p, mode, block, threshold), prompts))


# ---- torch back-end: the three modes over a batch ----------------------------------------------------------------

def prefill(model, ids, room):
    """Causal pass over the prompts, right-padded: (caches, lengths, seeds). Padding is overwritten by later rows."""
    import torch
    n = torch.tensor([len(i) for i in ids])
    tokens = torch.zeros(len(ids), int(n.max()), dtype=torch.long)
    for row, i in zip(tokens, ids):
        row[:len(i)] = torch.tensor(i)
    caches = model.new_caches(len(ids), int(n.max()) + room)
    logits = model.step(caches, tokens, torch.zeros_like(n), causal=True)
    return caches, n, logits[torch.arange(len(ids)), n - 1].argmax(-1)


def decode(model, ids, mode, block, threshold, adapter):
    """Greedy decoding of a batch; [(token ids without the end, tokens with the end, forward passes)]."""
    import torch
    eos, mask_id, b = model.c["eos_token_id"], model.c["mask_token_id"], len(ids)
    caches, base, seed = prefill(model, ids, MAX_TOKENS + 2 * (block or 1) + 2)
    out = [[int(s)] for s in seed]
    passes = [0] * b
    active = [int(s) != eos for s in seed]

    def emit(i, tokens):
        for t in tokens:
            if active[i]:
                out[i].append(t)
                active[i] = t != eos and len(out[i]) < MAX_TOKENS

    rows = list(range(b))  # which sequence each row of the batch is
    while any(active):
        live = [i for i in range(b) if active[i]]
        # Finished sequences leave the batch; the rest keep their caches.
        if len(live) < 0.7 * len(rows):
            keep = [k for k, i in enumerate(rows) if active[i]]
            caches = [(k[keep], v[keep]) for k, v in caches]
            base, seed, rows = base[keep], seed[keep], [rows[k] for k in keep]
        n = len(rows)
        if mode == "ar":
            seed = model.step(caches, seed[:, None], base, causal=True)[:, 0].argmax(-1)
            base = base + 1
            for k, i in enumerate(rows):
                if active[i]:
                    passes[i] += 1
                    emit(i, [int(seed[k])])
        elif mode == "self_speculation":
            x = torch.full((n, block), mask_id)
            x[:, 0] = seed
            x[:, 1:] = model.step(caches, x, base, causal=False, adapter=adapter).argmax(-1)[:, 1:]
            choice = model.step(caches, x, base, causal=True).argmax(-1)
            same = (choice[:, :-1] == x[:, 1:]).long().cumprod(1).sum(1)  # accepted drafts
            seed = choice[torch.arange(n), same]
            base = base + same + 1
            for k, i in enumerate(rows):
                if active[i]:
                    passes[i] += 2
                    emit(i, x[k, 1:1 + int(same[k])].tolist() + [int(seed[k])])
        else:
            x = torch.full((n, block), mask_id)
            x[:, 0] = seed
            hidden = torch.ones(n, block, dtype=torch.bool)  # positions that are still masked
            hidden[:, 0] = False

            def filled(k):
                """No position masked, or an end of text with no mask before it."""
                first = hidden[k].long().argmax() if hidden[k].any() else block
                return not hidden[k].any() or bool((x[k, :int(first)] == eos).any())

            open_ = [k for k in range(n) if active[rows[k]]]
            while open_:
                confidence, token = model.step(caches, x, base, causal=False).softmax(-1).max(-1)
                confidence = confidence.masked_fill(~hidden, -1)
                commit = hidden & (confidence >= threshold)
                commit[torch.arange(n), confidence.argmax(1)] |= hidden.any(1)
                for k in open_:
                    x[k] = torch.where(commit[k], token[k], x[k])
                    hidden[k] &= ~commit[k]
                    passes[rows[k]] += 1
                open_ = [k for k in open_ if not filled(k)]
            seed = model.step(caches, x, base, causal=True)[:, -1].argmax(-1)
            base = base + block
            for k, i in enumerate(rows):
                if active[i]:
                    emit(i, x[k, 1:].tolist())
                    if active[i]:  # a finished sequence is not sealed
                        passes[i] += 1
                        emit(i, [int(seed[k])])
    return [(o[:-1] if o[-1] == eos else o, len(o), p) for o, p in zip(out, passes)]


def run_torch(model, tok, prompts, mode, block, threshold, adapter, batch=128):
    import torch
    out = [None] * len(prompts)
    ids = [tok.encode(data.render([("user", p), ("assistant", "")])[0]).ids for p in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    with torch.no_grad():
        for a in range(0, len(order), batch):
            part = order[a:a + batch]
            for i, (t, n, passes) in zip(part, decode(model, [ids[i] for i in part], mode, block, threshold, adapter)):
                out[i] = (tok.decode(t), n, passes)
    return out


def quick(model, tok, n=125):
    """A look at progress during training: exact match by task and the drafts' quality on part of the held-out set."""
    rows = load(HELD)[::3][:n]
    t = time.time()
    prompts = [r["prompt"] for r in rows]
    ar = run_torch(model, tok, prompts, "ar", None, 0.9, False)
    spec = run_torch(model, tok, prompts, "self_speculation", 16, 0.9, False)
    diff = run_torch(model, tok, prompts, "diffusion", 16, 0.9, False)
    by = {}
    for r, o in zip(rows, ar):
        by.setdefault(r["task"], []).append(o[0] == r["answer"])
    hit = lambda run: sum(o[0] == r["answer"] for r, o in zip(rows, run)) / len(rows)
    tpf = lambda run: sum(o[1] for o in run) / max(1, sum(o[2] for o in run))
    print(f"  held-out: ar {hit(ar):.3f} | spec16 same {sum(a[0] == s[0] for a, s in zip(ar, spec)) / len(ar):.3f} tpf {tpf(spec):.2f}"
          f" | diff16 {hit(diff):.3f} tpf {tpf(diff):.2f} | {time.time() - t:.0f} s")
    print("   ", " ".join(f"{k} {sum(v)}/{len(v)}" for k, v in by.items()), flush=True)


# ---- the table ---------------------------------------------------------------------------------------------------

HELD = data.HELDOUT_FILE


def load(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def table(rows, results):
    """Exact match in percent, then tokens per forward pass, by task; one column a run."""
    labels = list(results)
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    for title, cell in (
            ("exact match, %", lambda run, idx: 100 * sum(run[i][0] == rows[i]["answer"] for i in idx) / len(idx)),
            ("tokens per forward pass", lambda run, idx: sum(run[i][1] for i in idx) / max(1, sum(run[i][2] for i in idx)))):
        print(f"\n{title:<24}" + "".join(f"{x:>10}" for x in labels))
        for task in tasks + ["ALL"]:
            idx = [i for i, r in enumerate(rows) if task in (r["task"], "ALL")]
            print(f"{task:<24}" + "".join(f"{cell(results[x], idx):>10.2f}" for x in labels))
    if "AR" in results:
        print(f"\n{'same text as AR, %':<24}" + "".join(
            f"{100 * sum(a[0] == b[0] for a, b in zip(results['AR'], results[x])) / len(rows):>10.2f}" for x in labels))


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--backend", choices=("http", "torch"), default="http")
    ap.add_argument("--url", default="http://127.0.0.1:8000")
    ap.add_argument("--plain-url", help="a second server, started with --adapter none")
    ap.add_argument("--heldout", default=HELD)
    ap.add_argument("--threshold", type=float, default=0.9)
    ap.add_argument("--limit", type=int, default=0, help="only this many prompts")
    ap.add_argument("--workers", type=int, default=4)
    ap.add_argument("--save", help="also write every answer to this JSON file")
    args = ap.parse_args()
    rows = load(args.heldout)
    if args.limit:
        rows = rows[::max(1, len(rows) // args.limit)][:args.limit]
    prompts, results = [r["prompt"] for r in rows], {}
    if args.backend == "torch":
        import torch
        from tokenizers import Tokenizer
        from export import load_exported
        from tokenizer import MODEL_DIR
        torch.set_num_threads(2)
        model, adapter, scale = load_exported(MODEL_DIR)
        model.set_adapter(adapter, scale)
        tok = Tokenizer.from_file(os.path.join(MODEL_DIR, "tokenizer.json"))
    for label, mode, block, with_adapter in RUNS:
        t = time.time()
        if args.backend == "torch":
            results[label] = run_torch(model, tok, prompts, mode, block, args.threshold, with_adapter)
        elif with_adapter or args.plain_url:
            url = args.url if with_adapter else args.plain_url
            results[label] = run_http(url.rstrip("/"), prompts, mode, block, args.threshold, args.workers)
        print(f"{label}: {time.time() - t:.1f} s", file=sys.stderr)
    print(f"{len(rows)} held-out prompts, back-end {args.backend}, diffusion threshold {args.threshold}")
    table(rows, results)
    if args.save:
        with open(args.save, "w", encoding="utf-8") as f:
            json.dump({"rows": rows, "results": results}, f, ensure_ascii=False)


if __name__ == "__main__":
    main()
