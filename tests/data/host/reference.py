"""Logits of tiny random models of every supported architecture, written in plain PyTorch from the architectures' definitions.

    python3 tests/data/host/reference.py        # rewrites the folders beside it; PyTorch 1.13 and NumPy

Per folder: config.json and weights as a published checkpoint has them, and expected.safetensors with
input_ids [N], logits [N, V] of a full forward pass, kept [L, Hkv, P] (which of the first P tokens each head of each layer keeps,
the same number in all heads of a layer together), and kept_logits [N - P, V]: the first P tokens attend to each other fully; the later
ones see of them only what is kept, at its own position, and each other causally. Arithmetic is float64 on the stored weights.
"""
import json, math, os, struct
import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
N, P, KEPT = 40, 24, 12
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32"}


def save(path, tensors):
    header, blobs, at = {}, [], 0
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        blob = raw.numpy().tobytes()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def inverse_frequencies(config, dim):
    parameters = config.get("rope_parameters") or {}
    theta = config.get("rope_theta", parameters.get("rope_theta", 10000.0))
    scaling = config.get("rope_scaling") or parameters
    result = []
    for i in range(0, dim, 2):
        f = 1.0 / theta ** (i / dim)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "linear":
            f /= scaling["factor"]
        elif kind == "llama3":
            context = scaling["original_max_position_embeddings"]
            wavelength = 2 * math.pi / f
            if wavelength > context / scaling["low_freq_factor"]:
                f /= scaling["factor"]
            elif wavelength > context / scaling["high_freq_factor"]:
                smooth = (context / wavelength - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
                f = (1 - smooth) * f / scaling["factor"] + smooth * f
        result.append(f)
    return torch.tensor(result, dtype=torch.float64)


def rms(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def forward(config, w, ids, kept=None):
    """kept [L, Hkv, P]: the later tokens' view of the first P; None for all."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    dim = config.get("head_dim", config["hidden_size"] // heads)
    eps, n = config["rms_norm_eps"], len(ids)
    angle = torch.arange(n, dtype=torch.float64)[:, None] * inverse_frequencies(config, dim)[None]
    rotation = torch.polar(torch.ones_like(angle), angle)[:, None]

    def linear(x, name):
        y = x @ w[name + ".weight"].T
        return y + w[name + ".bias"] if name + ".bias" in w else y

    def rotate(x):
        pair = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * rotation
        return torch.cat([pair.real, pair.imag], -1)

    x = w["model.embed_tokens.weight"][ids.long()]
    causal = torch.ones(n, n).tril().bool()
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        h = rms(x, w[p + "input_layernorm.weight"], eps)
        q = linear(h, p + "self_attn.q_proj").view(n, heads, dim)
        k = linear(h, p + "self_attn.k_proj").view(n, kv_heads, dim)
        v = linear(h, p + "self_attn.v_proj").view(n, kv_heads, dim)
        if p + "self_attn.q_norm.weight" in w:
            q, k = rms(q, w[p + "self_attn.q_norm.weight"], eps), rms(k, w[p + "self_attn.k_norm.weight"], eps)
        q, k = rotate(q), rotate(k)
        out = []
        for head in range(heads):
            kv = head * kv_heads // heads
            mask = causal.clone()
            if kept is not None:
                mask[P:, :P] &= kept[layer, kv].bool()
            logits = (q[:, head] @ k[:, kv].T / math.sqrt(dim)).masked_fill(~mask, -math.inf)
            out.append(logits.softmax(-1) @ v[:, kv])
        x = x + linear(torch.cat(out, -1), p + "self_attn.o_proj")
        h = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        gate = linear(h, p + "mlp.gate_proj")
        x = x + linear(gate * torch.sigmoid(gate) * linear(h, p + "mlp.up_proj"), p + "mlp.down_proj")
    x = rms(x, w["model.norm.weight"], eps)
    return x @ w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


def weights(config, dtype, qkv_bias=False, output_bias=False, mlp_bias=False, qk_norm=False):
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    dim = config.get("head_dim", hidden // heads)
    w = {}

    def matrix(name, rows, columns, bias=False, scale=None):
        w[name + ".weight"] = torch.randn(rows, columns) * (scale or 1.5 / math.sqrt(columns))
        if bias:
            w[name + ".bias"] = torch.randn(rows) * 0.5

    def norm(name, size):
        w[name + ".weight"] = 1 + 0.3 * torch.randn(size)

    matrix("model.embed_tokens", vocabulary, hidden, scale=0.4)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        norm(p + "input_layernorm", hidden)
        matrix(p + "self_attn.q_proj", heads * dim, hidden, qkv_bias)
        matrix(p + "self_attn.k_proj", kv_heads * dim, hidden, qkv_bias)
        matrix(p + "self_attn.v_proj", kv_heads * dim, hidden, qkv_bias)
        matrix(p + "self_attn.o_proj", hidden, heads * dim, output_bias)
        if qk_norm:
            norm(p + "self_attn.q_norm", dim)
            norm(p + "self_attn.k_norm", dim)
        norm(p + "post_attention_layernorm", hidden)
        matrix(p + "mlp.gate_proj", inner, hidden, mlp_bias)
        matrix(p + "mlp.up_proj", inner, hidden, mlp_bias)
        matrix(p + "mlp.down_proj", hidden, inner, mlp_bias)
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        matrix("lm_head", vocabulary, hidden)
    return {name: tensor.to(dtype) for name, tensor in w.items()}


def write(name, config, dtype, shards=1, **parts):
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    config = {"hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 90, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, **config}
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
        file.write("\n")
    w = weights(config, dtype, **parts)
    if shards == 1:
        save(os.path.join(folder, "model.safetensors"), w)
    else:
        names, places = list(w), {}
        for shard in range(shards):
            file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = names[shard::shards]
            save(os.path.join(folder, file_name), {n: w[n] for n in part})
            places.update({n: file_name for n in part})
        with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
            json.dump({"metadata": {"total_size": sum(t.numel() * t.element_size() for t in w.values())}, "weight_map": places}, file, indent=1)
            file.write("\n")
    w = {n: t.double() for n, t in w.items()}
    ids = torch.randint(0, config["vocab_size"], (N,), dtype=torch.int32)
    kv_heads = config.get("num_key_value_heads", config["num_attention_heads"])
    kept = torch.zeros(config["num_hidden_layers"], kv_heads * P, dtype=torch.int32)
    for layer in range(kept.shape[0]):
        kept[layer, torch.randperm(kv_heads * P)[: KEPT * kv_heads]] = 1
    kept = kept.view(-1, kv_heads, P)
    save(os.path.join(folder, "expected.safetensors"), {
        "input_ids": ids, "logits": forward(config, w, ids).float(),
        "kept": kept, "kept_logits": forward(config, w, ids, kept)[P:].float()})


torch.manual_seed(20250707)
write("llama2", {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, torch.float16)
write("llama3", {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "tie_word_embeddings": True, "rope_theta": 500000.0, "eos_token_id": [2, 3],
                 "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_type": "llama3"}},
      torch.bfloat16, shards=3)
write("llama-biases", {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True,
                       "rope_scaling": {"type": "linear", "factor": 2.0}},
      torch.float32, qkv_bias=True, output_bias=True, mlp_bias=True)
write("qwen2", {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2,
                "rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 32}, torch.bfloat16, qkv_bias=True)
write("qwen3", {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
                "attention_bias": False, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}, torch.bfloat16, qk_norm=True)
