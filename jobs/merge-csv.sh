#!/usr/bin/env bash
# merge-csv.sh - DIR/NAME.csv from all DIR/*/NAME.csv: one header, every row, sorted by the folders' numbers. Tasks that end together take turns.
# usage: jobs/merge-csv.sh DIR/NAME.csv
set -u
table=${1:?usage: jobs/merge-csv.sh DIR/NAME.csv}
folder=$(dirname "$table")
name=$(basename "$table")
exec 9>"$folder/.merge"
! command -v flock >/dev/null || flock 9
find "$folder" -mindepth 2 -maxdepth 2 -name "$name" | sort -V | tr '\n' '\0' | xargs -0 awk 'FNR > 1 || NR == 1' >"$table.tmp.$$" &&
    mv "$table.tmp.$$" "$table"
