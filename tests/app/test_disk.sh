#!/usr/bin/env bash
# test_disk.sh - a disk that is full, a memory for sharing that is too small, a folder that cannot be written: exit code 4 and a sentence on all
# ranks, no hang, no crash, and the earlier checkpoint as it was. Needs root, for small file systems in memory; skipped otherwise.
. "$(dirname "$0")/../lib.sh"
. tests/system.sh

mounted=()
leave() {
    local code=$? dir
    for dir in "${mounted[@]}"; do
        umount "$dir"
    done
    (exit "$code")
    tap_end
}
trap leave EXIT

# small_disk DIR SIZE: an empty file system of that size
small_disk() {
    mkdir -p "$1"
    mount -t tmpfs -o size="$2" none "$1" 2>"$T/mount.log" && mounted+=("$1")
}

# fill DIR KIB: all but so much of it
fill() {
    local left
    left=$(df -k --output=avail "$1" | tail -n 1)
    head -c "$(((left - $2) * 1024))" /dev/zero >"$1/ballast"
}

if ! small_disk "$T/disk" 2m; then
    skip "a full disk" "no small file system can be mounted here: $(head -n 1 "$T/mount.log")"
    exit 0
fi
make_base "$T/base"

# a run of a method whose checkpoints hold base (flora) or clients (local_only), on a disk that fills up
full_disk() {
    local method=$1 ranks=$2 left=$3 deck=$T/$1.yaml out=$T/disk/out name="$1 on $2 rank(s), $3 KiB left" code=0 before
    small_deck "$deck" "$method" "$T/base"
    [ -e "$T/$method-ref" ] || expect 0 "$method: the run with room" 2 "$T/$method-ref" "$deck"
    rm -rf "$out" "$T/disk/ballast" "$T/elsewhere"
    launch "$ranks" "$out" "$deck" --maxh 0.00001
    mv "$out.log" "$T/full.log"
    before=$(sha256sum "$out/checkpoints/round-000001.h5")
    fill "$T/disk" "$left"
    fedlora "$ranks" run "$deck" --out "$out" >"$T/full.log" 2>&1 || code=$?
    same "$name: exit code" "$code" 4
    check "$name: the sentence names the folder and the reason" grep -qiE "^fedlora: .*$out.*(no space|full)" "$T/full.log"
    check "$name: no bug, no crash" test -z "$(grep -iE 'bug on rank|signal|segfault|HDF5-DIAG' "$T/full.log")"
    same "$name: the earlier checkpoint is as it was" "$(sha256sum "$out/checkpoints/round-000001.h5")" "$before"
    for file in "$out"/checkpoints/*.h5; do
        check "$name: ${file##*/} is whole" "$FEDLORA" verify "$file"
    done
    cp -r "$out" "$T/elsewhere"
    expect 0 "$name: it goes on elsewhere" 3 "$T/elsewhere" "$deck"
    same "$name: to the same state" "$(state_of "$T/elsewhere.log")" "$(state_of "$T/$method-ref.log")"
    rm "$T/disk/ballast"
    expect 0 "$name: and here, once there is room" 2 "$out" "$deck"
    same "$name: to the same state too" "$(state_of "$out.log")" "$(state_of "$T/$method-ref.log")"
}
full_disk flora 1 60
full_disk flora 3 100
full_disk local_only 2 8
if [ -n "$LONG" ]; then
    for left in 8 16 32 48 64 96 128 160 192; do
        full_disk flora 4 $left
        full_disk local_only 1 $left
    done
fi
rm -rf "$T/disk/"*

# ---- too little memory for sharing: said by all, before anybody writes to it ----
make_base "$T/large" --set pretrain.width=128 --set pretrain.layers=3
small_disk "$T/shm" 1m
deck=$T/fedavg.yaml
small_deck "$deck" fedavg "$T/large"
refuse 4 "too little memory for sharing" "model.share_dir" run "$deck" --out "$T/share-@" --set model.share_dir="$T/shm"
says "it names the place" "$T/refuse-3.log" "$T/shm"
same "nothing is left there" "$(find "$T/shm" -type f | wc -l)" 0
expect 0 "a share_dir with room" 3 "$T/share" "$deck" --set model.share_dir="$T"
expect 0 "and /dev/shm" 2 "$T/share-default" "$deck"
same "give the same state" "$(state_of "$T/share.log")" "$(state_of "$T/share-default.log")"
same "nothing is left in share_dir" "$(find "$T" -maxdepth 1 -name 'fedlora-share*' | wc -l)" 0
refuse 4 "a share_dir that does not exist" "$T/nowhere" run "$deck" --out "$T/share-@" --set model.share_dir="$T/nowhere"

# ---- a folder that cannot be written ----
mount -o remount,ro "$T/disk"
refuse 4 "a read-only output folder" "$T/disk/new" run "$deck" --out "$T/disk/new-@"
: >"$T/file"
refuse 4 "a file where the output folder should be" "$T/file" run "$deck" --out "$T/file"
