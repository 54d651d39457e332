"""Writes tests/vectors/: tiny checkpoints, golden logits, golden decodings, noise constants (format: tests/vectors/README.md).

    python3 scripts/reference/make_vectors.py              everything; config/models/nano too when it has weights
    python3 scripts/reference/make_vectors.py nano         only the named models (and noise.json)
    python3 scripts/reference/make_vectors.py --check      no writing: do the vectors belong to the weights that are there?

A golden decoding is only kept when float32 rounding cannot change it: every decision in it has a margin of at least
MIN_MARGIN, and the whole model in float64 gives the same result. A case that fails gets another prompt, up to TRIES times.
"""
import hashlib
import json
import os
import sys
import zlib

import numpy as np

import decode
from checkpoint import write_checkpoint
from choose import Params, choose, gumbel, gumbel_row, philox
from model import Model, load_config
from tiny_models import TINY_MODELS

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
VECTORS = os.path.join(ROOT, "tests", "vectors")
NANO = os.path.join(ROOT, "config", "models", "nano")
MIN_MARGIN, TRIES = 2e-4, 200
LOGIT_ROWS = 8  # rows of the causal pass whose logits are kept

# ---- cases ----------------------------------------------------------------------------------------------------------
# Sampling parameters by name. The biased ones make random models repeat a few tokens, so that drafts agree, confidences are
# high and end-of-text (11) comes up.

FEW = {140: 9.0, 150: 8.5, 160: 8.0, 170: 7.0}
PARAMS = {
    "greedy": {},
    "t0.7": dict(temperature=0.7, seed=7),
    "t1.3": dict(temperature=1.3, seed=1234567890123),
    "t1.3_k40": dict(temperature=1.3, top_k=40, seed=3),
    "t0.7_p0.8": dict(temperature=0.7, top_p=0.8, seed=4),
    "t1_k30_p0.9_m0.05": dict(temperature=1.0, top_k=30, top_p=0.9, min_p=0.05, seed=5),
    "penalties": dict(repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.25),
    "t0.7_penalties": dict(temperature=0.7, repetition_penalty=1.15, frequency_penalty=0.3, presence_penalty=-0.2, seed=6),
    "few": dict(bias=FEW),
    "few_t1.3": dict(bias=FEW, temperature=1.3, seed=8),
    "few_penalties": dict(bias=FEW, frequency_penalty=0.7, presence_penalty=0.1),
    "few_forbid": dict(bias={**FEW, 140: -100.0}),
    "one": dict(bias={140: 13.0, 150: 10.5}),
    "one_t1.3": dict(bias={140: 13.0, 150: 11.0}, temperature=1.3, seed=10),
    "one_penalties": dict(bias={140: 13.0, 150: 11.0, 160: 9.0}, frequency_penalty=0.4),
    "one_end": dict(bias={140: 13.0, 11: 10.5}, temperature=1.0, seed=11),
    "end": dict(bias={**FEW, 11: 6.5}, temperature=0.9, seed=9),
}

AR_CASES = [(p, 24) for p in PARAMS if p != "one"] + [("greedy", 1), ("t1.3", 2)]

SELF_CASES = [  # (params, max_tokens, block)
    ("greedy", 20, 4), ("greedy", 20, 32), ("t0.7", 20, 8), ("t1.3", 24, 8), ("t1.3_k40", 20, 16), ("t0.7_p0.8", 20, 8),
    ("t1_k30_p0.9_m0.05", 20, 4), ("penalties", 20, 8), ("t0.7_penalties", 20, 8), ("few", 24, 4), ("few", 24, 8), ("few", 33, 32),
    ("few_t1.3", 24, 8), ("few_t1.3", 30, 16), ("few_penalties", 24, 8), ("few_forbid", 24, 8), ("end", 40, 16), ("end", 40, 8),
    ("greedy", 1, 8), ("few", 2, 8), ("few", 10, 64), ("one", 24, 8), ("one", 27, 16), ("one_t1.3", 27, 8), ("one_penalties", 27, 8),
    ("one_end", 48, 16)]

DIFFUSION_CASES = [  # (params, max_tokens, block, how)
    ("greedy", 12, 4, dict(threshold=0.9)), ("greedy", 16, 8, dict(threshold=0.3)), ("few", 24, 4, dict(threshold=0.9)),
    ("few", 24, 8, dict(threshold=0.9)), ("few", 24, 8, dict(threshold=0.5)), ("few", 20, 16, dict(threshold=0.5)),
    ("few", 33, 32, dict(threshold=0.6)), ("few", 20, 8, dict(steps=4)), ("greedy", 17, 8, dict(steps=3)), ("few", 32, 32, dict(steps=8)),
    ("greedy", 9, 4, dict(policy="leftmost", threshold=0.9)), ("few", 12, 8, dict(policy="leftmost", threshold=0.9)),
    ("t0.7", 16, 8, dict(threshold=0.2)), ("few_t1.3", 24, 8, dict(threshold=0.5)), ("few_t1.3", 24, 16, dict(steps=5)),
    ("few_penalties", 20, 8, dict(threshold=0.5)), ("t0.7_penalties", 16, 8, dict(steps=4)), ("t1_k30_p0.9_m0.05", 12, 4, dict(steps=2)),
    ("end", 40, 16, dict(threshold=0.3)), ("end", 40, 8, dict(steps=3)), ("few", 1, 8, dict(threshold=0.9)),
    ("one", 24, 8, dict(threshold=0.9)), ("one_penalties", 20, 16, dict(threshold=0.6)), ("one_end", 48, 8, dict(threshold=0.7)),
    ("few", 9, 8, dict(threshold=0.9)), ("few", 10, 8, dict(threshold=0.9))]


def cases(short_context):
    for params, n in AR_CASES:
        yield dict(mode="ar", params=params, max_tokens=n)
    for params, n, block in SELF_CASES:
        yield dict(mode="self_speculation", params=params, max_tokens=n, block_length=block)
    for params, n, block, how in DIFFUSION_CASES:
        yield dict(mode="diffusion", params=params, max_tokens=n, block_length=block, **how)
    if short_context:  # the context's end comes before max_tokens
        yield dict(mode="ar", params="few_t1.3", max_tokens=100)
        yield dict(mode="self_speculation", params="few_t1.3", max_tokens=100, block_length=16)
        yield dict(mode="diffusion", params="few_t1.3", max_tokens=100, block_length=16, threshold=0.5)


def run_case(model, case, prompt, params):
    if case["mode"] == "ar":
        return decode.ar(model, prompt, case["max_tokens"], params)
    if case["mode"] == "self_speculation":
        return decode.self_speculation(model, prompt, case["max_tokens"], params, case["block_length"])
    return decode.diffusion(model, prompt, case["max_tokens"], params, case["block_length"], case.get("threshold", 0.9),
                            case.get("steps", 0), case.get("policy"))


def outcome(r):
    return (r.tokens, r.finish, r.passes, r.drafted, r.accepted, r.cycles, r.commits)


def golden(models, case, prompts, rng):
    """The case with a prompt on which rounding decides nothing; None when none was found."""
    model, model64 = models
    params = Params(**PARAMS[case["params"]])
    best = 0
    for attempt in range(TRIES):
        prompt = prompts(rng)
        r = run_case(model, case, prompt, params)
        best = max(best, r.margin)
        if r.margin < MIN_MARGIN or outcome(run_case(model64, case, prompt, params)) != outcome(r):
            continue
        if case["mode"] == "self_speculation":
            assert r.tokens == decode.ar(model, prompt, case["max_tokens"], params).tokens, "self-speculation is not AR"
        name = "-".join(str(v) for k, v in case.items() if k != "threshold" or "policy" not in case)
        expect = dict(tokens=r.tokens, finish=r.finish, forward_passes=r.passes)
        if case["mode"] == "self_speculation":
            expect.update(drafted=r.drafted, accepted=r.accepted, blocks=r.blocks, cycles=r.cycles)
        if case["mode"] == "diffusion":
            expect.update(denoise_passes=r.denoise_passes, blocks=r.blocks, commits=r.commits,
                          confidences=[[round(v, 6) for v in row] for row in r.confidences])
        return dict(name=name, prompt=prompt, **case, expect=expect, margin=round(r.margin, 6), tries=attempt + 1)
    print(f"  no safe prompt in {TRIES} tries (best margin {best:.1e}): {case}")
    return None


# ---- logits and single choices --------------------------------------------------------------------------------------


class Bin:
    """Rows of float32, one after the other; what is put there is named by its first row."""

    def __init__(self):
        self.rows = []

    def put(self, logits):
        first = len(self.rows)
        self.rows.extend(np.asarray(logits, dtype="<f4"))
        return dict(first_row=first, n_rows=len(logits))


def logits_section(model, model64, rng, out):
    c = model.config
    n = min(40, c.max_positions - 8)
    tokens = rng.integers(128, c.vocab, n).tolist()
    tokens[5] = c.mask_id  # a literal mask id in a prompt is ordinary text
    whole = model.forward(tokens, model.new_cache())
    error = np.abs(whole - model64.forward(tokens, model64.new_cache())).max()
    rows = sorted({0, 1, 5, n - 1} | set(np.linspace(2, n - 2, LOGIT_ROWS - 4).astype(int).tolist()))
    pieces, left = [], n
    for size in (1, 7, 2, 13, 1, 5):
        pieces.append(min(size, left))
        left -= pieces[-1]
    pieces = [p for p in pieces + [left] if p]
    prefix = n - 9
    cache = model.new_cache()
    model.forward(tokens[:prefix], cache)
    block = [tokens[prefix], c.mask_id, c.mask_id, tokens[prefix + 3], c.mask_id]
    off = model.forward(block, cache, "block", keep=False)
    section = dict(tokens=tokens, float32_error=float(f"{error:.2g}"),
                   causal=dict(positions=rows, **out.put(whole[rows])), pieces=pieces,
                   block=dict(prefix_length=prefix, tokens=block, adapter_off=out.put(off)))
    if model.has_adapter:
        on = model.forward(block, cache, "block", keep=False, adapter=True)
        assert np.abs(on - off).max() > 0.05
        section["block"]["adapter_on"] = out.put(on)
    return section


def choices_section(model, rng, out):
    """choose() on the stored rows of logits themselves, where no forward pass can be to blame."""
    c, found = model.config, []
    for i, (name, values) in enumerate(PARAMS.items()):
        for attempt in range(TRIES):
            row, position = int(rng.integers(len(out.rows))), int(rng.integers(1, 1 << 20))
            prompt = rng.integers(128, c.vocab, 12).tolist()
            output = rng.integers(128, c.vocab, 6).tolist() * 2
            top = np.argsort(-out.rows[row])[:4].tolist()  # so that penalties touch tokens that matter
            output[:2], prompt[:2] = [top[0], top[1]], [top[1], top[2]]
            ch = choose(out.rows[row], position, Params(**values), prompt, output, c.mask_id)
            if ch.margin >= MIN_MARGIN:
                break
        found.append(dict(row=row, position=position, params=name, prompt=prompt, output=output, token=ch.token,
                          confidence=float(f"{ch.confidence:.7g}"), logprob=float(f"{ch.logprob:.7g}")))
    return found


# ---- files ----------------------------------------------------------------------------------------------------------


def file_identity(path):
    with open(path, "rb") as f:
        data = f.read()
    return dict(bytes=len(data), crc32=zlib.crc32(data), sha256=hashlib.sha256(data).hexdigest())


def dump(path, value, depth=2):
    """JSON with one line per entry down to `depth`, the rest inline: small and still readable in a diff."""
    def text(v, level):
        if level == 0 or not v or not isinstance(v, (dict, list)):
            return json.dumps(v, ensure_ascii=False, separators=(",", ":"))
        pad = "\n" + " " * (depth - level + 1)
        if isinstance(v, dict):
            return "{" + ",".join(f"{pad}{json.dumps(k)}: {text(x, level - 1)}" for k, x in v.items()) + pad[:-1] + "}"
        return "[" + ",".join(pad + text(x, level - 1) for x in v) + pad[:-1] + "]"

    with open(path, "w", encoding="utf-8") as f:
        f.write(text(value, depth) + "\n")


def random_prompts(config):
    return lambda rng: rng.integers(128, config.vocab, int(rng.integers(4, 21))).tolist()


def nano_prompts(folder):
    """Chat-like prompts in the bundled model's own tokens (greedy longest match: near enough to its BPE)."""
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
        vocab = json.load(f)["model"]["vocab"]
    from checkpoint import byte_alphabet
    alphabet = byte_alphabet()
    questions = ["What is trimode?", "Count from 3 to 9.", "What is 12 + 30?", "Which modes does trimode have?", "Hello!",
                 "Sort these words: pear, apple, fig.", "What port does trimode use?", "Explain diffusion mode.", "Repeat: a b c d",
                 "What is self-speculation?", "How do I run the tests?", "Reverse the word stone.", "Who are you?", "Thanks!",
                 "What is block_length?", "When is AR best?", "Write the alphabet.", "What is 7 * 8?"]

    def encode(text):
        s, ids = "".join(alphabet[b] for b in text.encode()), []
        while s:
            n = next(n for n in range(min(len(s), 16), 0, -1) if s[:n] in vocab)
            ids.append(vocab[s[:n]])
            s = s[n:]
        return ids

    def prompt(rng):
        question = questions[int(rng.integers(len(questions)))]
        return ([10] + encode("system\n") + [11] + encode("\n") + [10] + encode("user\n" + question) + [11] + encode("\n")
                + [10] + encode("assistant\n") + [12, 13])
    return prompt


def make(name, folder, prompts):
    print(name)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    model, model64, out = Model(folder), Model(folder, np.float64), Bin()
    c = model.config
    dtypes = {"bfloat16": "bf16", "float32": "f32"}
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        dtype = json.load(f).get("torch_dtype", "bfloat16")
    logits = logits_section(model, model64, rng, out)
    choices = choices_section(model, rng, out)
    found = [golden((model, model64), case, prompts, rng) for case in cases(c.max_positions <= 64)]
    found = [f for f in found if f]
    lora = os.path.join(folder, "linear_spec_lora", "adapter_model.safetensors")
    dump(os.path.join(VECTORS, name + ".json"), {
        "format": 1,
        "model": os.path.relpath(folder, VECTORS).replace(os.sep, "/"),
        "weights_file": file_identity(os.path.join(folder, "model.safetensors")),
        "adapter_file": file_identity(lora) if model.has_adapter else None,
        "weights_type": dtypes[dtype], "vocab": c.vocab, "mask_id": c.mask_id, "eos_ids": c.eos,
        "adapter_rows": model.adapter_rows, "min_margin": MIN_MARGIN,
        "logits_file": name + ".bin", "logits_rows": len(out.rows),
        "params": {p: PARAMS[p] | ({"bias": [[t, b] for t, b in PARAMS[p]["bias"].items()]} if "bias" in PARAMS[p] else {})
                   for p in PARAMS},
        "logits": logits, "choices": choices, "cases": found})
    with open(os.path.join(VECTORS, name + ".bin"), "wb") as f:
        f.write(np.stack(out.rows).tobytes())
    tries = [f["tries"] for f in found]
    spec = [f["expect"] for f in found if f["mode"] == "self_speculation"]
    print(f"  {len(found)} cases, tries {sum(tries)} (most {max(tries)}), smallest margin {min(f['margin'] for f in found):.1e}, float32 error "
          f"{logits['float32_error']:.1e}, drafts accepted {sum(s['accepted'] for s in spec)} of {sum(s['drafted'] for s in spec)}, "
          f"ended by stop {sum(f['expect']['finish'] == 'stop' for f in found)}")


def make_noise():
    seeds = [0, 1, 42, 1234567890123, 0xFFFFFFFFFFFFFFFF]
    places = [(0, 0), (1, 3), (17, 131071), (4096, 1000), (0x123456789AB, 77)]
    words = [0, 1, 2, 127, 4096, 65535, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xDEADBEEF, 0xFFFFFF00, 0xFFFFFFFE, 0xFFFFFFFF]
    philox_rows, gumbel_rows = [], []
    for seed in seeds:
        for position, token in places:
            w = [int(x) for x in philox(seed, position, token // 4)]
            g = gumbel(np.uint32(w[token % 4]))
            philox_rows.append([str(seed), str(position), token // 4, w])
            gumbel_rows.append([str(seed), str(position), token, w[token % 4], int(g.view(np.uint32)), float(f"{float(g):.9g}")])
    words_rows = [[w, int(gumbel(np.uint32(w)).view(np.uint32)), float(f"{float(gumbel(np.uint32(w))):.9g}")] for w in words]
    whole = zlib.crc32(gumbel_row(42, 1000, 131072).astype("<f4").tobytes())
    dump(os.path.join(VECTORS, "noise.json"), {
        "format": 1,
        "about": "noise of kernels/noise.h; seed and position are decimal strings because they may need 64 bits",
        "philox_columns": ["seed", "position", "quad", "words"], "philox": philox_rows,
        "gumbel_columns": ["seed", "position", "token", "word", "bits", "value"], "gumbel": gumbel_rows,
        "gumbel_of_word_columns": ["word", "bits", "value"], "gumbel_of_word": words_rows,
        "row": {"seed": "42", "position": "1000", "n_vocab": 131072, "crc32_of_f32_le": whole}})


def check():
    bad = 0
    for name in sorted(os.listdir(VECTORS)):
        if not name.endswith(".json") or name == "noise.json":
            continue
        with open(os.path.join(VECTORS, name), encoding="utf-8") as f:
            v = json.load(f)
        folder = os.path.join(VECTORS, v["model"])
        for key, file in (("weights_file", "model.safetensors"), ("adapter_file", "linear_spec_lora/adapter_model.safetensors")):
            path = os.path.join(folder, file)
            there = file_identity(path) if os.path.exists(path) else None
            if there != v[key]:
                bad += 1
                print(f"{name} was made for another {v['model']}/{file}; run python3 scripts/reference/make_vectors.py {name[:-5]}")
    print("vectors belong to their weights" if not bad else f"{bad} mismatches")
    return 1 if bad else 0


def main():
    if "--check" in sys.argv:
        sys.exit(check())
    names = sys.argv[1:] or [*TINY_MODELS, "nano"]
    make_noise()
    for name in names:
        if name == "nano":
            if not os.path.exists(os.path.join(NANO, "model.safetensors")):
                print("nano: config/models/nano/model.safetensors is not there yet; skipped")
                continue
            make("nano", NANO, nano_prompts(NANO))
        else:
            folder = os.path.join(VECTORS, "models", name)
            write_checkpoint(folder, **TINY_MODELS[name])
            make(name, folder, random_prompts(load_config(folder)))


if __name__ == "__main__":
    main()
