#!/usr/bin/env python3
"""FLASC under label skew (subjects.yaml): messages of all, a quarter and a sixteenth of the numbers both ways, positions counted.
Learning rates, by the mean over seeds 101 to 103: of 0.1, 0.3 for clients and 1e-2, 2e-2, 4e-2 for the server the best of the dense
arm, 0.1 and 2e-2; the sparse arms take the same. Ten seeds, for the accuracy at the end varies much."""
import os

os.environ.setdefault("EFFECT_SEEDS", "10")
from effects import base, mean, paired, pm, runs, texts, verdict

DENSITY = {"dense": 1, "1/4": 0.25, "1/16": 0.0625}
LAST, SHARE, MARGIN = 4, 0.9, 2.0  # evaluations that are averaged; of the dense accuracy: the target; points
arms = {"density %g" % d: {"flasc.density_up": d, "flasc.density_down": d, "flasc.server_lr": 2e-2} for d in DENSITY.values()}
done = dict(zip(DENSITY, runs("tests/effects/subjects.yaml", arms, texts("subjects"), model__path=base()).values()))


def seen(rows):
    """Accuracy in % where it was measured, with the bytes of both directions until then."""
    sent, points = 0, []
    for row in rows:
        sent += row["up_bytes"] + row["down_bytes"]
        if row["eval_metric"] == row["eval_metric"]:
            points.append((sent, 100 * row["eval_metric"]))
    return points


curve = {arm: [seen(rows) for rows in seeds] for arm, seeds in done.items()}
accuracy = {arm: [mean([y for _, y in points[-LAST:]]) for points in seeds] for arm, seeds in curve.items()}
megabytes = {arm: [points[-1][0] / 1e6 for points in seeds] for arm, seeds in curve.items()}
target = [SHARE * x for x in accuracy["dense"]]
reached = {arm: [min([x / 1e6 for x, y in points if y >= goal], default=float("inf")) for points, goal in zip(seeds, target)]
           for arm, seeds in curve.items()}
for arm in DENSITY:
    print("  %-6s accuracy %s %%  (%s), %s MB; %.0f %% of the dense accuracy after MB: %s"
          % (arm, pm(accuracy[arm], "%.1f"), " ".join("%.1f" % x for x in accuracy[arm]), pm(megabytes[arm], "%.1f"), 100 * SHARE,
             " ".join("%.1f" % x for x in reached[arm])))
gap = {arm: paired(accuracy[arm], accuracy["dense"]) for arm in ("1/4", "1/16")}
part = {arm: mean(megabytes[arm]) / mean(megabytes["dense"]) for arm in gap}

verdict("FLASC: the accuracy of dense messages at a fraction of the bytes",
        "FLASC, arXiv 2406.05233 (up to ten times less on four tasks)",
        "accuracy dense %s %%; density 1/4: %+.1f +- %.1f points at %.2f of the bytes, 1/16: %+.1f +- %.1f at %.2f"
        % (pm(accuracy["dense"], "%.1f"), *gap["1/4"], part["1/4"], *gap["1/16"], part["1/16"]),
        "for each density: mean difference from dense (and standard error) not below -%g points, at less than 0.3 and 0.1 of the bytes" % MARGIN,
        gap["1/4"][0] > -MARGIN and part["1/4"] < 0.3, gap["1/16"][0] > -MARGIN and part["1/16"] < 0.1)
