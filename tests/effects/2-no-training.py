#!/usr/bin/env python3
"""Mixed ranks without training: what each rule of the server does to a direction that clients of weight q hold (test_still.c)."""
import math

from effects import line, pm, program, verdict

POWER = {"hetlora": 2, "flexlora": 1, "rbla": 0}
NAME = {"hetlora": "zero padding", "flexlora": "FlexLoRA", "rbla": "RBLA"}
worst = dict.fromkeys(POWER, 0.0)
points = {}
for method, seed, t, i, q, x in program("test_still"):
    worst[method] = max(worst[method], abs(x / q ** (POWER[method] * t) - 1))
    if q < 1:
        points.setdefault((method, seed), []).append((t * math.log(q), math.log(x)))

exponent = {m: [line(*zip(*p))[0] for (name, _), p in sorted(points.items()) if name == m] for m in POWER}
for method in POWER:
    print("  %-12s  multiplier per round q^%s; largest relative distance from q^(%d t) over seeds, directions, rounds: %.1e"
          % (NAME[method], pm(exponent[method], "%.6f"), POWER[method], worst[method]))

verdict("no training, mixed ranks: zero padding scales a direction of weight q by q^2 a round, FlexLoRA by q, RBLA by 1",
        "HETLoRA, arXiv 2401.06432; FlexLoRA, arXiv 2402.11505 (as rank collapse in raFLoRA, arXiv 2602.13486); RBLA, arXiv 2408.08699",
        ", ".join("%s q^%s" % (NAME[m], pm(exponent[m], "%.5f")) for m in POWER),
        "5 rounds, ranks 1 2 4 4 8 8 dealt by the seed, unequal weights: after t rounds every multiplier is q^2t, q^t, 1 within 1e-4 of itself (worst: %.0e)" % max(worst.values()),
        *(worst[m] < 1e-4 for m in POWER))
