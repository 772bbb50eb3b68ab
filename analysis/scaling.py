#!/usr/bin/env python3
"""scaling.py - strong and weak scaling from the scaling.csv of one or several `fedlora scale`, a fitted model, its extrapolation.

usage: analysis/scaling.py SCALING.CSV... [--out scaling.png] [--table] [--wall min] [--ranks N] [--clients N]

SCALING.CSV is a file or the folder that holds it; those of a job array (one job per number of ranks) are read together.

A round of K clients on P ranks takes
    T(P, K) = c ceil(K / P) + a log2(P) + b bytes(P, K)
    c  seconds per client           computation; ceil: a client is never cut, so the fullest rank decides
    a  seconds per doubling         latency of the collectives
    b  seconds per byte and rank    what MPI moves in a round, per rank, as the program counted it (0 on one rank)
by least squares on relative errors, coefficients at least 0. Of the repeats of a measurement the fastest median round counts, because
others on the machine only ever add time; --wall min takes the fastest round of all, for a machine that is shared with much else. Runs with more ranks than cores show function, not speed: they are drawn hollow and not fitted. For ranks that were
not measured bytes(P, K) = d0 + d1 K + d2 K / P + d3 P, fitted likewise to all counts (they are exact, over-subscribed or not).

Beyond the measured ranks everything is extrapolated and drawn dashed on grey; the errors printed are those on measured points. --table
prints the tables and draws nothing.
"""
import argparse
import csv
import itertools
import math
import os
import sys

import numpy as np

TERMS = ("computation", "latency", "bandwidth")


class Point:
    """All repeats of one deck, mode, number of ranks and of clients."""

    def __init__(self, rows, wall):
        first = rows[0]
        self.mode, self.deck, self.state = first["mode"], first["deck"], {row["state"] for row in rows}
        self.ranks, self.nodes, self.cohort = int(first["ranks"]), int(first["nodes"]), int(first["cohort"])
        self.clients = int(first["clients"])
        self.best = min(rows, key=lambda row: float(row[wall]))
        walls = sorted(float(row[wall]) for row in rows)
        self.wall, self.slowest, self.repeats = walls[0], walls[-1], len(rows)
        self.bytes = float(self.best["mpi_bytes_per_round"]) if self.ranks > 1 else 0.0
        self.fits = self.ranks <= float(first["cores"])
        self.memory = max(float(row["memory_per_rank_bytes"]) for row in rows)

    def share(self, phases):
        """Of the whole run's time on an average rank, set-up and evaluation left out."""
        work = "plan exchange train wait server gather sum svd merge".split()
        total = sum(float(self.best[name + "_s"]) for name in work)
        return sum(float(self.best[name + "_s"]) for name in phases.split()) / total if total > 0 else math.nan


def read(paths, wall):
    groups = {}
    for path in paths:
        name = os.path.join(path, "scaling.csv") if os.path.isdir(path) else path
        with open(name, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or "wall_s_median" not in rows[0]:
            raise ValueError(f"{name}: not a scaling.csv, or no row in it")
        for row in rows:
            if not all(row.values()):
                raise ValueError(f"{name}: an empty field in the row of {row['mode']}, {row['ranks']} ranks")
            key = (row["mode"], row["deck"], int(row["ranks"]), int(row["cohort"]))
            groups.setdefault(key, []).append(row)
    return [Point(groups[key], wall) for key in sorted(groups)]


def series(points, mode):
    """[(label, points by rising ranks)], one for every deck of the mode."""
    decks = sorted({p.deck for p in points if p.mode == mode})
    found = []
    for deck in decks:
        chosen = sorted((p for p in points if p.mode == mode and p.deck == deck), key=lambda p: p.ranks)
        first = chosen[0]
        what = f"{first.cohort} clients a round" if mode == "strong" else f"{first.cohort / first.ranks:g} clients a rank"
        found.append((what if len(decks) == 1 else f"{what} (deck {deck[:6]})", chosen))
    return found


def nonnegative(matrix, target):
    """min |matrix x - target| with x >= 0: the best of all subsets of columns whose plain solution is not negative; few columns."""
    columns = matrix.shape[1]
    best, error = np.zeros(columns), float(np.sum(target**2))
    for n in range(1, columns + 1):
        for subset in itertools.combinations(range(columns), n):
            x, *_ = np.linalg.lstsq(matrix[:, subset], target, rcond=None)
            rest = float(np.sum((matrix[:, subset] @ x - target) ** 2))
            # a term must earn its place: rounding alone is no improvement
            if (x >= 0).all() and rest < error * (1 - 1e-9) - 1e-24:
                best, error = np.zeros(columns), rest
                best[list(subset)] = x
    return best


def relative_fit(rows, values):
    rows, values = np.array(rows, float), np.array(values, float)
    scale = np.max(np.abs(rows / values[:, None]), axis=0)
    scale[scale == 0] = 1.0
    return nonnegative(rows / values[:, None] / scale, np.ones(len(values))) / scale


class Model:
    def __init__(self, points):
        self.fitted = [p for p in points if p.fits]
        self.counted = [p for p in points if p.ranks > 1 and p.bytes > 0]
        if not self.fitted:
            raise ValueError("every row has more ranks than cores: nothing to fit")
        self.d = relative_fit([self.volume(p.ranks, p.cohort) for p in self.counted], [p.bytes for p in self.counted]) if self.counted else np.zeros(4)
        self.c = self.solve(self.fitted)
        self.most_ranks = max(p.ranks for p in self.fitted)
        self.nodes = max(p.nodes for p in self.fitted)

    @staticmethod
    def volume(ranks, cohort):
        return [1.0, cohort, cohort / ranks, ranks]

    @staticmethod
    def terms(ranks, cohort, moved):
        return [math.ceil(cohort / ranks), math.log2(ranks), moved]

    def solve(self, points):
        return relative_fit([self.terms(p.ranks, p.cohort, p.bytes) for p in points], [p.wall for p in points])

    def bytes(self, ranks, cohort):
        return float(np.dot(self.d, self.volume(ranks, cohort))) if ranks > 1 else 0.0

    def parts(self, ranks, cohort, moved=None):
        moved = self.bytes(ranks, cohort) if moved is None else moved
        return self.c * np.array(self.terms(ranks, cohort, moved))

    def time(self, ranks, cohort, moved=None):
        return float(np.sum(self.parts(ranks, cohort, moved)))

    def error(self, point):
        return self.time(point.ranks, point.cohort, point.bytes) / point.wall - 1

    def left_out(self):
        """Relative error on each point of a model that did not see it; none where the others do not show all terms."""
        errors = []
        for p in self.fitted:
            others = [q for q in self.fitted if q is not p]
            if len(others) >= len(TERMS) and (p.ranks == 1 or any(q.ranks > 1 for q in others)):
                guess = np.dot(self.solve(others), self.terms(p.ranks, p.cohort, p.bytes))
                errors.append(float(guess) / p.wall - 1)
        return errors

    def efficiency(self, ranks, cohort):
        """of the strong kind: against one rank that has all the clients"""
        return self.time(1, cohort) / (ranks * self.time(ranks, cohort))

    def describe(self):
        errors = [abs(self.error(p)) for p in self.fitted]
        left = [abs(e) for e in self.left_out()]
        lines = [
            f"T(P, K) = {self.c[0]:.3g} s ceil(K/P) + {self.c[1]:.3g} s log2(P) + {self.c[2]:.3g} s/byte bytes(P, K)",
            f"fitted to {len(self.fitted)} measured points, P up to {self.most_ranks} on {self.nodes} node(s): "
            f"relative error {np.mean(errors):.1%} on average, {max(errors):.1%} at most",
        ]
        if len(self.fitted) <= len(TERMS):
            lines.append("no more points than terms: the fit passes through them, and its error says nothing")
        if left:
            lines.append(f"each point left out in turn and predicted from the others: {np.mean(left):.1%} on average, {max(left):.1%} at most")
        if self.counted:
            miss = max(abs(self.bytes(p.ranks, p.cohort) / p.bytes - 1) for p in self.counted)
            lines.append(
                f"bytes(P, K) = {self.d[0]:.4g} + {self.d[1]:.4g} K + {self.d[2]:.4g} K/P + {self.d[3]:.4g} P, "
                f"error at most {miss:.1%} on {len(self.counted)} counts, P up to {max(p.ranks for p in self.counted)}"
            )
        silent = [name for name, x in zip(TERMS[1:], self.c[1:]) if x == 0]
        if self.most_ranks == 1:
            lines.append("no point with more than one rank: latency and bandwidth are unknown, and taken for 0")
        elif silent:
            lines.append(f"the points do not show any {' and '.join(silent)}: 0 here, not in truth")
        if self.nodes == 1 and self.most_ranks > 1:
            lines.append("all on one node: latency and bandwidth are those of shared memory, not of a network")
        return lines


def measured_table(points, model):
    lines = [
        "| mode | ranks | clients | per round | s per round | repeats | slowest | speed-up | efficiency | wait | communication | MPI B/round | memory/rank | model | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for mode in ("strong", "weak"):
        for _, chosen in series(points, mode):
            first = chosen[0]
            for p in chosen:
                share = p.ranks / first.ranks
                speed = first.wall / p.wall * (share if mode == "weak" else 1)
                model_cells = [f"{model.time(p.ranks, p.cohort, p.bytes):.4g}", f"{model.error(p):+.1%}"] if p.fits else ["over-subscribed", "-"]
                cells = [mode, p.ranks, p.clients, p.cohort, f"{p.wall:.4g}", p.repeats, f"{p.slowest / p.wall - 1:+.0%}", f"{speed:.2f}", f"{speed / share:.0%}",
                    f"{p.share('wait'):.0%}", f"{p.share('exchange gather sum'):.1%}", f"{p.bytes:.0f}", f"{p.memory / 2**20:.0f} MiB", *model_cells]
                lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def ladder(most):
    """1, 10, 100, .. and the last"""
    steps = [10**i for i in range(int(math.log10(most)) + 1)]
    return steps if steps[-1] == most else [*steps, most]


def extrapolated_table(model, ranks, clients):
    lines = [
        "| extrapolated: ranks | clients per round | s per round | efficiency | computation | latency | bandwidth |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cohort in sorted({max(p.cohort for p in model.fitted), clients}):
        for p in ladder(ranks):
            parts = model.parts(p, cohort)
            shares = [f"{x / sum(parts):.1%}" if sum(parts) > 0 else "-" for x in parts]
            lines.append("| " + " | ".join([str(p), str(cohort), f"{sum(parts):.4g}", f"{model.efficiency(p, cohort):.1%}", *shares]) + " |")
    return "\n".join(lines)


def draw(points, model, ranks, clients, path):
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 9.5))
    figure.subplots_adjust(left=0.07, right=0.98, top=0.94, bottom=0.24, hspace=0.32, wspace=0.2)
    grid = np.unique(np.round(np.logspace(0, math.log10(ranks), 200)).astype(int))
    inside = grid[grid <= model.most_ranks]
    outside = grid[grid >= model.most_ranks]
    columns = {"strong": 0, "weak": 1}

    def curve(axis, function, colour, label, measured=True):
        if not measured:
            axis.plot(grid, [function(p) for p in grid], color=colour, linewidth=1.2, linestyle="--", label=label)
            return
        axis.plot(inside, [function(p) for p in inside], color=colour, linewidth=1.2)
        axis.plot(outside, [function(p) for p in outside], color=colour, linewidth=1.2, linestyle="--", label=label)

    def dots(axis, chosen, value, colour, label):
        for hollow in (False, True):
            some = [p for p in chosen if p.fits != hollow]
            if some:
                axis.plot([p.ranks for p in some], [value(p) for p in some], color=colour, linestyle="none", marker="o", markersize=7, zorder=3,
                    markerfacecolor="none" if hollow else colour, label=f"{label}: over-subscribed, not fitted" if hollow else f"{label}: measured")

    for mode, column in columns.items():
        time, efficiency = axes[0][column], axes[1][column]
        for i, (label, chosen) in enumerate(series(points, mode)):
            colour, first = f"C{i}", chosen[0]
            per_rank = first.cohort / first.ranks
            cohort = (lambda p, k=first.cohort: k) if mode == "strong" else (lambda p, k=per_rank: k * p)
            factor = (lambda p, q=first.ranks: q / p) if mode == "strong" else (lambda p: 1.0)
            start = model.time(first.ranks, first.cohort)
            dots(time, chosen, lambda p: p.wall, colour, label)
            dots(efficiency, chosen, lambda p, f=factor, w=first.wall: w / p.wall * f(p.ranks), colour, label)
            curve(time, lambda p, k=cohort: model.time(p, k(p)), colour, f"{label}: model")
            curve(efficiency, lambda p, k=cohort, f=factor, s=start: s / model.time(p, k(p)) * f(p), colour, f"{label}: model")
            for p in (p for p in chosen if p.fits):
                time.annotate(f"{model.error(p):+.0%}", (p.ranks, p.wall), textcoords="offset points", xytext=(7, 5), fontsize=7, color=colour)
        if mode == "strong":
            curve(time, lambda p: model.time(p, clients), "0.4", f"{clients:,} clients a round: extrapolated", False)
            curve(efficiency, lambda p: model.efficiency(p, clients), "0.4", f"{clients:,} clients a round: extrapolated", False)
        time.set(title=f"{mode} scaling: a round (numbers: error of the model)", ylabel="seconds per round", yscale="log")
        efficiency.set(title=f"{mode} scaling: efficiency", ylabel="efficiency", ylim=(0, 1.15))
        efficiency.axhline(1, color="0.7", linewidth=0.8)
        for axis in (time, efficiency):
            axis.set(xscale="log", xlabel="ranks", xlim=(0.8, ranks * 1.3))
            axis.grid(True, which="major", alpha=0.3)
            axis.axvspan(model.most_ranks, ranks * 1.3, color="0.5", alpha=0.12, linewidth=0)
            axis.text(0.985, 0.975, f"grey: extrapolated beyond {model.most_ranks} rank(s)", transform=axis.transAxes, ha="right", va="top", fontsize=8, style="italic")
            if axis.get_legend_handles_labels()[1]:
                axis.legend(fontsize=7, loc="best")
    figure.text(0.02, 0.015, "Markers: measured. Lines: model, dashed where it is extrapolated.\n" + "\n".join(model.describe()), fontsize=8.5, va="bottom", family="monospace", wrap=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Strong and weak scaling, a fitted model and its extrapolation, from scaling.csv.")
    parser.add_argument("files", nargs="+", metavar="SCALING.CSV", help="written by fedlora scale; or the folder that holds it")
    parser.add_argument("--out", metavar="FILE.png", help="where the picture goes (default scaling.png unless --table)")
    parser.add_argument("--table", action="store_true", help="print the tables only")
    parser.add_argument("--wall", choices=("median", "min"), default="median", help="which round of a run counts (default median)")
    parser.add_argument("--ranks", type=int, default=10000, help="extrapolate to so many ranks (default 10000)")
    parser.add_argument("--clients", type=int, default=1000000, help="and to so many clients in a round (default 1000000)")
    options = parser.parse_args()
    if options.ranks < 2 or options.clients < 1:
        parser.error("--ranks must be 2 at least, --clients 1")
    try:
        points = read(options.files, f"wall_s_{options.wall}")
        model = Model(points)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"scaling: {error}")
    for p in points:
        if len(p.state) > 1:
            sys.exit(f"scaling: the repeats of {p.mode}, {p.ranks} ranks end in different states: {' '.join(sorted(p.state))}")
    print(measured_table(points, model), "\n")
    print("\n".join(model.describe()), "\n")
    print(extrapolated_table(model, options.ranks, options.clients))
    if options.out or not options.table:
        out = options.out or "scaling.png"
        try:
            draw(points, model, options.ranks, options.clients, out)
        except ImportError:
            sys.exit("scaling: the picture needs matplotlib: pip install -r analysis/requirements.txt (--table does not)")
        except OSError as error:
            sys.exit(f"scaling: {out}: {error}")
        print(f"written: {out}", file=sys.stderr)
    # tables of a job array never met before: fedlora scale compares within one job only
    for _, chosen in series(points, "strong"):
        if len(set().union(*(p.state for p in chosen))) > 1:
            sys.exit(f"scaling: deck {chosen[0].deck}: the state depends on the number of ranks; only svd.solver: scalapack without svd.grid may do that")


if __name__ == "__main__":
    main()
