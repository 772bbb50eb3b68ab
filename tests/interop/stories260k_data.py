#!/usr/bin/env python3
"""Tokens of stories260K for fedlora: text with the tokenizer tok512.bin of llama2.c -> the HDF5 data set of inputs/DATA.md.

Usage: stories260k_data.py TOK512.BIN stories TEXT[.xz] OUT.h5 [N]     the first N stories, stripped, cut at 512 tokens with BOS, all in split test
       stories260k_data.py TOK512.BIN roles TEXT[.xz] OUT.h5           Shakespeare by speaking role: natural clients, last tenths held out
       stories260k_data.py TOK512.BIN head TEXT[.xz] OUT.h5            the first 512 tokens of a text as one sequence, split test
Needs numpy and h5py. Then:  fedlora eval --model FOLDER --data OUT.h5 --set model.max_length=511
"""
import lzma
import struct
import sys

import h5py
import numpy as np

BOS = 1


def read_tokenizer(path):
    raw, at, scores, pieces = open(path, "rb").read(), 4, [], {}
    while at < len(raw):
        score, n = struct.unpack_from("<fi", raw, at)
        pieces.setdefault(raw[at + 8:at + 8 + n], len(scores))
        scores.append(score)
        at += 8 + n
    return scores, pieces


def encode(text, scores, pieces):
    """BOS, a leading space, characters (unknown ones as bytes: byte + 3), then always the merge with the best score."""
    byte = {i: piece for piece, i in pieces.items()}
    ids = [BOS] + ([pieces[b" "]] if text else [])
    for ch in text:
        piece = ch.encode()
        ids += [pieces[piece]] if piece in pieces else [b + 3 for b in piece]
    while True:
        best, where = None, -1
        for i in range(len(ids) - 1):
            merged = pieces.get(byte.get(ids[i], b"") + byte.get(ids[i + 1], b""))
            if merged is not None and (best is None or scores[merged] > scores[best]):
                best, where = merged, i
        if best is None:
            return ids
        ids[where:where + 2] = [best]


def write(path, samples, split, keys=None, names=None):
    with h5py.File(path, "w") as f:
        f["tokens"] = np.array([t for s in samples for t in s], dtype="u4")
        f["offsets"] = np.cumsum([0] + [len(s) for s in samples]).astype("u8")
        f["split"] = np.array(split, dtype="u1")
        if keys is not None:
            f["client"] = np.array(keys, dtype="i4")
            f["client_name"] = np.array([n.encode() for n in names])
        f.attrs["task"], f.attrs["vocab_size"] = "lm", 512
        f.attrs["tokenizer"] = "tok512.bin of llama2.c"
    print(f"{path}: {len(samples)} sequences, {sum(map(len, samples))} tokens")


def main():
    tokenizer, what, source, out = sys.argv[1:5]
    scores, pieces = read_tokenizer(tokenizer)
    opened = lzma.open(source, "rt", encoding="utf-8") if source.endswith(".xz") else open(source, encoding="utf-8")
    text = opened.read()
    if what == "stories":
        stories = [s.strip() for s in text.split("<|endoftext|>")][:int(sys.argv[5])]
        samples = [encode(s, scores, pieces)[:512] for s in stories]
        write(out, samples, [2] * len(samples))
    elif what == "head":
        write(out, [encode(text[:4000], scores, pieces)[:512]], [2])
    else:
        roles = {}
        for speech in text.split("\n\n"):
            roles.setdefault(speech.split(":\n")[0], []).append(encode(speech.strip(), scores, pieces)[:256])
        names, samples, split, keys = sorted(roles), [], [], []
        for key, name in enumerate(names):
            n = len(roles[name])
            held = n // 10
            samples += roles[name]
            split += [0] * (n - 2 * held) + [1] * held + [2] * held
            keys += [key] * n
        write(out, samples, split, keys, names)


if __name__ == "__main__":
    main()
