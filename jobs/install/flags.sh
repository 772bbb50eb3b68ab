#!/usr/bin/env bash
# flags.sh cflags|libs - compiler or linker flags of the libraries, by pkg-config where it knows them, else plain -lNAME
# (a module's CPATH and LIBRARY_PATH do the rest). The Makefile and deps.sh both ask here, so what is probed is what is built.
# usage: jobs/install/flags.sh cflags | libs
set -u

# one library a line: names pkg-config may know it by, first match wins; then what to link when it knows none
libraries='
hdf5-openmpi hdf5 : -lhdf5
yaml-0.1 : -lyaml
jansson : -ljansson
libxxhash : -lxxhash
liblzma : -llzma
scalapack-openmpi scalapack : -lscalapack
openblas : -lopenblas
'

what=${1:-}
if [ "$what" != cflags ] && [ "$what" != libs ]; then
    echo "usage: jobs/install/flags.sh cflags | libs" >&2
    exit 2
fi
known=$(pkg-config --list-all 2>/dev/null | cut -d' ' -f1)
found=()
plain=()
while IFS=: read -r names fallback; do
    [ -n "$fallback" ] || continue
    for name in $names none; do
        if [ "$name" = none ]; then
            plain+=("${fallback# }")
        elif [[ $'\n'$known$'\n' == *$'\n'$name$'\n'* ]]; then
            found+=("$name")
            break
        fi
    done
done <<<"$libraries"
flags=
if [ ${#found[@]} -gt 0 ]; then
    flags=$(pkg-config "--$what" "${found[@]}" 2>/dev/null)
fi
if [ "$what" = libs ]; then
    flags="${plain[*]-} $flags"
fi
echo "$flags"
