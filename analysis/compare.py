#!/usr/bin/env python3
"""compare.py - which learning rate was best for a method, and the table of all methods at theirs.

usage: analysis/compare.py --best SWEEP               one line per rate: "LR method,method,.." (lowest evaluation loss at the end)
       analysis/compare.py --table SWEEP... [--server SWEEP] [--target LOSS] [--out table.md]

SWEEP is a folder that `fedlora sweep` wrote. The table has, per method, over the seeds: test loss and metric (mean and standard
deviation), the bytes up and down of all clients until the evaluation loss first went below the target, the discordance of the last
round, and the server's time a round (the aggregate hook with its sums, exchange of factors, SVDs and merges) in the runs of --server.
The target is, unless given, the evaluation loss that fedavg (or rbla, where there is no fedavg) had reached on average at the end.
"""
import argparse
import json
import os
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from plot_rounds import Run  # noqa: E402

SERVER = ("server", "sum", "gather", "svd", "merge")


def runs_of(folders):
    """(method, lr, seed, Run, folder) of every finished run; folders are named key=value+key=value by the sweep"""
    for top in folders:
        for name in sorted(os.listdir(top)):
            folder = os.path.join(top, name)
            keys = dict(part.split("=", 1) for part in name.split("+") if "=" in part)
            if "method.name" in keys and os.path.exists(os.path.join(folder, "rounds.csv")):
                yield keys["method.name"], keys.get("train.lr"), keys.get("run.seed"), Run(folder), folder


def best(folder):
    loss = {}
    for method, lr, _, run, _ in runs_of([folder]):
        value = run.last("eval_loss")
        if value is not None and value == value:
            loss.setdefault(method, {})[lr] = value
    chosen = {}
    for method, by_rate in loss.items():
        chosen.setdefault(min(by_rate, key=lambda lr: (by_rate[lr], float(lr))), []).append(method)
    for lr in sorted(chosen, key=float):
        print(lr, ",".join(sorted(chosen[lr])))


def bytes_until(run, target):
    """both directions, rounds up to the first evaluation at or below the target; None = never"""
    at, sums = run.cumulative()
    upto = dict(zip(at, sums))
    for t, loss in zip(*run.curve("eval_loss")):
        if loss <= target:
            return upto[t]
    return None


def server_seconds(run, folder):
    """of a round; the longest rank"""
    path = os.path.join(folder, "perf.json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        phases = json.load(file)["phases_s"]
    return sum(phases[name]["max"] for name in SERVER if name in phases) / max(len(run.rows) - 1, 1)


def amount(x):
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if x >= size:
            return f"{x / size:.3g} {unit}"
    return f"{x:.0f} B"


def spread(values, digits):
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(folders, server, target):
    by_method = {}
    seconds = {method: server_seconds(run, folder) for method, _, _, run, folder in runs_of([server] if server else [])}
    for method, _, _, run, folder in runs_of(folders):
        lr = "?"
        with open(os.path.join(folder, "used.yaml"), encoding="utf-8") as file:
            section = ""
            for line in file:
                section = line.split(":")[0] if line[:1].strip() and not line.startswith("#") else section
                if section == "train" and line.strip().startswith("lr:"):
                    lr = line.split(":")[1].split("#")[0].strip()
        by_method.setdefault(method, []).append((run, folder, lr))
    if target is None:
        reference = by_method.get("fedavg") or by_method.get("rbla") or next(iter(by_method.values()))
        target = statistics.mean(run.last("eval_loss") for run, _, _ in reference)
    lines = [f"Target: evaluation loss {target:.3f}.", "",
             "| method | lr | test loss | test accuracy | bytes to the target | bytes in all | discordance | server ms a round |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    rows = []
    for method, runs in by_method.items():
        loss = [run.last("test_loss") for run, _, _ in runs]
        accuracy = [run.last("test_metric") for run, _, _ in runs]
        until = [bytes_until(run, target) for run, _, _ in runs]
        reached = [x for x in until if x is not None]
        total = statistics.mean(run.cumulative()[1][-1] for run, _, _ in runs)
        discordance = [x for x in (run.last("discordance") for run, _, _ in runs) if x is not None and x == x]
        cell = "never" if not reached else amount(statistics.mean(reached))
        if reached and len(reached) < len(until):
            cell += f" ({len(reached)} of {len(until)})"
        rows.append((statistics.mean(loss), f"| `{method}` | {float(runs[0][2]):g} | {spread(loss, 3)} | {spread(accuracy, 3)} | {cell} "
                     f"| {amount(total)} | {f'{statistics.mean(discordance):.0e}' if discordance else ''} "
                     f"| {f'{1000 * seconds[method]:.1f}' if seconds.get(method) is not None else ''} |"))
    return "\n".join(lines + [row for _, row in sorted(rows)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--best", metavar="SWEEP")
    parser.add_argument("--table", metavar="SWEEP", nargs="+")
    parser.add_argument("--server", metavar="SWEEP")
    parser.add_argument("--target", type=float)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.best:
        best(args.best)
    elif args.table:
        text = table(args.table, args.server, args.target)
        print(text)
        if args.out:
            with open(args.out, "w", encoding="utf-8") as file:
                file.write(text + "\n")
    else:
        parser.error("give --best or --table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
