#!/usr/bin/env python3
"""Step 6: writes the checkpoint as a Hugging Face folder (bf16 safetensors, configs, adapter in PEFT's layout).

    python3 scripts/train/export.py            # build/train/{checkpoint,adapter}.pt -> config/models/nano/
    python3 scripts/train/export.py --random   # random weights in the same layout, for tests of loaders

The safetensors files are written by hand: 8-byte header length, JSON header, data.
"""
import argparse
import json
import os
import struct

import numpy as np
import torch

from model import CONFIG, Model
from tokenizer import MODEL_DIR
from train import TRAIN_DIR

RANK = 32
LIMIT = 16 * 1024 * 1024


def write_safetensors(path, tensors, dtype):
    """tensors: {name: torch tensor}. The header is padded with spaces so that the data starts at a multiple of 64."""
    header, offset, parts = {"__metadata__": {"format": "pt"}}, 0, []
    for name in sorted(tensors):
        t = tensors[name].detach().float().contiguous()
        if dtype == "BF16":
            raw = t.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
        else:
            raw = t.numpy().astype("<f4").tobytes()
        header[name] = {"dtype": dtype, "shape": list(t.shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
        parts.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path + ".tmp", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.writelines(parts)
    os.replace(path + ".tmp", path)


def read_safetensors(path):
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header, data = json.loads(f.read(size)), f.read()
    out = {}
    for name, h in header.items():
        if name != "__metadata__":
            raw = data[slice(*h["data_offsets"])]
            flat = np.frombuffer(raw, "<i2" if h["dtype"] == "BF16" else "<f4").copy()
            t = torch.from_numpy(flat)
            out[name] = (t.view(torch.bfloat16).float() if h["dtype"] == "BF16" else t).reshape(h["shape"])
    return out


def adapter_name(layer, part):
    return f"base_model.model.encoder.layers.{layer}.self_attn.o_proj.lora_{part}.weight"


def new_adapter(c=CONFIG, rank=RANK, seed=0):
    """{layer: (A [r, in], B [out, r])}; B is zero, so an untrained adapter changes nothing."""
    g = torch.Generator().manual_seed(seed)
    width = c["num_attention_heads"] * c["head_dim"]
    return {i: (torch.randn(rank, width, generator=g) * width ** -0.5, torch.zeros(c["hidden_size"], rank))
            for i in range(c["num_hidden_layers"])}


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def export(model, adapter, out):
    os.makedirs(os.path.join(out, "linear_spec_lora"), exist_ok=True)
    write_json(os.path.join(out, "config.json"), model.c)
    write_json(os.path.join(out, "generation_config.json"), {"bos_token_id": 1, "eos_token_id": 11, "do_sample": False})
    write_safetensors(os.path.join(out, "model.safetensors"), model.state_dict(), "BF16")
    rank = adapter[0][0].shape[0]
    write_json(os.path.join(out, "linear_spec_lora", "adapter_config.json"), {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4 * rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["o_proj"], "inference_mode": True, "trimode_rows": "draft"})
    write_safetensors(os.path.join(out, "linear_spec_lora", "adapter_model.safetensors"),
                      {adapter_name(i, p): t for i, pair in adapter.items() for p, t in zip("AB", pair)}, "F32")


def load_exported(folder):
    """The model and adapter of an exported folder, as evaluate.py needs them: (Model, {layer: (A, B)}, scale)."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        model = Model(json.load(f))
    model.load_state_dict(read_safetensors(os.path.join(folder, "model.safetensors")))
    with open(os.path.join(folder, "linear_spec_lora", "adapter_config.json"), encoding="utf-8") as f:
        c = json.load(f)
    t = read_safetensors(os.path.join(folder, "linear_spec_lora", "adapter_model.safetensors"))
    adapter = {i: (t[adapter_name(i, "A")], t[adapter_name(i, "B")]) for i in range(model.c["num_hidden_layers"])}
    return model, adapter, c["lora_alpha"] / c["r"]


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--random", action="store_true")
    args = ap.parse_args()
    torch.manual_seed(0)
    model, adapter = Model(), new_adapter()
    if args.random:
        g = torch.Generator().manual_seed(1)
        adapter = {i: (a, 0.01 * torch.randn(b.shape, generator=g)) for i, (a, b) in adapter.items()}
    else:
        model.load_state_dict(torch.load(os.path.join(TRAIN_DIR, "checkpoint.pt"), weights_only=False)["model"])
        path = os.path.join(TRAIN_DIR, "adapter.pt")
        if os.path.exists(path):
            adapter = torch.load(path, weights_only=False)["adapter"]
    export(model, adapter, MODEL_DIR)
    size = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(MODEL_DIR) for f in files)
    assert size <= LIMIT, size
    print(f"{os.path.relpath(MODEL_DIR)}: {size / 1024 / 1024:.2f} MiB")


if __name__ == "__main__":
    main()
