#!/usr/bin/env python3
"""Step 2: the tokenizer. Trains a Tekken-style byte-level BPE on our data and writes the tokenizer's files.

Ids: 0..127 special tokens, 128..383 the bytes 0..255, then the merges in order of rank. The pre-tokenizer is the
one of the large models (regex Split, then ByteLevel), so the same server code runs on nano.

    python3 scripts/train/tokenizer.py     # -> config/models/nano/{tokenizer.json, tokenizer_config.json, chat_template.jinja}
"""
import json
import os
import random

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import data

MODEL_DIR = os.path.join(data.HERE, "..", "..", "config", "models", "nano")
VOCAB_SIZE = 1024
N_SPECIAL = 128
BOS, EOS, MASK = 1, 11, 100
NAMED = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>", 12: "<think>", 13: "</think>", 100: "<|mask|>"}
PATTERN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
           r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
           r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TEMPLATE = r"""{%- if messages[0].role == 'system' -%}
{{- '<|im_start|>system\n' + (messages[0].content | trim) + '<|im_end|>\n' -}}
{%- else -%}
{{- '<|im_start|>system\n<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- if not loop.first -%}
{{- '<|im_start|>system\n' + message.content + '<|im_end|>\n' -}}
{%- endif -%}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\n<think></think>' + message.content + '<|im_end|>\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt is defined and add_generation_prompt -%}
{{- '<|im_start|>assistant\n<think></think>' -}}
{%- endif -%}
"""


def byte_alphabet():
    """GPT-2's printable character for each byte: bytes that print stand for themselves, the others follow 255."""
    keep = set(range(33, 127)) | set(range(161, 173)) | set(range(174, 256))
    extra = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(extra)) for b in range(256)]


def corpus(n):
    r = random.Random("tokenizer")
    for _ in range(n):
        for _, text in data.training_example(r)[1]:
            yield text
    # Common English endings and words of ordinary chat, so that text from outside the tasks is not all single bytes.
    for role in ("system", "user", "assistant"):
        for _ in range(n // 10):
            yield role + "\n"


def layout(tokenizer_json):
    """Moves the trained vocabulary to the fixed ids."""
    alphabet = byte_alphabet()
    merges = [m if isinstance(m, list) else m.split(" ") for m in tokenizer_json["model"]["merges"]]
    merges = merges[:VOCAB_SIZE - N_SPECIAL - 256]
    vocab = {c: N_SPECIAL + b for b, c in enumerate(alphabet)}
    for a, b in merges:
        assert a + b not in vocab, "two merges with one result"
        vocab[a + b] = len(vocab) + N_SPECIAL
    specials = [{"id": i, "content": NAMED.get(i, f"<SPECIAL_{i}>"), "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True} for i in range(N_SPECIAL)]
    full = {s["content"]: s["id"] for s in specials} | vocab  # as the large models: specials are in the vocabulary too
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": specials, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": full, "merges": [f"{a} {b}" for a, b in merges]},
    }


def main():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - N_SPECIAL, initial_alphabet=byte_alphabet(), special_tokens=[],
                                  show_progress=False, max_token_length=16)
    tok.train_from_iterator(corpus(40000), trainer)
    os.makedirs(MODEL_DIR, exist_ok=True)
    result = layout(json.loads(tok.to_str()))
    assert len(result["model"]["vocab"]) == VOCAB_SIZE, len(result["model"]["vocab"])
    with open(os.path.join(MODEL_DIR, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, ensure_ascii=False, indent=1)
        f.write("\n")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>", "mask_token": "<|mask|>",
              "unk_token": "<unk>", "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False,
              "model_max_length": 2048}
    with open(os.path.join(MODEL_DIR, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    with open(os.path.join(MODEL_DIR, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(TEMPLATE)
    print(f"{len(result['model']['vocab'])} ids, {len(result['model']['merges'])} merges")


if __name__ == "__main__":
    main()
