#!/usr/bin/env python3
"""check_aggregate.py - `fedlora aggregate` beside PEFT's own combinations of the same adapters, judged in float64.

usage: tests/interop/check_aggregate.py [FEDLORA]        (build/fedlora)

A tiny Llama with random weights gets adapters from PEFT: K of equal rank and alpha, and K of unequal ones. Every result is compared with
T = sum_k w_k s_k B_k A_k in float64; what fedlora writes is loaded by PEFT, and its logits are compared with the logits of W + T.
Needs torch, transformers, peft; nothing is fetched. Prints a table of errors and the versions; exit 1 when something is off.
"""
import os
import subprocess
import sys
import tempfile

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

WEIGHTS = [0.4, 0.3, 0.2, 0.1]
TARGETS = ["q_proj", "v_proj", "down_proj"]


def base_model():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                                        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)).eval()


def make_adapter(folder, seed, r, alpha):
    model = get_peft_model(base_model(), LoraConfig(r=r, lora_alpha=alpha, target_modules=TARGETS, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(seed)
    for name, x in model.named_parameters():
        if "lora_" in name:
            x.data = torch.randn(x.shape, generator=generator) * 0.2
    model.save_pretrained(folder)


def deltas(model, adapter):
    """module -> s B A in float64"""
    out = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and adapter in module.lora_A:
            a, b = module.lora_A[adapter].weight.double(), module.lora_B[adapter].weight.double()
            out[name.split("base_model.model.")[-1]] = module.scaling[adapter] * (b @ a)
    return out


def load(folders):
    """one PEFT model with all adapters, named 0, 1, .."""
    model = PeftModel.from_pretrained(base_model(), folders[0], adapter_name="0")
    for i, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(i))
    return model


def error(got, want):
    gap = sum(((got.get(k, 0) - want[k]) ** 2).sum().item() for k in want)
    return (gap / sum((x ** 2).sum().item() for x in want.values())) ** 0.5


def add(x, y):
    return {k: x[k] + y[k] for k in x}


def exact(model, n):
    total = None
    for k in range(n):
        d = {name: WEIGHTS[k] * x for name, x in deltas(model, str(k)).items()}
        total = d if total is None else add(total, d)
    return total


def logits(model):
    tokens = torch.arange(24).reshape(2, 12) * 3 % 97
    with torch.no_grad():
        return model(input_ids=tokens).logits


def logits_of(total):
    """of the base with W + T"""
    model = base_model()
    for name, x in total.items():
        model.get_submodule(name).weight.data += x.float()
    return logits(model)


def aggregate(fedlora, method, out, folders, *options):
    subprocess.run([fedlora, "aggregate", "--method", method, "--weights", ",".join(map(str, WEIGHTS)), "-o", out, *options, *folders],
                   check=True, stdout=subprocess.DEVNULL)


def family(fedlora, top, ranks, alphas, failures):
    folders = []
    for k, (r, alpha) in enumerate(zip(ranks, alphas)):
        folders.append(os.path.join(top, f"client-{k}"))
        make_adapter(folders[-1], 10 + k, r, alpha)
    model = load(folders)
    want = exact(model, len(folders))
    names = [str(k) for k in range(len(folders))]
    equal, rmax = len(set(ranks)) == 1, max(ranks)
    print(f"\nranks {ranks}, alphas {alphas}: ||result - T|| / ||T||")
    rows = []
    for kind in ("cat", "linear", "svd"):
        options = {"svd_rank": rmax} if kind == "svd" else {}
        try:
            model.add_weighted_adapter(names, WEIGHTS, f"peft-{kind}", combination_type=kind, **options)
            rows.append((f"PEFT {kind}", error(deltas(model, f"peft-{kind}"), want), None))
        except ValueError as why:
            rows.append((f"PEFT {kind}", None, str(why).split(".")[0]))
    methods = [("flora", [], 1e-6), ("flexlora", [], None), ("flexlora", ["--r", str(sum(ranks))], 1e-6), ("florist", [], None)]
    methods += [("fedavg", [], None), ("lora_fair", [], None), ("fedex_lora", ["--stacked"], 1e-6)] if equal else \
        [("rbla", [], None), ("hetlora", [], None), ("rb_lora", [], None)]
    have = subprocess.run([fedlora, "methods"], check=True, capture_output=True, text=True).stdout.split()
    svd = None
    for method, options, bound in methods:
        if method not in have:
            continue
        out = os.path.join(top, f"{method}{len(rows)}")
        aggregate(fedlora, method, out, folders, *options)
        ours = PeftModel.from_pretrained(base_model(), out, adapter_name="0").eval()
        got = deltas(ours, "0")
        e = error(got, want)
        note = None
        if bound is not None:
            gap = (logits(ours) - logits_of(want)).abs().max().item()
            note = f"loaded by PEFT: largest difference of logits {gap:.1e}"
            if e > bound or gap > 1e-4:
                failures.append(f"{method} {options}: {e:.1e}, {gap:.1e}")
        if method == "flexlora" and not options:
            svd = e
        rows.append((f"fedlora {' '.join([method, *options])}", e, note))
    for name, e, note in rows:
        print(f"  {name:28s} {'' if e is None else f'{e:9.2e}':9s}   {note or ''}")
    peft_cat = next(e for name, e, _ in rows if name == "PEFT cat")
    if peft_cat > 1e-5:
        failures.append(f"PEFT's cat is {peft_cat:.1e} from the float64 sum: is T right?")
    peft_svd = next((e for name, e, _ in rows if name == "PEFT svd"), None)
    if peft_svd is not None and svd > peft_svd * (1 + 1e-4):
        failures.append(f"flexlora {svd:.3e} is worse than PEFT's svd {peft_svd:.3e}")


def main():
    fedlora = sys.argv[1] if len(sys.argv) > 1 else "build/fedlora"
    failures = []
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        os.environ.setdefault(name, "1")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    for ranks, alphas in (([4, 4, 4, 4], [8, 8, 8, 8]), ([2, 3, 1, 4], [4, 12, 1, 6])):
        with tempfile.TemporaryDirectory() as top:
            family(fedlora, top, ranks, alphas, failures)
    for text in failures:
        print("FAILED:", text)
    print("aggregate: as PEFT and float64 have it" if not failures else "aggregate: differs")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
