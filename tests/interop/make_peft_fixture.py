#!/usr/bin/env python3
"""Writes tests/fixtures/peft: small adapters of random numbers as PEFT saves them, and what PEFT makes of them.

Made with torch 2.13, transformers 5.23, peft 0.21; the tests only read the files.
Usage: python3 tests/interop/make_peft_fixture.py [directory]

expected.safetensors has, for every adapter as PEFT loads it: ADAPTER/MODULE.delta, the change s B A of W (m x n, float32),
and ADAPTER/MODULE.s (float64). vit4 is vit5 with other numbers under the names of transformers 4, which transformers 5
does not load: there the change is computed from the tensors. patterns.txt: PATTERN, NAME and whether PEFT applies a key
PATTERN of rank_pattern to the module NAME (1, 0).
"""
import json
import os
import random
import re
import shutil
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

LLAMA = dict(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
BERT = dict(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8)
VIT = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4, num_labels=3)
GPT2 = dict(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8)
VIT4 = (
    ("vit.layers.", "vit.encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


def llama():
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def bert():
    return BertForSequenceClassification(BertConfig(**BERT, num_labels=3))


def vit():
    return ViTForImageClassification(ViTConfig(**VIT))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(**GPT2))


ADAPTERS = {
    "llama-plain": (llama, torch.float32, "default", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")),
    "llama-patterns": (
        llama,
        torch.bfloat16,
        "default",
        dict(
            r=2,
            lora_alpha=5,
            use_rslora=True,
            target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 3, "^model.layers.0.mlp.down_proj": 1, r"layers\.\d.mlp\.(?:up|gate)_proj": 4},
            alpha_pattern={r".*\.(down|up)_proj": 7, "v_proj": 2.5, "proj": 100},
            task_type="CAUSAL_LM",
        ),
    ),
    "llama-named": (llama, torch.float16, "client_c", dict(r=1, lora_alpha=3, target_modules=["q_proj", "k_proj"], task_type="CAUSAL_LM")),
    "llama-embedding": (llama, torch.float32, "default", dict(r=2, lora_alpha=6, target_modules=["embed_tokens", "o_proj"], task_type="CAUSAL_LM")),
    "gpt2": (gpt2, torch.float32, "default", dict(r=2, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")),
    "bert-a": (bert, torch.float32, "default", dict(r=2, target_modules=["query", "dense"], exclude_modules=["pooler.dense"], bias="lora_only", task_type="SEQ_CLS")),
    "bert-b": (bert, torch.float32, "default", dict(r=3, target_modules=["query", "dense"], exclude_modules=["pooler.dense"], bias="lora_only", task_type="SEQ_CLS")),
    "vit5": (vit, torch.float32, "default", dict(r=2, target_modules=["q_proj", "o_proj", "fc1", "fc2"], modules_to_save=["classifier"])),
}


def expect(folder, make, adapter, prefix, out):
    """What PEFT makes of a folder: the change of every module, as m x n."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns about missing keys
        model = PeftModel.from_pretrained(make(), os.path.join(folder, adapter) if adapter != "default" else folder)
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        name = name.removeprefix("base_model.model.")
        delta = module.get_delta_weight("default").detach().float()
        if getattr(module, "fan_in_fan_out", False) or "default" in module.lora_embedding_A:
            delta = delta.T
        out[f"{prefix}/{name}.delta"] = delta.contiguous()
        out[f"{prefix}/{name}.s"] = torch.tensor([module.scaling["default"]], dtype=torch.float64)


def save(folder, make, dtype, adapter, options):
    model = get_peft_model(make(), LoraConfig(**options), adapter_name=adapter)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or p.requires_grad:
                p.copy_(torch.randn_like(p) * 0.5)
    model.peft_config[adapter].base_model_name_or_path = "tiny"
    model.to(dtype).save_pretrained(folder)
    for place, _, files in os.walk(folder):
        if "README.md" in files:
            os.remove(os.path.join(place, "README.md"))


def old_name(key):
    for five, four in VIT4:
        key = key.replace(five, four)
    return key


def save_vit4(source, folder, out):
    os.makedirs(folder, exist_ok=True)
    tensors = {old_name(k): torch.randn_like(v) for k, v in load_file(os.path.join(source, "adapter_model.safetensors")).items()}
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(source, "adapter_config.json")) as f:
        config = json.load(f)
    config["target_modules"] = ["query", "attention.output.dense", "intermediate.dense", "output.dense"]
    config["alpha_pattern"] = {"vit.encoder.layer.1.output.dense": 3}
    with open(os.path.join(folder, "adapter_config.json"), "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            s = (3 if "layer.1.output.dense" in key else config["lora_alpha"]) / a.shape[0]
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            out[f"vit4/{name}.delta"] = s * tensors[key.replace("lora_A", "lora_B")] @ a
            out[f"vit4/{name}.s"] = torch.tensor([s], dtype=torch.float64)


NAMES = [
    "model.layers.3.self_attn.q_proj",
    "model.layers.13.self_attn.q_proj",
    "model.layers.3.mlp.down_proj",
    "transformer.h.0.attn.c_attn",
    "h.0.attn.c_attn",
    "vit.encoder.layer.1.output.dense",
    "score",
    "a-b.c_1",
]


def random_pattern(rng, depth=0):
    """A regular expression that often matches: a tail of a name with parts replaced."""
    name = rng.choice(NAMES)
    tail = name[rng.randrange(len(name)) :] if rng.random() < 0.3 else ".".join(name.split(".")[-rng.randint(1, 3) :])
    out, i = [], 0
    while i < len(tail):
        c, n = tail[i], rng.randint(1, 4)
        kind = rng.randrange(24)
        if kind == 0:
            piece, i = rf"[{c}-z_.]" if c.islower() else rf"[^a-y{'.' if c != '.' else ''}]", i + 1
        elif kind == 1:
            piece, i = r"\w+" if rng.random() < 0.5 else r"\w{1,4}?", i + n
        elif kind == 2:
            piece, i = r"\d" + rng.choice(["", "+", "*", "?", "{1}", "{1,2}", "{2,}", "{,2}"]), i + 1
        elif kind == 3:
            piece, i = ".*" if rng.random() < 0.5 else ".+?", i + n
        elif kind == 4 and depth < 3:
            piece, i = "(" + rng.choice(["", "?:"]) + random_pattern(rng, depth + 1) + "|" + re.escape(tail[i : i + n]) + ")", i + n
        elif kind == 5:
            piece, i = "(" + re.escape(tail[i : i + 1]) + ")" + rng.choice(["?", "*", "+", "{1,3}", "??"]), i + 1
        elif kind == 6:
            piece, i = rng.choice(["x?", "[.]?", "(a|)", "(a*)*", r"[\w.]*?", "$", "^"]), i
            i += rng.random() < 0.5
        else:
            piece, i = (re.escape(c) if rng.random() < 0.7 else c), i + 1
        out.append(piece)
    return rng.choice(["", "", "", "^", "^(.*\\.)?"]) * (depth == 0) + "".join(out)


def patterns(path):
    rng, rows = random.Random(1), set()
    while len(rows) < 600:
        pattern, name = random_pattern(rng), rng.choice(NAMES)
        try:
            hit = get_pattern_key([pattern], name) == pattern and pattern != name
        except re.error:
            continue
        if len(pattern) < 60 and pattern != name and (hit or rng.random() < 0.1):
            rows.add(f"{pattern}\t{name}\t{int(hit)}\n")
    with open(path, "w") as f:
        f.writelines(sorted(rows))


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..", "fixtures", "peft")
    shutil.rmtree(folder, ignore_errors=True)
    expected = {}
    for seed, (name, (make, dtype, adapter, options)) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        place = os.path.join(folder, name)
        save(place, make, dtype, adapter, options)
        expect(place, make, adapter, name, expected)
    torch.manual_seed(100)
    save_vit4(os.path.join(folder, "vit5"), os.path.join(folder, "vit4"), expected)
    patterns(os.path.join(folder, "patterns.txt"))
    save_file(expected, os.path.join(folder, "expected.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    main()
