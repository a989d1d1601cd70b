"""Mutants that change nothing a test could see, by `names` of ``mutate.py``, with the reason."""

EQUIVALENT = {
    "mcit/core/files.py: for start in (*range(end - _CHUNK, 0, -_CHUNK), 0): | 0  ->  1": (
        "where a piece would begin at byte 1, the one that begins at byte 0 holds it"
    ),
    "mcit/core/hashes.py: _SETTLED_S = 2.0 | 2.0  ->  3.0": "a longer wait keeps fewer hashes, which costs time alone",
    "mcit/core/hashes.py: settled = [s for s in stamps if max(s[2:4]) < limit and _stamp(s[0]) == s] | 4  ->  5": (
        "the fifth is an inode's number, far below a time in nanoseconds"
    ),
    'mcit/runs/replace.py: new[f"{folder}/{MANIFEST}"] = (canonical_json(seal(manifest), indent=1) + "\\n").encode()'
    " | 1  ->  2": ("a manifest reads the same however wide its lines begin"),
    'mcit/train/blobs.py: key = f"{name}-{digest_of(fingerprint)[:12]}" | 12  ->  13': (
        "a file's name; the fingerprint in it decides"
    ),
    "mcit/evals/evaluate.py: _CHUNK = 512 | 512  ->  513": "rows answered at once, which only a kill loses",
    "mcit/train/loop.py: peak_bytes: int = 0, | 0  ->  1": "a process has more than one byte, and the larger counts",
}
