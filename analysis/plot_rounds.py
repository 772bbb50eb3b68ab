#!/usr/bin/env python3
"""plot_rounds.py - loss, metric, discordance and traffic of one or several runs, from OUT/rounds.csv.

usage: analysis/plot_rounds.py RUN... [--out rounds.png] [--table]

RUN is a run's directory or its rounds.csv. The label of a run is its method (used.yaml beside rounds.csv), with the
directory's name when two runs share a method. --table prints a Markdown table and needs nothing but Python.
"""
import argparse
import csv
import os
import re
import sys


def number(text):
    """A cell of rounds.csv: None when it is empty (not evaluated)."""
    return float(text) if text not in (None, "") else None


def method_of(folder):
    """method.name in used.yaml, in block or flow style; None if there is no such file or key."""
    path = os.path.join(folder, "used.yaml")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"(^|\s)#.*", "", file.read(), flags=re.MULTILINE)
    section = re.search(r"^method:(.*(?:\n[ \t]+.*|\n[ \t]*$)*)", text, flags=re.MULTILINE)
    name = re.search(r"\bname:\s*[\"']?([A-Za-z0-9_.-]+)", section.group(1)) if section else None
    return name.group(1) if name else None


class Run:
    """Columns of one rounds.csv; labels are given by the caller, who sees all runs."""

    def __init__(self, path):
        self.csv = os.path.join(path, "rounds.csv") if os.path.isdir(path) else path
        self.folder = os.path.dirname(os.path.abspath(self.csv))
        with open(self.csv, newline="", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))
        if not self.rows:
            raise ValueError("no round in it")
        if "round" not in self.rows[0]:
            raise ValueError("no column 'round': not a rounds.csv")
        self.method = method_of(self.folder) or os.path.basename(self.folder)
        self.label = self.method

    def curve(self, column):
        """(rounds, values) where the column is not empty."""
        points = [(int(row["round"]), number(row.get(column))) for row in self.rows]
        points = [(t, y) for t, y in points if y is not None]
        return [t for t, _ in points], [y for _, y in points]

    def last(self, column):
        values = self.curve(column)[1]
        return values[-1] if values else None

    def total(self, column):
        return sum(self.curve(column)[1])

    def cumulative(self):
        """(rounds, bytes both ways up to and with each round)"""
        at, sums, total = [], [], 0.0
        for row in self.rows:
            total += (number(row.get("up_bytes")) or 0.0) + (number(row.get("down_bytes")) or 0.0)
            at.append(int(row["round"]))
            sums.append(total)
        return at, sums


def name_runs(runs):
    """Equal methods get their directory's name too, and a number if that is the same as well."""
    methods = [run.method for run in runs]
    for run in runs:
        if methods.count(run.method) > 1:
            run.label = f"{run.method} ({os.path.basename(run.folder)})"
    labels = [run.label for run in runs]
    for i, run in enumerate(runs):
        if labels.count(run.label) > 1 or run.label in [r.label for r in runs[:i]]:
            run.label = f"{labels[i]} #{i + 1}"


def table(runs):
    def cell(value, form):
        return "-" if value is None else format(value, form)

    lines = [
        "| run | rounds | eval loss | metric | up bytes | down bytes | discordance |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        cells = [
            run.label,
            run.rows[-1]["round"],
            cell(run.last("eval_loss"), ".4f"),
            cell(run.last("eval_metric"), ".4f"),
            cell(run.total("up_bytes"), ".0f"),
            cell(run.total("down_bytes"), ".0f"),
            cell(run.last("discordance"), ".2e"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(runs, path):
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    loss, metric, discordance, traffic = axes.flat
    for i, run in enumerate(runs):
        colour = f"C{i % 10}"
        loss.plot(*run.curve("eval_loss"), color=colour, marker="o", markersize=3, label=run.label)
        loss.plot(*run.curve("train_loss"), color=colour, linestyle=":", linewidth=1)
        metric.plot(*run.curve("eval_metric"), color=colour, marker="o", markersize=3)
        metric.plot(*run.curve("eval_metric_clients_mean"), color=colour, linestyle="--", linewidth=1)
        discordance.plot(*run.curve("discordance"), color=colour)
        at, sums = run.cumulative()
        traffic.plot(at, [y / 1e6 for y in sums], color=colour)
    loss.set(title="loss: evaluation (line), training (dots)", ylabel="nats per token")
    metric.set(title="metric: server (line), mean over clients (dashes)")
    discordance.set(title="discordance: |installed - ideal| / |ideal|")
    # exact methods are at rounding, 0 included
    discordance.set_yscale("symlog", linthresh=1e-9)
    traffic.set(title="traffic of all clients so far, both ways", ylabel="MB")
    # methods differ by powers of ten; 0 included
    traffic.set_yscale("symlog", linthresh=1)
    for axis in axes.flat:
        axis.set_xlabel("round")
        axis.grid(True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(4, len(runs)), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Curves and a table from rounds.csv of one or several runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory, or its rounds.csv")
    parser.add_argument("--out", metavar="FILE.png", help="where the picture goes (default rounds.png unless --table)")
    parser.add_argument("--table", action="store_true", help="print a Markdown table of the last rounds")
    options = parser.parse_args()
    runs = []
    for path in options.runs:
        try:
            runs.append(Run(path))
        except (OSError, ValueError) as error:
            sys.exit(f"plot_rounds: {path}: {error}")
    name_runs(runs)
    if options.table:
        print(table(runs))
    if options.out or not options.table:
        out = options.out or "rounds.png"
        try:
            draw(runs, out)
        except ImportError:
            sys.exit("plot_rounds: the picture needs matplotlib: pip install -r analysis/requirements.txt (--table does not)")
        except OSError as error:
            sys.exit(f"plot_rounds: {out}: {error}")
        print(f"written: {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
