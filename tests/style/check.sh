#!/usr/bin/env bash
# check.sh - rules that a compiler does not know: layers, who may call what, every method complete, formatting, the shape of the
# tree. Prints TAP; long files and functions are only warned about ("# warning"). Tools that are absent are skipped.
# usage: tests/style/check.sh        normally by: make check-style
. "$(dirname "$0")/../lib.sh"

# FILE...: the files without comments and string contents, each line as FILE:LINE:text
uncommented() {
    awk '
    FNR == 1 { inside = 0 }
    {
        line = $0
        out = ""
        while (line != "") {
            if (inside) {
                at = index(line, "*/")
                if (at == 0) { line = ""; break }
                line = substr(line, at + 2)
                inside = 0
            } else if (match(line, /\/\*|\/\/|"([^"\\]|\\.)*"|'"'"'([^'"'"'\\]|\\.)'"'"'/)) {
                found = substr(line, RSTART, RLENGTH)
                out = out substr(line, 1, RSTART - 1)
                line = substr(line, RSTART + RLENGTH)
                if (found == "/*") inside = 1
                else if (found == "//") line = ""
                else if ($0 ~ /^[ \t]*#[ \t]*include/) out = out found
                else out = out "\"\""
            } else {
                out = out line
                line = ""
            }
        }
        if (out ~ /[^ \t]/) print FILENAME ":" FNR ":" out
    }' "$@" </dev/null
}

# files PATTERN... under the folders that hold our text; nothing that was built, nothing that is wrong on purpose
files() {
    local pattern arguments=()
    for pattern in "$@"; do
        arguments+=(-o -name "$pattern")
    done
    find Makefile .ci include src inputs jobs tests analysis ./*.md \( "${arguments[@]:1}" \) -type f ! -path '*/__pycache__/*' ! -path '*/fixtures/*' ! -path '*/corpus/*' ! -path '*/bad_*' 2>/dev/null | sort
}

# none NAME TEXT: ok if TEXT is empty
none() {
    if [ -z "$2" ]; then
        ok "$1"
    else
        not_ok "$1" "$(head -n 60 <<<"$2")"
    fi
}

mapfile -t sources < <(files '*.c' '*.h')
mapfile -t programs < <(files '*.c')
mapfile -t scripts < <(files '*.sh'; [ ! -f .ci/run ] || echo .ci/run)
uncommented "${sources[@]}" >"$T/code"

# a layer may use what is to its left, and itself
layers='base deck comm la adapter nn data io fed methods app'
none "layers: include only what is to the left of one's own ($layers)" "$(awk -v layers="$layers" '
    BEGIN { n = split(layers, name, " "); for (i = 1; i <= n; i++) level[name[i]] = i; level["app"] = level["methods"] }
    match($0, /#[ \t]*include[ \t]*"fedlora\/[a-z]+\.h"/) {
        split($0, place, ":")
        used = substr($0, RSTART, RLENGTH); sub(/.*fedlora\//, "", used); sub(/\.h".*/, "", used)
        own = place[1]
        if (own ~ /^src\//) { sub(/^src\//, "", own); sub(/\/.*/, "", own) }
        else if (own ~ /^include\//) { sub(/.*\//, "", own); sub(/\.h$/, "", own) }
        else next
        if (!(own in level)) print place[1] ": unknown layer " own
        else if (!(used in level)) print place[1] ":" place[2] ": unknown header " used ".h"
        else if (level[used] > level[own]) print place[1] ":" place[2] ": " own " may not include " used ".h"
    }' "$T/code")"

none "MPI only in base, comm, la/grid, io, fed/split, app" "$(grep -E '^(src|include)/' "$T/code" | grep -E '\bMPI_[A-Za-z]|[<"]mpi\.h' |
    grep -vE '^(src/(base|comm|io|app)/|src/la/grid|src/fed/split|include/fedlora/(base|comm|la|io)\.h:)')"
none "HDF5 only in io and data/dataset" "$(grep -E '^(src|include)/' "$T/code" | grep -E '\bH5[A-Z]+[a-z_]+ *\(|[<"]hdf5\.h' |
    grep -vE '^(src/io/|src/data/dataset)')"
none "ScaLAPACK, BLACS, LAPACK and BLAS only in la" "$(grep -E '^(src|include)/' "$T/code" |
    grep -E '\b(Cblacs_|p[sd](gemm|geqrf|gesvd|orgqr)_|cblas_|LAPACKE_|[sd](gesdd|gesvd|geqrf|orgqr)_)' | grep -vE '^src/la/')"
none "MPI_COMM_WORLD only where the program starts (app) or aborts (base)" "$(grep -E '^(src|include)/' "$T/code" | grep -w MPI_COMM_WORLD |
    grep -vE '^src/(app|base)/')"

# methods: one sorted line, one file, one deck, a test, nothing but mathematics
list=$(grep -oE '\bX\([a-z0-9_]+\)' src/methods/methods.def 2>/dev/null | sed 's/^X(//; s/)$//')
none "methods.def is sorted" "$(diff <(echo "$list") <(LC_ALL=C sort -u <<<"$list"))"
none "every file of src/methods is registered" "$(for file in src/methods/*.c; do
    name=$(basename "$file" .c)
    grep -qx "$name" <<<"$list" || echo "$file: no line X($name) in methods.def"
done)"
for name in $list; do
    none "method $name is complete" "$(
        [ -f "src/methods/$name.c" ] || echo "src/methods/$name.c is missing"
        grep -rqE "(\"$name\"|bed_traffic\(\"$name\")" tests/methods/test_*traffic*.c || grep -rqE "bed_traffic\([^;]*\"$name\"" tests/methods/test_*.c ||
            echo "no test holds its traffic against a formula (bed_traffic)"
        [ -f "inputs/methods/$name.yaml" ] || echo "inputs/methods/$name.yaml is missing"
        grep -rqw --include='test_*' --include='*.py' --include='*.sh' "$name" tests --exclude-dir=style || echo "no test mentions $name"
        head -n 1 "src/methods/$name.c" | grep -qE "^/\* $name - " || echo "src/methods/$name.c: the first line must read: /* $name - what it does"
        head -n 20 "src/methods/$name.c" | grep -qE 'Source:|local_only - ' || echo "src/methods/$name.c: the opening comment names no Source:"
    )"
done
none "methods include fed.h and mathematics only" "$(grep -E '^src/methods/' "$T/code" | grep -E '#[ \t]*include' |
    grep -vE '#[ \t]*include[ \t]*("fedlora/fed\.h"|<math\.h>|<string\.h>)')"
none "methods neither allocate nor print" "$(grep -E '^src/methods/' "$T/code" | grep -E '\b(malloc|calloc|realloc|free|fl_alloc|printf|fprintf|fopen|exit|abort)[ ]*\(')"

none "no tabs" "$(files '*.c' '*.h' '*.def' '*.sh' '*.py' '*.yaml' | xargs grep -nP '\t' | cut -c 1-120)"
none "no blanks at the end of a line" "$(files '*.c' '*.h' '*.def' '*.sh' '*.py' '*.yaml' Makefile | xargs grep -nE '[[:blank:]]+$' | cut -c 1-120)"
none "no path of one machine" "$(files '*.c' '*.h' '*.def' '*.sh' '*.py' '*.yaml' '*.md' Makefile | xargs grep -nE '(^|[^A-Za-z0-9_.}/])/(home|root|work|Users)/[A-Za-z0-9_]' | cut -c 1-160)"
none "C sources open with a comment: name - what it is" "$(for file in $(files '*.c' '*.h' | grep -E '^(src|include)/'); do
    name=$(basename "$file")
    head -n 1 "$file" | grep -qE "^/\* (${name//./\\.}|${name%.*}) - " || echo "$file: $(head -n 1 "$file" | cut -c 1-60)"
done)"
none "scripts can be executed" "$(for file in "${scripts[@]}"; do
    # without a first line #! it is read by others, not run
    [ -x "$file" ] || ! head -n 1 "$file" | grep -q '^#!' || echo "$file"
done)"

# the top level: what is there has a reason; what a build or a run made is not looked at
none "top level holds only what belongs there" "$(for file in .[!.]* *; do
    case $file in
    Makefile | README.md | LICENSE | CHANGELOG.md | CONTRIBUTING.md | CITATION.cff | NOTICE) ;;
    include | src | inputs | jobs | tests | analysis) ;;
    .git | .ci | .github | .gitignore | .gitattributes | .clang-format | .editorconfig) ;;
    build* | runs | models | reports | __pycache__) ;;
    *) echo "$file" ;;
    esac
done)"
none "every folder has a README" "$(for dir in src include jobs inputs tests analysis; do
    [ -f "$dir/README.md" ] || echo "$dir/README.md is missing"
done)"

# the formatting is that of one version; others differ in detail
formatter=
for tool in clang-format-14 clang-format; do
    if "$tool" --version 2>/dev/null | grep -q 'version 14\.'; then
        formatter=$tool
        break
    fi
done
if [ -n "$formatter" ]; then
    # headers are laid out by hand, as tables
    none "clang-format" "$("$formatter" --dry-run "${programs[@]}" 2>&1 | grep -E '^[^ ]+:[0-9]+:[0-9]+: warning:' | cut -d: -f1 |
        uniq -c | awk '{ print $2 ": " $1 " places; run make format" }')"
else
    skip "clang-format" "clang-format 14 is not installed"
fi
if command -v shellcheck >/dev/null 2>&1; then
    none "shellcheck" "$(shellcheck -S warning -e SC1091 -f gcc "${scripts[@]}" 2>&1)"
else
    skip "shellcheck" "shellcheck is not installed"
fi

wc -l "${sources[@]}" | awk '$2 != "total" && $1 > 400 { print "# warning: " $2 " has " $1 " lines (400)" }'
awk '
    FNR == 1 { start = 0 }
    /^\{/ { start = FNR; name = before }
    /^\}/ { if (start && FNR - start - 1 > 60) print "# warning: " FILENAME ":" start ": " FNR - start - 1 " lines (60): " substr(name, 1, 60); start = 0 }
    { before = $0 }' "${programs[@]}"
