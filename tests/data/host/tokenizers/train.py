"""Small byte-level byte-pair tokenizers in the layout that Llama 3 and Qwen2 checkpoints have, trained on this repository's README.

    python3 tests/data/host/tokenizers/train.py      # rewrites llama3/tokenizer.json and qwen2/tokenizer.json; no packages

texts.json holds texts and, per tokenizer, the ids that Hugging Face's tokenizers library (Tokenizers.DotNet 1.4.1, by its authors' own code in Rust) gives for them.
"""
import collections, json, os, re

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_characters():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def train(text, merges):
    spell = byte_characters()
    pieces = collections.Counter(re.findall(r" ?\w+|[^\w\s]+|\s+", text))
    words = {tuple(spell[b] for b in piece.encode()): count for piece, count in pieces.items()}
    learned = []
    while len(learned) < merges:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        learned.append(best)
        merged = {}
        for word, count in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + count
        words = merged
    vocabulary = [spell[b] for b in range(256)]
    for a, b in learned:
        if a + b not in vocabulary:
            vocabulary.append(a + b)
    return vocabulary, learned


def write(name, pattern, vocabulary, merges, special, **more):
    ids = {token: i for i, token in enumerate(vocabulary)}
    added = [{"id": len(ids) + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i, token in enumerate(special)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": more.get("ignore_merges", False), "vocab": ids, "merges": merges}
    processor = byte_level
    if "begin" in more:
        begin = more["begin"]
        processor = {"type": "Sequence", "processors": [byte_level, {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {begin: {"id": begin, "ids": [len(ids) + special.index(begin)], "tokens": [begin]}}}]}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": more.get("normalizer"),
                 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, byte_level]},
                 "post_processor": processor, "decoder": byte_level, "model": model}
    os.makedirs(os.path.join(HERE, name), exist_ok=True)
    with open(os.path.join(HERE, name, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(tokenizer, file, ensure_ascii=False, indent=0)
        file.write("\n")


with open(os.path.join(HERE, "..", "..", "..", "..", "README.md"), encoding="utf-8") as file:
    vocabulary, merges = train(file.read(), 400)
# A whole word that no merge makes: ignore_merges finds it.
write("llama3", LLAMA3, vocabulary + ["Ġxylophone", "zebra"], [list(merge) for merge in merges], ["<|begin_of_text|>", "<|eot_id|>"], ignore_merges=True, begin="<|begin_of_text|>")
write("qwen2", QWEN2, vocabulary, [" ".join(merge) for merge in merges], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer={"type": "NFC"})
