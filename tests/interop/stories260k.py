#!/usr/bin/env python3
"""Converts the llama2.c checkpoint stories260K.bin and its tokenizer tok512.bin to a Hugging Face folder.

Usage: stories260k.py DATA OUT    DATA holds the two .bin files; OUT gets config.json, model.safetensors, tokenizer.json,
tokenizer_config.json. Plain Python, no packages.

llama2.c rotates neighbouring elements 2j, 2j + 1 of a head; Llama in transformers (and fedlora) pairs j with j + hd/2. The
rows of wq and wk are therefore reordered within each head; scores q k' are the same, as both are reordered alike.
"""
import array
import json
import os
import struct
import sys


def read_model(path):
    """The seven numbers of the head and the tensors by name, as (shape, array of float)."""
    with open(path, "rb") as f:
        raw = f.read()
    keys = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
    c = dict(zip(keys, struct.unpack("<7i", raw[:28])))
    values = array.array("f")
    values.frombytes(raw[28:])
    if sys.byteorder == "big":
        values.byteswap()
    tied, c["vocab"] = c["vocab"] > 0, abs(c["vocab"])
    d, ff, n = c["dim"], c["hidden"], c["layers"]
    kv = d // c["heads"] * c["kv_heads"]
    shapes = [("embed", 1, (c["vocab"], d)), ("norm1", n, (d,)), ("wq", n, (d, d)), ("wk", n, (kv, d)), ("wv", n, (kv, d)),
              ("wo", n, (d, d)), ("norm2", n, (d,)), ("w1", n, (ff, d)), ("w2", n, (d, ff)), ("w3", n, (ff, d)),
              ("norm", 1, (d,)), ("rotary", 2, (c["context"], d // c["heads"] // 2))]
    if not tied:
        shapes.append(("head", 1, (c["vocab"], d)))
    at, tensors = 0, {}
    for name, copies, shape in shapes:
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        for i in range(copies):
            tensors[name, i] = shape, values[at:at + size]
            at += size
    if at != len(values):
        raise SystemExit(f"{path}: holds {len(values)} numbers, its head says {at}")
    return c, tied, tensors


def halves(tensor, heads):
    """Rows 0, 2, 4, .. of each head, then rows 1, 3, 5, .."""
    (rows, cols), x = tensor
    hd, y = rows // heads, array.array("f")
    for h in range(heads):
        for first in (0, 1):
            for i in range(first, hd, 2):
                y.extend(x[(h * hd + i) * cols:(h * hd + i + 1) * cols])
    return (rows, cols), y


def named(c, tied, t):
    out = {"model.embed_tokens.weight": t["embed", 0], "model.norm.weight": t["norm", 0]}
    if not tied:
        out["lm_head.weight"] = t["head", 0]
    for i in range(c["layers"]):
        layer = f"model.layers.{i}."
        out[layer + "input_layernorm.weight"] = t["norm1", i]
        out[layer + "self_attn.q_proj.weight"] = halves(t["wq", i], c["heads"])
        out[layer + "self_attn.k_proj.weight"] = halves(t["wk", i], c["kv_heads"])
        out[layer + "self_attn.v_proj.weight"] = t["wv", i]
        out[layer + "self_attn.o_proj.weight"] = t["wo", i]
        out[layer + "post_attention_layernorm.weight"] = t["norm2", i]
        out[layer + "mlp.gate_proj.weight"] = t["w1", i]
        out[layer + "mlp.down_proj.weight"] = t["w2", i]
        out[layer + "mlp.up_proj.weight"] = t["w3", i]
    return out


def write_safetensors(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        shape, x = tensors[name]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + 4 * len(x)]}
        at += 4 * len(x)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            x = array.array("f", tensors[name][1])
            if sys.byteorder == "big":
                x.byteswap()
            f.write(x.tobytes())


def write_json(path, x):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(x, f, indent=1, ensure_ascii=False, sort_keys=True)
        f.write("\n")


def write_config(path, c, tied):
    write_json(path, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c["vocab"], "hidden_size": c["dim"],
        "intermediate_size": c["hidden"], "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv_heads"], "head_dim": c["dim"] // c["heads"], "hidden_act": "silu",
        "max_position_embeddings": c["context"], "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": tied, "torch_dtype": "float32", "initializer_range": 0.02, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": None})


def read_tokenizer(path, n):
    with open(path, "rb") as f:
        raw = f.read()
    at, pieces = 4, []
    for _ in range(n):
        score, length = struct.unpack_from("<fi", raw, at)
        pieces.append((raw[at + 8:at + 8 + length].decode("utf-8"), score))
        at += 8 + length
    return pieces


def write_tokenizer(out, pieces):
    """SentencePiece's BPE in the terms of the tokenizers library: a merge for every way to make a piece of two."""
    special = ["<unk>", "<s>", "</s>"]
    names = special + [p.replace(" ", "\u2581") for p, _ in pieces[3:]]
    score = {}
    for name, (_, s) in zip(names[259:], pieces[259:]):
        score.setdefault(name, s)
    merges = []
    for name in sorted(score, key=lambda x: -score[x]):
        merges += [[name[:i], name[i:]] for i in range(1, len(name)) if name[:i] in score and name[i:] in score]
    vocab = {}
    for i, name in enumerate(names):
        vocab.setdefault(name, i)
    bos = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    write_json(os.path.join(out, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None, "pre_tokenizer": None,
        "added_tokens": [{"id": i, "content": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                          "special": True} for i, s in enumerate(special)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "post_processor": {"type": "TemplateProcessing", "single": bos, "pair": bos + [{"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
                  "merges": merges}})
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "model_max_length": 512, "clean_up_tokenization_spaces": False})


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    data, out = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    c, tied, tensors = read_model(os.path.join(data, "stories260K.bin"))
    write_safetensors(os.path.join(out, "model.safetensors"), named(c, tied, tensors))
    write_tokenizer(out, read_tokenizer(os.path.join(data, "tok512.bin"), c["vocab"]))
    write_config(os.path.join(out, "config.json"), c, tied)


if __name__ == "__main__":
    main()
