"""
Markdown tables of what was measured on a GPU, from the JSON of the payload's benchmark (tests/gpu) and of bench/peers/gpu.py.
  python3 bench/gpu_tables.py bench/results/2026-11-26-gpu-h200.json bench/results/2026-11-26-gpu-peers-h200.json
"""
import json
import sys


def operations(result):
    lengths = sorted({o["tokens"] for o in result["operations"]})
    names = list(dict.fromkeys(o["name"] for o in result["operations"]))
    yield f"{result['device'].split(',')[0]}, copy {result['copy_gigabytes_per_second'] / 1e3:.2f} TB/s, matrix product {result['matrix_product_teraflops']:.0f} TFLOP/s, {result['date']}, median of {result['repeats']}"
    for model in dict.fromkeys(o["model"] for o in result["operations"]):
        yield ""
        yield f"| {model}: us (share of the floor) | " + " | ".join(f"N {n:,}" for n in lengths) + " |"
        yield "|---|" + "--:|" * len(lengths)
        for name in names:
            cells = []
            for n in lengths:
                found = [o for o in result["operations"] if (o["name"], o["model"], o["tokens"]) == (name, model, n)]
                share = found[0]["share_of_floor"] if found else None
                cells.append(f"{found[0]['median_microseconds']:.0f}" + (f" ({share:.0%})" if share else "") if found else "")
            yield f"| {name} | " + " | ".join(cells) + " |"


def peers(result):
    yield f"{result['device'].split(',')[0]}, PyTorch {result['torch']}, {result['date']}, median of {result['repeats']}: times of the peer over ours (least to most)"
    yield ""
    yield "| operation | N | ours, us | peer | peer, us | ratio |"
    yield "|---|--:|--:|---|--:|--:|"
    for o in result["operations"]:
        plain = {name: p for name, p in o["peers"].items() if name.startswith("PyTorch") and "us" in p}
        fastest = min(plain, key=lambda name: plain[name]["us"]["median"], default=None)
        for name, p in o["peers"].items():
            if "us" in p and (name == fastest or name not in plain):
                yield f"| {o['name']} | {o['tokens']:,} | {o['ours_us']['median']:.0f} | {name} | {p['us']['median']:.0f} | {p['ratio']:.2f} ({p['least']:.2f} to {p['most']:.2f}) |"


for path in sys.argv[1:]:
    with open(path) as file:
        result = json.load(file)
    print("\n".join(peers(result) if "peers" in result else operations(result.get("benchmark", result) if isinstance(result.get("benchmark"), dict) else result)), end="\n\n")
