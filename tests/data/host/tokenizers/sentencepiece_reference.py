"""A small SentencePiece model with the options that Llama 2's was trained with, and the ids that the sentencepiece library gives for the texts of texts.json.

    python3 tests/data/host/tokenizers/sentencepiece_reference.py      # rewrites llama2/; sentencepiece 0.1.97
"""
import json, os
import sentencepiece

HERE = os.path.dirname(os.path.abspath(__file__))
folder = os.path.join(HERE, "llama2")
os.makedirs(folder, exist_ok=True)
prefix = os.path.join(folder, "tokenizer")
sentencepiece.SentencePieceTrainer.train(
    input=os.path.join(HERE, "..", "..", "..", "..", "README.md"), model_prefix=prefix, model_type="bpe", vocab_size=700, byte_fallback=True, split_digits=True,
    normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, allow_whitespace_only_pieces=True, num_threads=1)
os.remove(prefix + ".vocab")
processor = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
with open(os.path.join(HERE, "texts.json"), encoding="utf-8") as file:
    texts = [entry["text"] for entry in json.load(file)]
with open(os.path.join(folder, "texts.json"), "w", encoding="utf-8") as file:
    file.write("[\n" + ",\n".join(json.dumps({"text": text, "llama2": processor.encode(text)}, ensure_ascii=False) for text in texts) + "\n]\n")
