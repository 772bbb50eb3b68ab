#!/usr/bin/env bash
# run.sh - builds every tests/fuzz/fuzz_*.c with clang's fuzzer, address and undefined-behaviour sanitizers against the library's
# sources and runs each for FUZZ_SECONDS. Seeds: tests/fuzz/corpus/NAME; what is found new stays in $B/fuzz/found-NAME, an
# input that fails in $B/fuzz/NAME-crash-*. Prints TAP.
# usage: [FUZZ_SECONDS=60] [B=build] tests/fuzz/run.sh [PART-OF-A-NAME]
. "$(dirname "$0")/../lib.sh"
seconds=${FUZZ_SECONDS:-60}
place=$B/fuzz
mkdir -p "$place" || exit 1

clang=
for tool in clang clang-14 clang-15 clang-16 clang-17 clang-18 clang-19; do
    if command -v "$tool" >/dev/null 2>&1; then
        clang=$tool
        break
    fi
done
if [ -z "$clang" ]; then
    skip "fuzzers" "clang is not installed (Debian: clang libclang-rt-14-dev)"
    exit 0
fi
cat >"$T/probe.c" <<'EOF'
#include <stddef.h>
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n)
{
    return data == 0 && n == 1;
}
EOF
if ! "$clang" -fsanitize=fuzzer,address,undefined -o "$T/probe" "$T/probe.c" >/dev/null 2>&1; then
    skip "fuzzers" "$clang has no fuzzer runtime (Debian: libclang-rt-14-dev)"
    exit 0
fi

export OMPI_CC=$clang
cflags="-std=c11 -D_GNU_SOURCE -Iinclude -Itests -O1 -g -fno-omit-frame-pointer $(jobs/install/flags.sh cflags)"
sanitizers=address,undefined
# leaks of the parsers count, but MPI's would hide them, and a fuzzer that needs MPI turns this off by ASAN_OPTIONS
export ASAN_OPTIONS=${FUZZ_ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=1}
export UBSAN_OPTIONS=print_stacktrace=1

# object SOURCE SANITIZERS: compiles what has changed since; prints the object's name
object() {
    local out=$place/${1%.c}.o
    mkdir -p "$(dirname "$out")"
    if [ ! -e "$out" ] || [ -n "$(find "$1" include tests/harness.h "$(dirname "$1")" -newer "$out" -name '*.[ch]' -print -quit)" ]; then
        # a list of flags
        # shellcheck disable=SC2086
        mpicc $cflags -fsanitize="$2" -fno-sanitize-recover=undefined -c -o "$out" "$1" >&2 || return 1
    fi
    echo "$out"
}
export -f object
export place cflags

sources=$(find src -name '*.c' ! -path src/app/main.c | sort)
if ! objects=$(printf '%s\n' "$sources" | xargs -P 2 -I{} bash -c "object {} fuzzer-no-link,$sanitizers" 2>"$T/build"); then
    not_ok "the library builds with $clang and its sanitizers" "$(tail -n 40 "$T/build")"
    exit 1
fi
for file in tests/fuzz/fuzz_*.c; do
    [ -e "$file" ] || continue
    name=$(basename "$file" .c)
    [[ $name == *"${1:-}"* ]] || continue
    # lists of objects and flags
    # shellcheck disable=SC2046
    if ! main=$(object "$file" "fuzzer,$sanitizers" 2>"$T/build") || ! mpicc -fsanitize="fuzzer,$sanitizers" -o "$place/$name" "$main" \
        $(sort <<<"$objects") $(jobs/install/flags.sh libs) -lm 2>>"$T/build"; then
        not_ok "$name builds" "$(tail -n 40 "$T/build")"
        continue
    fi
    mkdir -p "$place/found-$name"
    corpus=("$place/found-$name")
    [ ! -d "tests/fuzz/corpus/${name#fuzz_}" ] || corpus+=("tests/fuzz/corpus/${name#fuzz_}")
    [ ! -d "tests/fuzz/corpus/$name" ] || corpus+=("tests/fuzz/corpus/$name")
    code=0
    "$place/$name" -max_total_time="$seconds" -timeout="${FUZZ_TIMEOUT:-10}" -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$place/$name-" "${corpus[@]}" >"$place/$name.log" 2>&1 </dev/null || code=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$place/$name.log")
    if [ "$code" -eq 0 ] && [ "${runs:-0}" -gt 0 ]; then
        ok "$name: $runs inputs in $seconds s"
    else
        not_ok "$name: exit code $code" "$(tail -n 60 "$place/$name.log")"
    fi
done
# shellcheck disable=SC2154
if [ "$tap_seen" -eq 0 ]; then
    not_ok "no fuzzer matches"
fi
