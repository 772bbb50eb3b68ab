#!/usr/bin/env bash
# test_bad_input.sh - wrong and damaged models, data and settings: one sentence that names the file or key, the right exit code on one rank and
# through mpirun, no hang; and an earlier checkpoint in the output folder stays as it was.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

make_base "$T/base"
make_base "$T/gpt2" --set pretrain.family=gpt2
deck=$T/deck.yaml
small_deck "$deck" fedavg "$T/base"
out=$T/out
expect 0 "the uninterrupted run" 2 "$T/ref" "$deck"
launch 2 "$out-1" "$deck" --maxh 0.00001
same "a run that stopped after a round" "$?" 75
cp -r "$out-1" "$out-3"
checkpoints() {
    (cd "$T" && sha256sum out-[13]/checkpoints/*)
}
before=$(checkpoints)

# bad CODE NAME FRAGMENT [ARGS...]: the deck, changed
bad() {
    local code=$1 name=$2 fragment=$3
    shift 3
    refuse "$code" "$name" "$fragment" run "$deck" --out "$out-@" "$@"
}

# model NAME: a copy of the base to be spoiled
model() {
    cp -r "$T/base" "$T/$1"
    weights=$T/$1/model.safetensors
    config=$T/$1/config.json
}

# ---- deck and folders ----
refuse 4 "missing deck" "$T/none.yaml" run "$T/none.yaml"
refuse 4 "a folder as deck" "$T" run "$T"
bad 4 "missing model" "$T/none" --set model.path="$T/none"
bad 3 "no model at all" "model.path: empty" --set 'model.path=""'
bad 3 "unknown method" "there is no method 'fedagv'; did you mean fedavg?" --set method.name=fedagv
bad 3 "cohort larger than the population" "cohort.size" --set cohort.size=9
bad 3 "more clients than samples" "partition.clients" --set partition.clients=1000
bad 3 "unequal ranks with a method that needs equal ones" "clients.r: fedavg cannot serve clients of unequal rank" --set 'clients.r=[2,4]' \
    --set 'clients.r_share=[0.5,0.5]'
bad 3 "r larger than a matrix" "rank 33 is more than" --set adapter.r=33
bad 3 "a target that this model lacks" "this model has no 'gate'" --set model.path="$T/gpt2" --set 'adapter.targets=[q,gate]'
bad 3 "sequences longer than the context" "model.max_length: 129 is more than the 128 positions" --set model.max_length=129
bad 3 "full training with a method that needs factors" "train.what: full does not go with flora" --set method.name=flora --set train.what=full
refuse 3 "a pinned grid larger than the job" "svd.grid" run "$deck" --out "$T/grid-@" --set method.name=flexlora --set svd.solver=scalapack --set 'svd.grid=[4,4]'

# ---- the model's files ----
model no-config
rm "$config"
bad 4 "config.json missing" "$config" --set model.path="$T/no-config"
model no-weights
rm "$weights"
bad 4 "model.safetensors missing" "has no model.safetensors" --set model.path="$T/no-weights"
model cut-config
truncate -s 100 "$config"
bad 3 "config.json cut off" "$config" --set model.path="$T/cut-config"
model other-type
sed -i 's/"llama"/"opera"/' "$config"
bad 3 "an architecture that is not there" "model_type opera is not supported" --set model.path="$T/other-type"
model huge
sed -i 's/"hidden_size": 32/"hidden_size": 2000000000/' "$config"
bad 3 "an impossible width" "$config" --set model.path="$T/huge"
model wide
sed -i 's/"intermediate_size": [0-9]*/"intermediate_size": 64/' "$config"
bad 3 "weights of another shape than config.json says" "but config.json makes it" --set model.path="$T/wide"
model cut
truncate -s -1000 "$weights"
bad 4 "weights cut off" "$weights" --set model.path="$T/cut"
model cut-header
truncate -s 200 "$weights"
bad 4 "weights cut off in the header" "$weights" --set model.path="$T/cut-header"
model empty
: >"$weights"
bad 4 "weights empty" "$weights" --set model.path="$T/empty"
model no-json
printf 'X' | dd of="$weights" bs=1 seek=8 conv=notrunc status=none
bad 4 "a bit flipped in the header: not JSON" "$weights" --set model.path="$T/no-json"
model length
printf '\377' | dd of="$weights" bs=1 seek=6 conv=notrunc status=none
bad 4 "a bit flipped in the header's length" "$weights" --set model.path="$T/length"
model offsets
sed -i 's/"data_offsets":\[0,/"data_offsets":[4,/' "$weights"
bad 4 "a bit flipped in an offset" "$weights" --set model.path="$T/offsets"
model renamed
sed -i 's/layers.1.self_attn.q_proj.weight/layers.1.self_attn.x_proj.weight/' "$weights"
bad 4 "a tensor missing" "has no tensor model.layers.1.self_attn.q_proj.weight" --set model.path="$T/renamed"
model nan
header=$(od -An -t u8 -N 8 "$weights")
printf '\0\0\300\177' | dd of="$weights" bs=1 seek=$((8 + header + 400)) conv=notrunc status=none
bad 5 "NaN in the weights" "has a NaN, an infinity or a number beyond float at element 100" --set model.path="$T/nan"

# ---- data ----
bad 4 "data file missing" "$T/none.txt" --set data.source="$T/none.txt"
bad 3 "data of unknown format" "$T/data.bin" --set data.source="$T/data.bin"
: >"$T/empty.txt"
bad 3 "data file empty" "$T/empty.txt: there is no record in it" --set data.source="$T/empty.txt"
for ((i = 0; i < 400; i++)); do
    echo "line $i is $((i * i % 97)) and $((i * 7919 % 1009))"
done >"$T/lines.txt"
printf 'text,who\n"never closed,ann\n' >"$T/quote.csv"
bad 3 "csv with an open quote" "$T/quote.csv:2: the quote that opens here is never closed" --set data.source="$T/quote.csv"
printf '{"text": "a good line"}\n{"text": \n' >"$T/line.jsonl"
bad 3 "jsonl with a broken line" "$T/line.jsonl:2: not valid JSON" --set data.source="$T/line.jsonl"
if xz -k "$T/lines.txt" 2>/dev/null; then
    truncate -s -40 "$T/lines.txt.xz"
    bad 4 "xz cut off" "$T/lines.txt.xz: cannot be unpacked" --set data.source="$T/lines.txt.xz"
    printf '\125\252' | dd of="$T/lines.txt.xz" bs=1 seek=200 conv=notrunc status=none
    bad 4 "xz damaged" "$T/lines.txt.xz: cannot be unpacked" --set data.source="$T/lines.txt.xz"
else
    skip "xz cut off" "no xz"
fi
if make_dataset good "$T/good.h5"; then
    expect 0 "a good HDF5 data set" 3 "$T/h5" "$deck" --set data.source="$T/good.h5"
    size=$(stat -c %s "$T/good.h5")
    cp "$T/good.h5" "$T/cut.h5"
    truncate -s $((size / 2)) "$T/cut.h5"
    bad 4 "HDF5 cut off" "$T/cut.h5" --set data.source="$T/cut.h5"
    head -c "$size" /dev/zero >"$T/zero.h5"
    bad 4 "not an HDF5 file" "$T/zero.h5" --set data.source="$T/zero.h5"
    for kind in offsets token split; do
        make_dataset "$kind" "$T/$kind.h5"
    done
    bad 3 "HDF5 with offsets that go down" "$T/offsets.h5: /offsets[30] is below the one before it" --set data.source="$T/offsets.h5"
    bad 3 "HDF5 with a token that the model lacks" "holds token 256, but the model knows only 0 to 255" --set data.source="$T/token.h5"
    bad 3 "HDF5 with a split that does not exist" "$T/split.h5: /split[7] is 3" --set data.source="$T/split.h5"
else
    not_ok "the writer of data sets builds" "$(cat "$T/dataset.log")"
fi

# ---- nothing of that harmed the run ----
same "the earlier checkpoint is as it was" "$(checkpoints)" "$before"
# another model under the same name does not continue this run
mv "$T/base" "$T/base-kept"
make_base "$T/base" --set run.seed=5
bad 3 "other weights under the same name" "holds other weights than the run was begun with"
rm -r "$T/base"
mv "$T/base-kept" "$T/base"
same "the earlier checkpoint is still as it was" "$(checkpoints)" "$before"
for ranks in 1 3; do
    expect 0 "the run goes on from it" 2 "$out-$ranks" "$deck"
    says "from round 1" "$out-$ranks.log" "resumed   round 1 from"
    same "to the same state" "$(state_of "$out-$ranks.log")" "$(state_of "$T/ref.log")"
done

# ---- numbers that explode: weights grow ninefold with each step by a decay that overshoots; the last good checkpoint stands ----
args=(--set train.optimizer=sgd --set train.clip=0 --set train.lr=0.1 --set train.weight_decay=100)
out=$T/explodes
expect 5 "numbers that explode" 2 "$out" "$deck" "${args[@]}" --set run.rounds=200
check "it names round, client and key" grep -qE '^fedlora: .*round [0-9]+, client [0-9]+: .*lower train\.lr' "$out.log"
same "in one sentence" "$(grep -c '^fedlora: ' "$out.log")" 1
last=$(sed -n 's/^ *\([0-9]*\)  *[0-9].*/\1/p' "$out.log" | tail -n 1)
check "some rounds went well" test "$last" -ge 1
expect 5 "again, on other ranks: the same" 3 "$out" "$deck" "${args[@]}" --set run.rounds=200
says "from the last good round" "$out.log" "resumed   round $last from"
expect 0 "what was reached is there" 1 "$out" "$deck" "${args[@]}" --set run.rounds="$last"
check "its state" test -n "$(state_of "$out.log")"
check "its checkpoint is whole" "$FEDLORA" verify "$(find "$out/checkpoints" -name '*.h5' | sort | tail -n 1)"
refuse 5 "a learning rate that is far too large" "lower train.lr" run "$deck" --out "$T/nan-@" --set train.optimizer=sgd --set train.clip=0 \
    --set train.lr=1000 --set train.steps=50
