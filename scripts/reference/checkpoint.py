"""Writes random checkpoints in the published layout (MODEL.md 1): tiny ones for tests, large ones for benches.

    python3 scripts/reference/checkpoint.py DIR --hidden 1024 --layers 16 --ff 4096 --heads 16 --kv-heads 4 --head-dim 64
    python3 scripts/reference/checkpoint.py DIR --preset 300m

Every tensor is drawn on its own from (seed, name), so that a tensor does not depend on the others, and is written as
it is drawn: memory stays at one piece of one tensor. The default scales give logits with a spread of about 2, so that random
models have opinions: choices with clear margins and confidences between 0 and 1.
"""
import argparse
import json
import os
import struct
import zlib

import numpy as np

from model import f32_to_bf16

N_SPECIAL, BOS, EOS, MASK = 128, 1, 11, 100
NAMED = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>", 12: "<think>", 13: "</think>", 100: "<|mask|>"}
PATTERN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
           r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
           r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = r"""{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt is defined and add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""
PIECE = 1 << 22  # elements drawn at once

PRESETS = {
    "tiny": dict(hidden=32, layers=2, ff=48, heads=4, kv_heads=2, head_dim=16),
    "300m": dict(hidden=1024, layers=20, ff=3072, heads=16, kv_heads=4, head_dim=64, vocab=32768, max_positions=8192, adapter_rank=64),
    "1b": dict(hidden=2048, layers=18, ff=6144, heads=16, kv_heads=4, head_dim=128, vocab=65536, max_positions=16384, adapter_rank=128),
}


def tensor_shapes(s):
    """(published name, shape, kind) of every tensor, in file order."""
    q, kv, h = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"], s["hidden"]
    root, head = ("model", "lm_head") if s["port_names"] else ("encoder", "diffusion_head")
    yield f"{root}.embed_tokens.weight", (s["vocab"], h), "embed"
    for i in range(s["layers"]):
        at = f"{root}.layers.{i}."
        yield at + "input_layernorm.weight", (h,), "norm"
        yield at + "self_attn.q_proj.weight", (q, h), "attention"
        yield at + "self_attn.k_proj.weight", (kv, h), "attention"
        yield at + "self_attn.v_proj.weight", (kv, h), "linear"
        yield at + "self_attn.o_proj.weight", (h, q), "linear"
        yield at + "post_attention_layernorm.weight", (h,), "norm"
        yield at + "mlp.gate_proj.weight", (s["ff"], h), "linear"
        yield at + "mlp.up_proj.weight", (s["ff"], h), "linear"
        yield at + "mlp.down_proj.weight", (h, s["ff"]), "linear"
    yield f"{root}.norm.weight", (h,), "norm"
    if not s["tied"]:
        yield f"{head}.weight", (s["vocab"], h), "head"


def adapter_shapes(s):
    for i in range(s["layers"]):
        at = f"base_model.model.encoder.layers.{i}.self_attn.o_proj."
        yield at + "lora_A.weight", (s["adapter_rank"], s["heads"] * s["head_dim"]), "linear"
        yield at + "lora_B.weight", (s["hidden"], s["adapter_rank"]), "lora_b"


def scale_of(kind, shape, s):
    fan_in = shape[-1] ** -0.5
    return {"embed": 1.0 if not s["tied"] else s["logit_spread"] * s["hidden"] ** -0.5, "attention": 1.5 * fan_in, "linear": fan_in,
            "head": s["logit_spread"] * fan_in, "lora_b": 0.3 * fan_in}[kind]


def pieces(name, shape, kind, s):
    """The tensor's values as float32 pieces, the same whatever else is written."""
    rng = np.random.Generator(np.random.PCG64([s["seed"], zlib.crc32(name.encode())]))
    left = int(np.prod(shape))
    while left:
        n = min(left, PIECE)
        x = rng.standard_normal(n, dtype=np.float32)
        yield 1 + np.float32(0.1) * x if kind == "norm" else np.float32(scale_of(kind, shape, s)) * x
        left -= n


def write_safetensors(path, tensors, dtype, pieces_of):
    """tensors: (name, shape, kind). Header padded with spaces so that the data starts at a multiple of 8."""
    size, header, offset = {"F32": 4, "BF16": 2}[dtype], {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors:
        n = int(np.prod(shape)) * size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + n]}
        offset += n
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape, kind in tensors:
            for x in pieces_of(name, shape, kind):
                f.write((f32_to_bf16(x) if dtype == "BF16" else x.astype("<f4")).tobytes())


def write_json(path, value, indent=1):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=indent, separators=(",", ": ") if indent else (",", ":"))
        f.write("\n")


def byte_alphabet():
    """GPT-2's printable character for each byte: printing bytes stand for themselves, the others follow 255."""
    keep = set(range(33, 127)) | set(range(161, 173)) | set(range(174, 256))
    extra = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(extra)) for b in range(256)]


def write_tokenizer(folder, vocab_size, max_positions):
    """Specials 0 .. 127, bytes 128 .. 383, no merges; ids above 383 are filler entries that text never gives."""
    specials = [{"id": i, "content": NAMED.get(i, f"<SPECIAL_{i}>"), "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True} for i in range(N_SPECIAL)]
    vocab = {s["content"]: s["id"] for s in specials}
    vocab.update({ch: N_SPECIAL + b for b, ch in enumerate(byte_alphabet())})
    for i in range(N_SPECIAL + 256, vocab_size):
        vocab[f"filler{i}"] = i
    write_json(os.path.join(folder, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": specials, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": []}}, indent=None)
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>", "mask_token": "<|mask|>",
        "unk_token": "<unk>", "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions})
    with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(TEMPLATE)


def write_checkpoint(folder, hidden=32, layers=2, ff=48, heads=4, kv_heads=2, head_dim=16, vocab=384, max_positions=128,
                     tied=False, dtype="BF16", seed=1, port_names=False, rope_theta=10000.0, yarn=None, query_beta=None,
                     adapter_rank=0, adapter_alpha=None, trimode_rows=None, logit_spread=2.0, block_size=32):
    """yarn: None, or the keys of rope_parameters (factor, original_max_position_embeddings, ...). adapter_rank 0: no adapter.
    trimode_rows: None (key absent), "draft" or "block". Returns the number of parameters without the adapter."""
    s = dict(locals())
    assert vocab >= N_SPECIAL + 256 and heads % kv_heads == 0 and head_dim % 2 == 0
    os.makedirs(folder, exist_ok=True)
    rope = {"rope_type": "default", "rope_theta": rope_theta}
    if yarn:
        rope = {"rope_type": "yarn", "type": "yarn", "rope_theta": rope_theta, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
                "mscale_all_dim": 1.0, **yarn}
    if query_beta:
        rope["llama_4_scaling_beta"] = query_beta
    write_json(os.path.join(folder, "config.json"), {
        "architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion", "hidden_size": hidden,
        "num_hidden_layers": layers, "intermediate_size": ff, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "vocab_size": vocab, "max_position_embeddings": max_positions, "rms_norm_eps": 1e-05,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02,
        "tie_word_embeddings": tied, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": None, "mask_token_id": MASK,
        "block_size": block_size, "sliding_window": None, "use_cache": False, "rope_parameters": rope,
        "torch_dtype": "bfloat16" if dtype == "BF16" else "float32"})
    write_json(os.path.join(folder, "generation_config.json"), {"bos_token_id": BOS, "eos_token_id": EOS})
    write_tokenizer(folder, vocab, max_positions)
    tensors = list(tensor_shapes(s))
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors, dtype, lambda *t: pieces(*t, s))
    if adapter_rank:
        lora = os.path.join(folder, "linear_spec_lora")
        os.makedirs(lora, exist_ok=True)
        config = {"peft_type": "LORA", "r": adapter_rank, "lora_alpha": adapter_alpha or 4 * adapter_rank, "lora_dropout": 0.0,
                  "bias": "none", "target_modules": ["o_proj"], "task_type": "CAUSAL_LM", "use_rslora": False, "use_dora": False}
        if trimode_rows:
            config["trimode_rows"] = trimode_rows
        write_json(os.path.join(lora, "adapter_config.json"), config)
        write_safetensors(os.path.join(lora, "adapter_model.safetensors"), list(adapter_shapes(s)), "F32", lambda *t: pieces(*t, s))
    return sum(int(np.prod(shape)) for _, shape, _ in tensors)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("--preset", choices=PRESETS, help="shapes to start from; the other options override them")
    for name in ("hidden", "layers", "ff", "heads", "kv-heads", "head-dim", "vocab", "max-positions", "seed", "adapter-rank",
                 "adapter-alpha", "block-size"):
        p.add_argument("--" + name, type=int)
    p.add_argument("--rope-theta", type=float)
    p.add_argument("--logit-spread", type=float)
    p.add_argument("--query-beta", type=float, help="llama_4_scaling_beta")
    p.add_argument("--yarn-factor", type=float)
    p.add_argument("--yarn-original", type=int, default=16384, help="original_max_position_embeddings")
    p.add_argument("--trimode-rows", choices=["draft", "block"])
    p.add_argument("--dtype", choices=["BF16", "F32"])
    p.add_argument("--tied", action="store_true", default=None)
    p.add_argument("--port-names", action="store_true", default=None, help="model. and lm_head instead of encoder. and diffusion_head")
    options = {k: v for k, v in vars(p.parse_args()).items() if v is not None}
    folder, preset = options.pop("folder"), options.pop("preset", None)
    factor, original = options.pop("yarn_factor", None), options.pop("yarn_original")
    if factor:
        options["yarn"] = {"factor": factor, "original_max_position_embeddings": original}
    n = write_checkpoint(folder, **{**(PRESETS[preset] if preset else {}), **options})
    print(f"{folder}: {n / 1e6:.2f} M parameters, {os.path.getsize(os.path.join(folder, 'model.safetensors')) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
