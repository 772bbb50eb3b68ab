#!/usr/bin/env python3
"""What averaging A and B separately gets wrong is the covariance of the factors over clients (test_covariance.c)."""
from effects import base, pm, program, verdict

rows = program("test_covariance", EFFECT_BASE=base("narrow", pretrain__width=24, pretrain__ff=40, pretrain__context=32, model__max_length=32))
error, rest, common, rounds = {}, 0.0, 0.0, {}
for method, seed, steps, t, e, c, d in rows:
    if method == "fedavg":
        rest = max(rest, d)
        error.setdefault(steps, {}).setdefault(seed, e if t == 1 else None)
        rounds.setdefault((steps, t), []).append(e)
    else:
        common = max(common, e)
many = max(error)
for steps in error:
    print("  FedIT, %2d local steps: |error| / |T| in rounds 1 2 3 4: %s" % (steps, "  ".join(pm(rounds[steps, t], "%.1e") for t in (1, 2, 3, 4))))
print("  FFA-LoRA, RoLoRA (a common factor): at most %.1e; FedIT's error minus the covariance term: at most %.1e" % (common, rest))
table = [[error[steps][seed] for steps in sorted(error)] for seed in sorted(error[many])]
grows = sum(all(x < y for x, y in zip(row, row[1:])) for row in table)

verdict("FedIT's error is sum_k p_k (B_k - B)(A_k - A); it grows with local steps and vanishes when A or B is common",
        "FedEx-LoRA, arXiv 2410.09432, the residual and figures 2, 3",
        "error / |T| in round 1: %s at 2 local steps, %s at %d; without the covariance term %.0e at most; FFA-LoRA, RoLoRA %.0e at most"
        % (pm([error[2][s] for s in error[2]], "%.2g"), pm([error[many][s] for s in error[many]], "%.2g"), many, rest, common),
        "error minus term < 1e-6 in every round; error rises with 1, 2, 4 .. %d steps in every seed (%d of %d); common factor: < 1e-6"
        % (many, grows, len(table)), rest < 1e-6, grows == len(table), common < 1e-6)
