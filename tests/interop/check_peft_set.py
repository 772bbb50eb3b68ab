#!/usr/bin/env python3
"""Does PEFT load what fl_peft_set reads and fl_peft_out writes, and does it make the same changes of it?

Needs torch, transformers, peft (made with 2.13, 5.23, 0.21); not part of `make check`.
  check_peft_set.py PROGRAM DIR    every case; PROGRAM is built from tests/interop/peft_set_case.c
Every adapter of make_peft_fixture.py goes through the program one by one (types, rsLoRA) and, on the same base, several at
a time as a stack, whose changes must be the means of the changes that PEFT makes of the inputs. Missing or unexpected
keys are errors.
"""
import os
import subprocess
import sys
import warnings

import peft
import torch
import transformers
from make_peft_fixture import ADAPTERS, bert, llama, save, save_vit4, vit
from peft import PeftModel
from peft.tuners.lora import LoraLayer

LIMITS = {"F32": 1e-6, "F16": 2e-3, "BF16": 2e-2}  # of the largest entry


def changes(make, folder):
    """Changes of all modules and copies of all full tensors, as PEFT has them after loading a folder, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT only warns about missing adapter keys
        torch.manual_seed(7)
        model = PeftModel.from_pretrained(make(), folder)
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            part = module.lora_embedding_A if "default" in module.lora_embedding_A else None
            a = (part or module.lora_A)["default"]
            b = (module.lora_embedding_B if part else module.lora_B)["default"]
            a, b = (a, b) if part else (a.weight, b.weight)
            out[name] = module.scaling["default"] * b.detach().double() @ a.detach().double()
            base = module.get_base_layer()
            if getattr(base, "bias", None) is not None:
                out[name + " bias"] = base.bias.detach().double()
        elif name.endswith("modules_to_save.default"):
            out.update({f"{name}.{k}": v.detach().double() for k, v in module.named_parameters()})
    return out


def compare(label, ours, theirs, limit):
    top = max(float(x.abs().max()) for x in theirs.values())
    error = max(float((ours[k] - theirs[k]).abs().max()) for k in theirs) / top if ours.keys() == theirs.keys() else float("inf")
    good = error <= limit
    print(f"{'ok' if good else 'not ok'} - {label}: {len(theirs)} tensors, difference {error:.1e}")
    return good


def mean(parts, template):
    return {k: sum(p.get(k, torch.zeros_like(template[k])) for p in parts) / len(parts) for k in template}


def main():
    program, folder = sys.argv[1:3]
    print(f"# torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    good, made = True, {}
    for seed, (name, (make, dtype, adapter, options)) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        place = os.path.join(folder, name)
        save(place, make, dtype, adapter, options)
        made[name] = (make, os.path.join(place, adapter) if adapter != "default" else place)
        theirs = changes(*made[name])
        for kind in ("F32", "F16", "BF16"):
            for rslora in "01":
                out = os.path.join(folder, "out", f"{name}-{kind}-{rslora}")
                subprocess.run([program, "copy", kind, rslora, "0", out, place], check=True, stdout=subprocess.DEVNULL)
                good &= compare(f"{name} {kind} rslora {rslora}", changes(make, out), theirs, LIMITS[kind])
    for label, make, names in (
        ("three Llamas of unequal ranks and targets", llama, ["llama-plain", "llama-patterns", "llama-named"]),
        ("two BERTs with heads and biases", bert, ["bert-a", "bert-b"]),
    ):
        out = os.path.join(folder, "out", f"stack-{names[0]}")
        subprocess.run([program, "stack", out, *(os.path.join(folder, n) for n in names)], check=True)
        ours = changes(make, out)
        good &= compare(label, ours, mean([changes(*made[n]) for n in names], ours), 1e-6)
    # names of transformers 4 in, of 5 out: PEFT on transformers 5 loads no others
    four, five = os.path.join(folder, "vit4"), os.path.join(folder, "vit5")
    torch.manual_seed(100)
    expected = {}
    save_vit4(five, four, expected)
    out = os.path.join(folder, "out", "vit4-as-5")
    subprocess.run([program, "copy", "F32", "0", "5", out, four], check=True)
    ours = changes(vit, out)
    for k, v in expected.items():
        if k.endswith(".delta"):
            k = k.removesuffix(".delta").removeprefix("vit4/vit.encoder.layer.")
            for old, new in (("attention.attention.query", "attention.q_proj"), ("attention.output.dense", "attention.o_proj"),
                             ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2")):
                k = k.replace(old, new)
            name = f"base_model.model.vit.layers.{k}"
            good &= compare(f"names of transformers 4 as 5: {k}", {name: ours[name]}, {name: v.double()}, 1e-6)
    sys.exit(not good)


if __name__ == "__main__":
    main()
