"""effects.py - what the scripts of the effects share: starting programs and runs, reading what they wrote, statistics, the verdict.

A script prints what it measured, then one line of JSON behind "RESULT " that run.sh turns into a line and a row of the table.
Environment: B the build folder; EFFECT_SEEDS how many seeds (5, some scripts 10; fewer than 5 give no verdict); EFFECT_FIRST_SEED the first;
EFFECT_RUNS runs at a time (else one for each core); EFFECT_SCRATCH a folder that several scripts share.
"""
import concurrent.futures
import csv
import json
import math
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("B", "build"))
SEEDS = int(os.environ.get("EFFECT_SEEDS", "5"))
FIRST = int(os.environ.get("EFFECT_FIRST_SEED", "1"))
_scratch = tempfile.TemporaryDirectory(prefix="fedlora-effect.", dir=os.environ.get("EFFECT_SCRATCH"))
SCRATCH = _scratch.name


def command(*words, **environment):
    """Output of a command; a command that fails ends the script with what it said."""
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "EFFECT_SEEDS": str(SEEDS), **environment},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit("exit code %d: %s\n%s" % (done.returncode, " ".join(words), done.stdout[-4000:]))
    return done.stdout


def program(name, **environment):
    """The "data" lines of tests/effects/NAME, cells as numbers where they are numbers."""
    out = command(os.path.join(BUILD, "tests", "effects", name), **environment)
    rows = [[_number(x) for x in line.split()[1:]] for line in out.splitlines() if line.startswith("data ")]
    if not rows:
        sys.exit("%s printed no data:\n%s" % (name, out[-4000:]))
    return rows


def _number(text):
    try:
        return float(text) if text else math.nan
    except ValueError:
        return text


def fedlora(*words):
    return command(os.path.join(BUILD, "fedlora"), *words)


def base(name="base", **keys):
    """A small base made by `fedlora pretrain` on the synthetic language of another seed; once where EFFECT_SCRATCH is set."""
    out = os.path.join(os.environ.get("EFFECT_SCRATCH", SCRATCH), name)
    if not os.path.exists(out):
        fedlora("pretrain", "inputs/pretrain-tiny.yaml", *_set({"pretrain.out": out, **_dotted(keys)}))
    return out


def _dotted(keys):
    return {key.replace("__", "."): value for key, value in keys.items()}


def _set(keys):
    return [word for k, v in keys.items() for word in ("--set", "%s=%s" % (k, v))]


def texts(kind):
    """Name, with %d for the seed, of the data sets that test_texts writes."""
    path = os.path.join(SCRATCH, kind + "-%d.h5")
    program("test_texts", EFFECT_OUT=path, EFFECT_TEXTS=kind)
    return path


def runs(deck, arms, data, **common):
    """`fedlora run` of every arm (a name and its keys) with every seed; rounds.csv of each as {arm: [rows of seed 1, ..]}."""
    def one(job):
        arm, seed = job
        out = os.path.join(SCRATCH, "%s-%d" % (arm.replace(" ", "-"), seed))
        keys = {"run.seed": seed, "data.source": data % seed, **common, **arms[arm]}
        fedlora("run", deck, *_set(_dotted(keys)), "--out", out)
        return read_csv(os.path.join(out, "rounds.csv"))

    jobs = [(arm, seed) for seed in range(FIRST, FIRST + SEEDS) for arm in arms]
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("EFFECT_RUNS", os.cpu_count() or 1))) as pool:
        done = dict(zip(jobs, pool.map(one, jobs)))
    return {arm: [done[arm, seed] for seed in range(FIRST, FIRST + SEEDS)] for arm in arms}


def read_csv(path):
    with open(path, newline="") as file:
        return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def mean(x):
    return sum(x) / len(x)


def spread(x):
    """Standard deviation over the seeds."""
    m = mean(x)
    return math.sqrt(sum((y - m) ** 2 for y in x) / (len(x) - 1)) if len(x) > 1 else 0.0


def pm(x, form="%.3g"):
    return (form + " +- " + form) % (mean(x), spread(x))


def paired(x, y):
    """Mean over the seeds of x - y, and its standard error."""
    d = [a - b for a, b in zip(x, y)]
    return mean(d), spread(d) / math.sqrt(len(d))


def line(x, y):
    """Slope of the least-squares line through the points, and its R squared."""
    mx, my = mean(x), mean(y)
    sxy = sum((a - mx) * (b - my) for a, b in zip(x, y))
    sxx, syy = sum((a - mx) ** 2 for a in x), sum((b - my) ** 2 for b in y)
    return sxy / sxx, sxy * sxy / (sxx * syy) if syy > 0 else 0.0


def verdict(claim, source, numbers, criterion, *held):
    """held: one truth for each part of the criterion."""
    word = "reproduced" if all(held) else "partly" if any(held) else "not reproduced"
    word = word if SEEDS >= 5 else "none: fewer than 5 seeds"
    print("RESULT " + json.dumps({"claim": claim, "source": source, "numbers": numbers, "criterion": criterion,
                                  "seeds": SEEDS, "verdict": word}))
