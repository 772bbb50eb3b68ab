#!/usr/bin/env python3
"""Writes tests/fixtures/nn_llama.bin and nn_gpt2.bin: what PyTorch computes for two tiny random models.

Made with torch 2.13, transformers 5.23, peft 0.21; the tests only read the files.
Usage: python3 tests/interop/make_nn_fixture.py [directory]

A file is a list of arrays: a line "name rows cols", then rows * cols little-endian float32. Names: shape, start, token,
target (integers as floats), loss, logits, w.TENSOR, dw.TENSOR (names and layout of include/fedlora/nn.h), A.SITE, B.SITE,
dA.SITE, dB.SITE, A1.SITE, B1.SITE (after one step of AdamW), A3.SITE, B3.SITE (after three).
Llama's LoRA is PEFT's. GPT-2's is written out here, because PEFT adapts the fused c_attn as one matrix while q, k, v are
three sites for us. Sequences go through the model one by one; the loss is the mean over all counted targets.
"""
import os
import sys

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

LENGTHS = [7, 1, 12]
VOCAB, WIDTH, HEADS, R, ALPHA = 61, 32, 4, 4, 8
ADAMW = dict(lr=1e-2, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)


def randomise(parameters, std, generator):
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn(p.shape, generator=generator) * std)


def make_batch(generator):
    start = np.cumsum([0] + LENGTHS)
    token = torch.randint(0, VOCAB, (int(start[-1]),), generator=generator)
    target = torch.randint(0, VOCAB, (int(start[-1]),), generator=generator)
    target[[0, 5, 6, 11]] = -1
    return start, token, target


def run(model, batch):
    """Mean loss over the counted targets, logits of all rows."""
    start, token, target = batch
    logits = torch.cat([model(input_ids=token[None, a:b]).logits[0] for a, b in zip(start[:-1], start[1:])])
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="mean")
    return loss, logits


class Lora(torch.nn.Module):
    """A Conv1D with LoRA on column slices of its output; factors: name -> (A, B, first column)."""

    def __init__(self, base, slices, generator):
        super().__init__()
        self.base = base
        self.factors = {}
        for name, column, width in slices:
            a = torch.nn.Parameter(torch.randn(R, base.weight.shape[0], generator=generator) * 0.2)
            b = torch.nn.Parameter(torch.randn(width, R, generator=generator) * 0.2)
            self.factors[name] = (a, b, column)

    def forward(self, x):
        y = self.base(x)
        for a, b, column in self.factors.values():
            change = (ALPHA / R) * (x @ a.T) @ b.T
            y = y + torch.nn.functional.pad(change, (column, y.shape[-1] - column - change.shape[-1]))
        return y


def llama(generator):
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=40,
                         rms_norm_eps=1e-5, tie_word_embeddings=False, attn_implementation="eager")
    base = LlamaForCausalLM(config)
    randomise(base.parameters(), 0.2, generator)
    with torch.no_grad():
        for name, p in base.named_parameters():
            if "norm" in name:
                p.add_(1.0)
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=kinds))
    pairs, short = {}, {k: k[:-5] for k in kinds}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and len(module.lora_A):
            block, kind = name.split("layers.")[1].split(".")[0], name.split(".")[-1]
            pairs[f"{block}.{short[kind]}"] = (module.lora_A["default"].weight, module.lora_B["default"].weight)
    randomise([p for ab in pairs.values() for p in ab], 0.2, generator)

    def tensors(get):
        core, out = base.model, {}
        out["embed"] = get(core.embed_tokens.weight)
        for i, layer in enumerate(core.layers):
            weight = lambda module: get(module.base_layer.weight)
            at, mlp = layer.self_attn, layer.mlp
            out[f"{i}.norm1"] = get(layer.input_layernorm.weight)
            out[f"{i}.qkv"] = torch.cat([weight(at.q_proj), weight(at.k_proj), weight(at.v_proj)])
            out[f"{i}.o"] = weight(at.o_proj)
            out[f"{i}.norm2"] = get(layer.post_attention_layernorm.weight)
            out[f"{i}.up"] = torch.cat([weight(mlp.gate_proj), weight(mlp.up_proj)])
            out[f"{i}.down"] = weight(mlp.down_proj)
        out["normf"] = get(core.norm.weight)
        out["head"] = get(base.lm_head.weight)
        return out

    theta = config.rope_parameters["rope_theta"]
    return model, pairs, tensors, [1, 2, WIDTH, HEADS, 2, 48, VOCAB, 40, 1e-5, theta]


def gpt2(generator):
    config = GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_inner=64, n_layer=2, n_head=HEADS, n_positions=20,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager")
    model = GPT2LMHeadModel(config)
    randomise(model.parameters(), 0.2, generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                p.add_(1.0)
    pairs = {}
    for i, block in enumerate(model.transformer.h):
        qkv = [(f"{i}.q", 0, WIDTH), (f"{i}.k", WIDTH, WIDTH), (f"{i}.v", 2 * WIDTH, WIDTH)]
        block.attn.c_attn = Lora(block.attn.c_attn, qkv, generator)
        block.attn.c_proj = Lora(block.attn.c_proj, [(f"{i}.o", 0, WIDTH)], generator)
        block.mlp.c_fc = Lora(block.mlp.c_fc, [(f"{i}.up", 0, 64)], generator)
        block.mlp.c_proj = Lora(block.mlp.c_proj, [(f"{i}.down", 0, WIDTH)], generator)
        for wrap in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            pairs.update({name: (a, b) for name, (a, b, _) in wrap.factors.items()})

    def tensors(get):
        core = model.transformer
        out = {"embed": get(core.wte.weight), "pos": get(core.wpe.weight)}
        for i, block in enumerate(core.h):
            for ln, ours in ((block.ln_1, "norm1"), (block.ln_2, "norm2")):
                out[f"{i}.{ours}"], out[f"{i}.{ours}_bias"] = get(ln.weight), get(ln.bias)
            for wrap, ours in ((block.attn.c_attn, "qkv"), (block.attn.c_proj, "o"), (block.mlp.c_fc, "up"),
                               (block.mlp.c_proj, "down")):
                out[f"{i}.{ours}"], out[f"{i}.{ours}_bias"] = get(wrap.base.weight).T, get(wrap.base.bias)
        out["normf"], out["normf_bias"] = get(core.ln_f.weight), get(core.ln_f.bias)
        return out

    return model, pairs, tensors, [0, 2, WIDTH, HEADS, HEADS, 64, VOCAB, 20, 1e-5, 0.0]


def write(path, make, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model, pairs, tensors, shape = make(generator)
    model.eval()
    for p in model.parameters():
        p.requires_grad_(True)
    lora = [p for ab in pairs.values() for p in ab]
    for p in lora:
        p.requires_grad_(True)
    batch = make_batch(generator)
    arrays = [("shape", torch.tensor(shape)), ("start", torch.from_numpy(batch[0])), ("token", batch[1]),
              ("target", batch[2])]
    arrays += [("w." + name, x.detach().clone()) for name, x in tensors(lambda p: p).items()]
    both = lambda tag, get: [(f"{tag}{f}.{name}", get(p).detach().clone())
                             for name, ab in pairs.items() for f, p in zip("AB", ab)]
    arrays += both("", lambda p: p)
    loss, logits = run(model, batch)
    loss.backward()
    arrays += [("loss", loss.detach().reshape(1)), ("logits", logits.detach())]
    arrays += [("dw." + name, x.clone()) for name, x in tensors(lambda p: p.grad).items()]
    arrays += both("d", lambda p: p.grad)
    optimizer = torch.optim.AdamW(lora, foreach=False, fused=False, **ADAMW)
    for step in (1, 2, 3):
        optimizer.step()
        if step != 2:
            arrays += [(f"{name[0]}{step}{name[1:]}", x) for name, x in both("", lambda p: p)]
        optimizer.zero_grad()
        run(model, batch)[0].backward()
    with open(path, "wb") as out:
        for name, x in arrays:
            x = x.detach().to(torch.float32).contiguous().numpy()
            rows, cols = (1, x.shape[0]) if x.ndim == 1 else x.shape
            out.write(f"{name} {rows} {cols}\n".encode())
            out.write(x.astype("<f4").tobytes())
    print(path, os.path.getsize(path), "bytes, loss", float(loss))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    here = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..", "fixtures")
    write(os.path.join(here, "nn_llama.bin"), llama, 1)
    write(os.path.join(here, "nn_gpt2.bin"), gpt2, 2)
