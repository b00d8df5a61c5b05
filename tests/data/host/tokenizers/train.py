"""Small byte-pair tokenizers in the layout that Llama 2, Llama 3 and Qwen2 checkpoints have, trained on this repository's README, and texts in normal form C.

    python3 tests/data/host/tokenizers/train.py      # rewrites llama2, llama3, qwen2 and normal_forms.json; Python 3.11, no packages

texts.json holds texts and, per tokenizer, the ids that Hugging Face's tokenizers library (Tokenizers.DotNet 1.4.1, by its authors' own code in Rust) gives for them.
"""
import collections, json, os, random, re, unicodedata

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_characters():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def train(words, vocabulary, merges):
    """Merges of the commonest pairs of words, tuples of characters with their counts."""
    learned, vocabulary = [], list(vocabulary)
    while len(learned) < merges:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        learned.append(best)
        merged = collections.Counter()
        for word, count in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] += count
        words = merged
        if best[0] + best[1] not in vocabulary:
            vocabulary.append(best[0] + best[1])
    return vocabulary, learned


def save(name, tokenizer):
    os.makedirs(os.path.join(HERE, name), exist_ok=True)
    with open(os.path.join(HERE, name, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(tokenizer, file, ensure_ascii=False, indent=0)
        file.write("\n")


def added_tokens(tokens):
    return [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for token, i in tokens.items()]


def write(name, pattern, vocabulary, merges, special, **more):
    ids = {token: i for i, token in enumerate(vocabulary)}
    added = added_tokens({token: len(ids) + i for i, token in enumerate(special)})
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
    save(name, tokenizer)


def write_sentence_piece(text):
    mark = "\u2581"
    words = collections.Counter(tuple(piece) for piece in re.findall(mark + "+[^" + mark + "\\n]*", mark + text.replace(" ", mark)))
    characters = [character for character in sorted(set(text.replace(" ", mark))) if character != "\n"]
    vocabulary, merges = train(words, ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *characters], 400)
    save("llama2", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens({"<unk>": 0, "<s>": 1, "</s>": 2}),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": mark}, {"type": "Replace", "pattern": {"String": " "}, "content": mark}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": mark}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                                                     {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
                  "ignore_merges": False, "vocab": {token: i for i, token in enumerate(vocabulary)}, "merges": [" ".join(merge) for merge in merges]}})


def write_normal_forms():
    """Random runs of letters, marks of all classes, jamo, syllables and characters that decompose, and their normal form C."""
    draw = random.Random(15)
    marks = [c for c in range(0x110000) if unicodedata.combining(chr(c))]
    composed = [c for c in range(0x110000) if unicodedata.decomposition(chr(c)) and not unicodedata.decomposition(chr(c)).startswith("<")]
    pools = [list(range(0x41, 0x5B)), list(range(0x300, 0x370)), marks, composed, composed, list(range(0x1100, 0x1200)), [0xAC00 + 28 * i for i in range(399)],
             [0x915, 0x9C7, 0x9BE, 0x3099, 0x304B, 0x1F600]]
    texts = ["".join(chr(draw.choice(draw.choice(pools))) for _ in range(draw.randrange(1, 12))) for _ in range(400)]
    with open(os.path.join(HERE, "normal_forms.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps([text, unicodedata.normalize("NFC", text)]) for text in texts) + "\n]\n")


with open(os.path.join(HERE, "..", "..", "..", "..", "README.md"), encoding="utf-8") as file:
    readme = file.read()
spell = byte_characters()
pieces = collections.Counter(re.findall(r" ?\w+|[^\w\s]+|\s+", readme))
vocabulary, merges = train(collections.Counter({tuple(spell[b] for b in piece.encode()): count for piece, count in pieces.items()}), [spell[b] for b in range(256)], 400)
# A whole word that no merge makes: ignore_merges finds it.
write("llama3", LLAMA3, vocabulary + ["Ġxylophone", "zebra"], [list(merge) for merge in merges], ["<|begin_of_text|>", "<|eot_id|>"], ignore_merges=True, begin="<|begin_of_text|>")
write("qwen2", QWEN2, vocabulary, [" ".join(merge) for merge in merges], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer={"type": "NFC"})
write_sentence_piece(readme)
write_normal_forms()
