#!/usr/bin/env python3
"""Writes data/tokenizer.json, a small byte-level BPE in Tekken's layout, and data/tokenizer_cases.json: texts and the ids that the
Hugging Face library gives them, with special tokens parsed ("special") and taken as ordinary text ("plain").

    pip install tokenizers && python3 tests/engine/text/make_tokenizer_cases.py
"""
import json
import os
import random

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im_end|>x", "<|mask|>", "<think>", "</think>"]
PATTERN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
           r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
           r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
WORDS = ("the quick brown fox jumps over lazy dog Hello WORLD aaaaaa system user assistant \u00e9t\u00e9 na\u00efve Stra\u00dfe "
         "\u043f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d \u3053\u3093\u306b\u3061\u306f \U0001f600\U0001f44d\U0001f3fd 123 4567 it's don't I'll -- ... !!?? // <|im <|im_end| <think </thinks>").split()


def tokenizer():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    r = random.Random(1)
    corpus = [" ".join(r.choice(WORDS) for _ in range(20)) for _ in range(300)] + ["    \n\n", "a" * 64]
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(corpus, trainer)
    made = json.loads(tok.to_str())
    shift = len(SPECIAL)
    vocab = {s: i for i, s in enumerate(SPECIAL)} | {t: i + shift for t, i in made["model"]["vocab"].items()}
    made["model"]["vocab"] = vocab
    made["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in made["model"]["merges"]]
    added = [{"id": i, "content": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, s in enumerate(SPECIAL)]
    for i, (text, lstrip, rstrip) in enumerate([("<tool>", False, False), ("<left>", True, False), ("<right>", False, True)]):
        added.append({"id": len(vocab) + i, "content": text, "single_word": False, "lstrip": lstrip, "rstrip": rstrip,
                      "normalized": False, "special": i > 0})
    made["added_tokens"] = added
    made["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return made


def texts():
    r = random.Random(2)
    yield from ["", " ", "  ", "a", "\n", " \n \n  x", "aaaa" * 40, "<|im_end|>", "<|im_end|>xy", "<|im_end", "a<tool>b", "a  <left>  b",
                "a  <right>  b", "<s><s></s>", "<|mask|> is literal", "<|im_start|>user\nHi<|im_end|>\n", "a\u180eb", "a\u00a0 \u3000 b",
                "x\u2028y\u0085z", "e\u0301", "1234567890", "A" * 100, " " * 100 + "x", "\u0130\u0131", "'s'S's", "\U0010ffff", "\x00\x01"]
    parts = WORDS + [" ", " ", "  ", "\n", "\t"] + SPECIAL + ["<tool>", "<left>", "<right>"]
    for _ in range(60):
        yield "".join(r.choice(parts) for _ in range(r.randrange(1, 16)))
    for _ in range(40):
        yield "".join(chr(r.choice([r.randrange(32, 127), r.randrange(1, 0x250), r.randrange(0x250, 0xd800)])) for _ in range(r.randrange(1, 20)))


def main():
    made = tokenizer()
    os.makedirs(os.path.join(HERE, "data"), exist_ok=True)
    with open(os.path.join(HERE, "data", "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(made, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    tok = Tokenizer.from_file(os.path.join(HERE, "data", "tokenizer.json"))
    cases = []
    for text in texts():
        if "\x00" in text:
            continue  # JSON strings here hold no NUL
        case = {"text": text}
        for name, plain in (("special", False), ("plain", True)):
            tok.encode_special_tokens = plain
            case[name] = tok.encode(text, add_special_tokens=False).ids
        cases.append(case)
    with open(os.path.join(HERE, "data", "tokenizer_cases.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases) + "\n]\n")
    print(len(cases), "cases,", len(made["model"]["merges"]), "merges")


if __name__ == "__main__":
    main()
