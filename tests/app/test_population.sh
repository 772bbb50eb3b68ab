#!/usr/bin/env bash
# test_population.sh - what a client costs that never takes part, and that a node holds the base once: memory of a run with 1,000 and with 10,000
# registered clients on the same data, 100 of them in a round, and of a base of 40 MB on one rank and on four.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

# number OUT KEY: from perf.json; of a spread over ranks the largest
number() {
    awk -v key="\"$2\":" '
        $1 == key && $2 != "{" { print $2 + 0; exit }
        $1 == key { inside = 1 }
        inside && $1 == "\"max\":" { print $2 + 0; exit }' "$1/perf.json"
}

# population OUT RANKS BASE CLIENTS COHORT: some rounds of it
population() {
    local out=$1 ranks=$2
    cat >"$out.yaml" <<DECK
run:       {name: population, seed: 3, rounds: 2}
model:     {path: $3, max_length: 16}
adapter:   {r: 4, alpha: 8, targets: [q, v]}
data:      {source: synthetic, sequences: 13000, length: 16}
partition: {kind: iid, clients: $4}
cohort:    {size: $5, weights: uniform}
train:     {steps: 1, batch: 1}
method:    {name: fedavg}
eval:      {every: 0, max_samples: 20, discordance: false}
checkpoint: {every: 2, keep: 1}
DECK
    expect 0 "$4 clients, $5 in a round, on $ranks ranks" "$ranks" "$out" "$out.yaml"
    says "all took part that should" "$out.log" "$4 clients, $5 per round"
    echo "#   $(number "$out" peak_memory_bytes) bytes at most in a rank, $(number "$out" node_pss_bytes) on the node"
}

make_base "$T/base"
population "$T/few" 4 "$T/base" 1000 100
population "$T/many" 4 "$T/base" 10000 100
growth=$(awk -v a="$(number "$T/few" node_pss_bytes)" -v b="$(number "$T/many" node_pss_bytes)" 'BEGIN { print (b - a) / 9000 / 4 }')
echo "# $growth bytes for every further client and rank (private memory, and a share of what is shared)"
check "below 200 bytes for every further client and rank" awk -v x="$growth" 'BEGIN { exit !(x < 200) }'
growth=$(awk -v a="$(number "$T/few" peak_memory_bytes)" -v b="$(number "$T/many" peak_memory_bytes)" 'BEGIN { print (b - a) / 9000 }')
echo "# $growth bytes for every further client, of the largest rank (with all of what is shared)"
check "below 400 bytes in the largest rank" awk -v x="$growth" 'BEGIN { exit !(x < 400) }'
size() {
    stat -c %s "$1"/checkpoints/*.h5
}
check "a checkpoint does not grow with clients that never took part" test $(($(size "$T/many") - $(size "$T/few"))) -lt 4096

# ---- the base, once per node ----
make_base "$T/large" --set pretrain.width=384 --set pretrain.layers=6 --set pretrain.heads=6 --set data.length=16 --set model.max_length=16
base=$(stat -c %s "$T/large/model.safetensors")
check "the base is large enough to be seen: $base bytes" test "$base" -gt 30000000
population "$T/one" 1 "$T/large" 1000 8
population "$T/four" 4 "$T/large" 1000 8
one=$(number "$T/one" node_pss_bytes)
four=$(number "$T/four" node_pss_bytes)
small=$(number "$T/few" node_pss_bytes)
echo "# node: $one bytes with one rank, $four with four; with a base of nothing $small with four; the base has $base"
check "four ranks need less than two bases more than one rank" awk -v a="$one" -v b="$four" -v base="$base" 'BEGIN { exit !(b > 0 && b - a < 2 * base) }'
check "against a base of nothing: one base, and less than half a base per rank for the work" awk -v a="$small" -v b="$four" -v base="$base" \
    'BEGIN { exit !(b - a > 0.8 * base && b - a < 3 * base) }'
