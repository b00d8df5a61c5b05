"""Writes canonical.txt, what Unicode's normal form C needs, from Python's unicodedata.

    python3 canonical.py      # Python 3.11: Unicode 14

c=a b   a and b compose to c, and c decomposes to them
c>a b   c decomposes only
a-b:n   characters a to b have combining class n
"""
import os, unicodedata

lines = []
for code in range(0x110000):
    parts = unicodedata.decomposition(chr(code))
    if parts and not parts.startswith("<"):
        lines.append(f"{code:X}{'=' if unicodedata.normalize('NFC', chr(code)) == chr(code) else '>'}{parts}")
first = previous = None
for code in [c for c in range(0x110000) if unicodedata.combining(chr(c))] + [0x110000]:
    if first is not None and (code != previous + 1 or code == 0x110000 or unicodedata.combining(chr(code)) != unicodedata.combining(chr(first))):
        lines.append(f"{first:X}-{previous:X}:{unicodedata.combining(chr(first))}")
        first = None
    first, previous = code if first is None else first, code
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "canonical.txt"), "w") as file:
    file.write("\n".join(lines) + "\n")
