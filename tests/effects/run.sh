#!/usr/bin/env bash
# run.sh - published effects, measured again: each script prints its numbers and a verdict, and one line sums it up.
#   [B=build] [EFFECT_SEEDS=5] tests/effects/run.sh [--write] [N ...]
# --write: the table of tests/effects/README.md is made anew from this run, which must be of all effects.
# A verdict "not reproduced" is a result; the exit code is only of scripts that broke.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/env.sh
write=
if [ "${1:-}" = --write ]; then
    write=1
    shift
fi
T=$(mktemp -d "${TMPDIR:-/tmp}/fedlora-effects.XXXXXX") || exit 1
trap 'rm -rf "$T"' EXIT
export EFFECT_SCRATCH=$T PYTHONDONTWRITEBYTECODE=1
broken=0
for script in tests/effects/[0-9]-*.py; do
    name=$(basename "$script" .py)
    number=${name%%-*}
    if [ $# -gt 0 ] && [[ " $* " != *" $number "* ]]; then
        continue
    fi
    started=$SECONDS
    echo "$name"
    if ! python3 "$script" >"$T/$name" 2>"$T/err" || ! grep -q '^RESULT ' "$T/$name"; then
        cat "$T/$name" "$T/err"
        echo "$number: BROKEN"
        broken=1
        continue
    fi
    grep -v '^RESULT ' "$T/$name"
    sed -n 's/^RESULT //p' "$T/$name" | python3 -c '
import json, sys
x = json.load(sys.stdin)
print("%s: %s [%s]. %s (%d seeds). Criterion: %s. VERDICT %s" % (sys.argv[1], x["claim"], x["source"], x["numbers"], x["seeds"], x["criterion"], x["verdict"]))
cell = [sys.argv[1], *(x[key].replace("|", "\\|") for key in ("claim", "source", "numbers", "criterion")), str(x["seeds"]), "**%s**" % x["verdict"]]
print("| " + " | ".join(cell) + " |", file=open(sys.argv[2], "a"))' "$number" "$T/table"
    echo "  ($((SECONDS - started)) s)"
done
[ -e "$T/table" ] || [ "$broken" -ne 0 ] || { echo "no effect has such a number: $*"; exit 2; }
if [ -n "$write" ] && [ "$broken" -eq 0 ] && [ $# -eq 0 ]; then
    readme=tests/effects/README.md
    sed '/^| --- /q' "$readme" >"$T/readme"
    cat "$T/table" >>"$T/readme"
    # what follows the old table
    awk 'seen && !/^\|/ { rest = 1 } /^\| --- / { seen = 1 } rest' "$readme" >>"$T/readme"
    cp "$T/readme" "$readme"
fi
exit "$broken"
