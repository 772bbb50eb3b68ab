#!/usr/bin/env python3
"""Byun and Lee's first-round drop: a client with good data and a high rank before aggregation, after zero padding, after replication
(test_first_round.c). Learning rate: of 1e-3, 3e-3, 1e-2 the best for client 0 before aggregation on seed 101."""
import os
import sys

from effects import SEEDS, base, pm, program, verdict

rows = program("test_first_round", EFFECT_BASE=base(), EFFECT_LR=os.environ.get("EFFECT_LR", "3e-3"))
zero = {seed: x for method, seed, *x in rows if method == "hetlora"}
copy = {seed: x for method, seed, *x in rows if method == "replication"}
if any(zero[seed][:2] != copy[seed][:2] for seed in zero):
    sys.exit("the two rules did not begin with the same local training")
start, before = [100 * x[0] for x in zero.values()], [100 * x[1] for x in zero.values()]
padded, replicated = [100 * x[2] for x in zero.values()], [100 * x[2] for x in copy.values()]
for seed, *x in zip(zero, start, before, padded, replicated):
    print("  seed %d: %.1f %% at the start, %.1f %% before aggregation, %.1f %% after zero padding, %.1f %% after replication" % (seed, *x))
falls = [b > p for b, p in zip(before, padded)]
better = [r > p for r, p in zip(replicated, padded)]
kept = [b - r < 0.5 * (b - p) for b, p, r in zip(before, padded, replicated)]

verdict("first round: a high-quality client of high rank loses most of its accuracy by zero padding and nearly none by replication",
        "Byun and Lee, arXiv 2406.17477 (84.3 %, 39.0 %, 82.1 %)",
        "accuracy in %%: %s at the start, %s before aggregation, %s after zero padding, %s after replication"
        % tuple(pm(x, "%.1f") for x in (start, before, padded, replicated)),
        "every seed: falls by zero padding (%d of %d); replication is better (%d of %d) and loses less than half of what zero padding does (%d of %d)"
        % (sum(falls), SEEDS, sum(better), SEEDS, sum(kept), SEEDS), all(falls), all(better), all(kept))
