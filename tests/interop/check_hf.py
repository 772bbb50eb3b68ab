#!/usr/bin/env python3
"""Do transformers and PEFT read what fedlora writes, and does fedlora read what they write?

Needs torch, transformers, peft (made with 2.13, 5.23, 0.21); not part of `make check`.
  check_hf.py compare MODELDIR TOKENS LOGITS [--adapter DIR]   logits of transformers (+ PEFT) against given ones
  check_hf.py all PROGRAM DIR    every case, both directions; PROGRAM is built from tests/interop/hf_case.c
TOKENS: int32, one sequence. LOGITS: float32 [tokens][vocab]. Any missing, unexpected or mismatched key is an error.
"""
import argparse
import os
import subprocess
import sys
import warnings

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore", category=FutureWarning)
LIMIT = 2e-5  # of the largest logit: float32 through 12 blocks in another order of summation


def load(folder, adapter):
    """The model, strictly: what from_pretrained would only warn about is an error here."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise SystemExit(f"{folder}: {kind}: {sorted(info[kind])[:5]}")
    if adapter:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT only warns about missing adapter keys
            model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def logits_of(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].float().numpy()


def gap(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def compare(folder, tokens, logits, adapter=None, label=""):
    tokens = np.fromfile(tokens, "<i4")
    theirs = logits_of(load(folder, adapter), tokens)
    ours = np.fromfile(logits, "<f4").reshape(theirs.shape)
    error, effect = gap(ours, theirs), 0.0
    if adapter:
        effect = gap(logits_of(load(folder, None), tokens), theirs)
    good = error < LIMIT and (not adapter or effect > 100 * LIMIT)
    print(f"{'ok' if good else 'not ok'} - {label or folder}: difference {error:.2e}, effect of the adapter {effect:.2e}")
    return good


def theirs_gpt2():
    config = GPT2Config(vocab_size=61, n_embd=24, n_inner=40, n_layer=3, n_head=4, n_positions=32)
    lora = LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn", "mlp.c_proj"], rank_pattern={"h.1.attn.c_attn": 5},
                      alpha_pattern={"mlp.c_proj": 7}, task_type="CAUSAL_LM", fan_in_fan_out=True)
    return GPT2LMHeadModel(config), lora


def theirs_llama():
    config = LlamaConfig(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=12, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=8, max_position_embeddings=32, tie_word_embeddings=False,
                         rope_parameters={"rope_type": "default", "rope_theta": 700.0})
    lora = LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM",
                      rank_pattern={r"^model\.layers\.1\.self_attn\.q_proj": 2, "o_proj": 4})
    return LlamaForCausalLM(config), lora


def read_theirs(program, make, dtype, folder, label):
    """transformers and PEFT write (weights of dtype), fedlora computes."""
    torch.manual_seed(1)
    model, lora = make()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    model.to(dtype).save_pretrained(os.path.join(folder, "model"))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(os.path.join(folder, "model"), dtype=torch.float32), lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(os.path.join(folder, "adapter"))
    tokens = np.arange(3, 27, dtype="<i4")
    tokens.tofile(os.path.join(folder, "tokens.bin"))
    paths = [os.path.join(folder, x) for x in ("model", "adapter", "tokens.bin", "logits.bin")]
    subprocess.run([program, "logits", *paths], check=True)
    theirs = logits_of(model.eval(), tokens)
    error = gap(np.fromfile(paths[3], "<f4").reshape(theirs.shape), theirs)
    print(f"{'ok' if error < LIMIT else 'not ok'} - {label}: difference {error:.2e}")
    return error < LIMIT


def every(program, folder):
    good = True
    for family in ("gpt2", "llama"):
        for kind in ("plain", "mixed", "rslora", "stack"):
            place = os.path.join(folder, f"{family}-{kind}")
            os.makedirs(place, exist_ok=True)
            subprocess.run([program, "make", family, kind, place], check=True)
            paths = [os.path.join(place, x) for x in ("model", "tokens.bin", "logits.bin", "adapter")]
            good &= compare(*paths, label=f"fedlora writes, PEFT reads: {family} {kind}")
            back = os.path.join(place, "back.bin")
            subprocess.run([program, "logits", paths[0], paths[3], paths[1], back], check=True)
            good &= compare(paths[0], paths[1], back, paths[3], label=f"read back by fedlora: {family} {kind}")
    for family, make in (("gpt2", theirs_gpt2), ("llama", theirs_llama)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            place = os.path.join(folder, f"theirs-{family}-{str(dtype)[6:]}")
            os.makedirs(place, exist_ok=True)
            good &= read_theirs(program, make, dtype, place, f"PEFT writes, fedlora reads: {family} {dtype}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("compare")
    for name in ("model", "tokens", "logits"):
        one.add_argument(name)
    one.add_argument("--adapter")
    both = commands.add_parser("all")
    both.add_argument("program")
    both.add_argument("folder")
    args = parser.parse_args()
    if args.command == "compare":
        good = compare(args.model, args.tokens, args.logits, args.adapter)
    else:
        good = every(args.program, args.folder)
    sys.exit(not good)


if __name__ == "__main__":
    main()
