#!/usr/bin/env bash
# deps.sh - is everything there to build and test fedlora? Asks the compiler, not the package manager, so it is right on a
# cluster with modules too. What is missing is installed with apt-get as root or by sudo without a password; else it is listed
# (Debian packages, names of modules) and the exit code is 3. Silent and quick when nothing is missing; nothing is cached.
# usage: [MPICC=mpicc] jobs/install/deps.sh [--list]      --list prints what is missing and installs nothing
set -u
cd "$(dirname "$0")/../.." || exit 4
cc=${MPICC:-mpicc}
work=$(mktemp -d) || exit 4
trap 'rm -rf "$work"' EXIT

# package : usual module on a cluster : what a program includes : one function it calls
libraries='
libopenmpi-dev : openmpi : mpi.h : MPI_Init
libhdf5-openmpi-dev : hdf5 (parallel) : hdf5.h : H5Pset_fapl_mpio
libscalapack-openmpi-dev : scalapack : - : pdgesvd_
libopenblas-dev : openblas : cblas.h : openblas_set_num_threads
libyaml-dev : libyaml : yaml.h : yaml_parser_parse
libjansson-dev : jansson : jansson.h : json_loadb
libxxhash-dev : xxhash : xxhash.h : XXH3_64bits
liblzma-dev : xz : lzma.h : lzma_stream_decoder
libcmocka-dev : cmocka : cmocka.h : _cmocka_run_group_tests
librandom123-dev : random123 : Random123/philox.h : -
'
tools='
build-essential : gcc : ar
openmpi-bin : openmpi : mpirun
openmpi-bin : openmpi : mpiexec
pkg-config : pkg-config : pkg-config
'

# source_of: a program that includes and calls what the rows read from stdin name
source_of() {
    local package module header symbol includes='' calls='' declared=''
    while IFS=: read -r package module header symbol; do
        header=${header// /} symbol=${symbol// /}
        [ -n "$symbol" ] || continue
        [ "$header" = - ] || includes+="#include <$header>"$'\n'
        [ "$header" = - ] && [ "$symbol" != - ] && declared+="void $symbol(void);"$'\n'
        [ "$symbol" = - ] || calls+="    n += (void *)$symbol != stdin;"$'\n'
    done
    cat <<EOF
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
$includes
#if defined(WANT_OPEN_MPI) && !defined(OPEN_MPI)
#error "the compiler wrapper is not Open MPI's; choose it: update-alternatives --config mpi, or CC=mpicc.openmpi"
#endif
$declared
int main(void)
{
    int n = 0;
$calls
    return n;
}
EOF
}

# compiles NAME: builds what stdin says; messages in $work/NAME.err
compiles() {
    source_of >"$work/$1.c"
    # word splitting is wanted: these are lists of flags
    # shellcheck disable=SC2086
    "$cc" -std=gnu11 -w $cflags ${want:-} -o "$work/$1" "$work/$1.c" $libs -lcmocka -lm >"$work/$1.err" 2>&1
}

# like compiles, for one row, with nothing linked that the row does not need
compiles_alone() {
    local link=()
    case $1 in
    libhdf5*) read -ra link <<<"$(grep -oE -- '-L[^ ]*hdf5[^ ]*' <<<"$libs" | tr '\n' ' ') -lhdf5" ;;
    libscalapack*) read -ra link <<<"$(grep -oE -- '-lscalapack[^ ]*' <<<"$libs" | head -n 1)" ;;
    libopenblas*) read -ra link <<<"$(grep -oE -- '-L[^ ]*openblas[^ ]*' <<<"$libs" | tr '\n' ' ') -lopenblas" ;;
    libyaml*) link=(-lyaml) ;;
    libjansson*) link=(-ljansson) ;;
    libxxhash*) link=(-lxxhash) ;;
    liblzma*) link=(-llzma) ;;
    libcmocka*) link=(-lcmocka) ;;
    esac
    source_of >"$work/one.c"
    # shellcheck disable=SC2086
    "$cc" -std=gnu11 -w $cflags -o "$work/one" "$work/one.c" "${link[@]}" >"$work/one.err" 2>&1
}

look() {
    cflags=$(jobs/install/flags.sh cflags)
    libs=$(jobs/install/flags.sh libs)
    want=
    case "$cflags $libs" in *openmpi*) want=-DWANT_OPEN_MPI ;; esac
    missing=()
    modules=()
    local package module what row
    while IFS=: read -r package module what; do
        what=${what// /}
        if [ -n "$what" ] && ! command -v "$what" >/dev/null 2>&1; then
            add "$package" "$module"
        fi
    done <<<"$tools"
    compiles all <<<"$libraries" && return
    echo 'int main(void) { return 0; }' >"$work/cc.c"
    if ! "$cc" -o "$work/cc" "$work/cc.c" >/dev/null 2>&1 && ! cc -o "$work/cc" "$work/cc.c" >/dev/null 2>&1; then
        add build-essential gcc
    fi
    while IFS= read -r row; do
        IFS=: read -r package module what <<<"$row"
        if [ -n "$package" ] && ! compiles_alone "$package" <<<"$row"; then
            add "$package" "$module"
        fi
    done <<<"$libraries"
    [ ${#missing[@]} -gt 0 ] || broken=1
}

add() {
    local package=${1// /} module=${2# }
    module=${module% }
    case " ${missing[*]-} " in *" $package "*) return ;; esac
    missing+=("$package")
    modules+=("$module")
}

broken=0
why="there is no apt-get"
look
if [ "${1:-}" = --list ]; then
    printf '%s\n' "${missing[@]-}"
    exit 0
fi
if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null 2>&1; then
    root=()
    if [ "$(id -u)" -ne 0 ]; then
        root=(sudo -n)
    fi
    why="apt-get needs root, or sudo without a password"
    if [ ${#root[@]} -eq 0 ] || sudo -n true >/dev/null 2>&1; then
        why="apt-get did not install them"
        echo "deps: installing ${missing[*]}" >&2
        apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
        # a stale list of packages may do, so a failed update is not the end
        "${root[@]}" "${apt[@]}" update </dev/null >"$work/apt.log" 2>&1
        # C's libraries only: no documentation, no graphical extras; what is installed keeps its version
        if ! "${root[@]}" "${apt[@]}" install -y --no-install-recommends --no-upgrade "${missing[@]}" </dev/null >>"$work/apt.log" 2>&1; then
            tail -n 20 "$work/apt.log" >&2
        fi
        hash -r
        look
    fi
fi
if [ ${#missing[@]} -gt 0 ]; then
    {
        echo "deps: libraries or tools are missing, and $why."
        echo "  Debian, Ubuntu: apt-get install ${missing[*]}"
        printf '  cluster: module load'
        printf '%s\n' "${modules[@]}" | awk '!seen[$0]++ { printf "%s %s", comma, $0; comma = "," }'
        echo "  (names differ from site to site)"
    } >&2
    exit 3
fi
if [ "$broken" -ne 0 ]; then
    {
        echo "deps: every library is there alone, but a program with all of them does not link:"
        head -n 15 "$work/all.err"
        echo "deps: mixed MPI libraries? All of hdf5, scalapack and $cc must belong to the same one."
    } >&2
    exit 3
fi
exit 0
