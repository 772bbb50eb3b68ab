#!/usr/bin/env python3
"""RoLoRA finds the direction a* of the rank-1 linear model, FFA-LoRA cannot leave the angle it started with (test_angle.c)."""
import math

from effects import line, pm, program, verdict

curve = {}
for method, seed, t, angle, loss in program("test_angle"):
    curve.setdefault((method, seed), []).append((t, angle, loss))

GRAIN = 1e-6  # of single precision
start, rate, fit, rolora, ffa, falls = [], [], [], [], [], []
for seed in sorted({s for _, s in curve}):
    points = [(t, x) for t, x, _ in curve["rolora", seed] if t % 2 == 0]  # a moves in even rounds
    above = [(t, x) for t, x in points if x > GRAIN]
    late = [(t, math.log(x)) for t, x in above if x < 0.1 * points[0][1]]
    slope, r2 = line(*zip(*late))
    start.append(points[0][1])
    rate.append(math.exp(2 * slope))
    fit.append(r2)
    falls.append(all(y < x for (_, x), (_, y) in zip(above, above[1:])) and points[-1][1] < GRAIN)
    rolora.append(curve["rolora", seed][-1][2])
    ffa.append(curve["ffa_lora", seed][-1][2] / start[-1] ** 2)
    print("  seed %d: sin angle %.3f -> %.1e, times %.3f per step of a (R2 %.4f); loss of RoLoRA %.1e, of FFA-LoRA %.4f = %.4f of the floor"
          % (seed, start[-1], points[-1][1], rate[-1], fit[-1], rolora[-1], ffa[-1] * start[-1] ** 2, ffa[-1]))

verdict("rank-1 linear model: RoLoRA's angle to a* decays geometrically, FFA-LoRA's loss stalls at a floor set by the initial angle",
        "RoLoRA, arXiv 2409.02346, Theorem 4.5 and Proposition 4.6",
        "sin of the angle %.2f to %.2f at the start, times %s per step of a; last loss RoLoRA %.0e at most, FFA-LoRA %s of the floor"
        % (min(start), max(start), pm(rate), max(rolora), pm(ffa, "%.3f")),
        "every seed: the sine falls at every step of a down to 1e-6, and its logarithm is a line in the round (R2 > 0.99); "
        "FFA-LoRA's last loss is 1 to 1.05 times |b*|^2 sin^2 of the first angle",
        all(falls) and min(fit) > 0.99, all(1 - 1e-6 <= x < 1.05 for x in ffa))
