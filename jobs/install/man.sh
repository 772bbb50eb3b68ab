#!/usr/bin/env bash
# man.sh PROGRAM - prints the page fedlora(1): jobs/install/fedlora.1.in with the commands, options and exit codes that the program
# itself names (--complete, --help, COMMAND --help) in place of @COMMANDS@, @SYNOPSIS@, @EXIT@ and @VERSION@.
# usage: jobs/install/man.sh build/fedlora > jobs/install/fedlora.1        normally by: make man
set -euo pipefail
program=${1:?usage: jobs/install/man.sh PROGRAM}
here=$(cd "$(dirname "$0")" && pwd)
export LC_ALL=C
# root in a container may ask for help
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# roff: text as it is; a dot or quote at the start of a line is a command, - is a hyphen unless escaped
roff() {
    sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/^\([.']\)/\\\\\&\1/"
}

# usage_line TEXT: options and literal words bold, what the user names (capitals) in italics
usage_line() {
    roff <<<"$1" | sed -E \
        -e 's/(\\-[-\\a-z]*[a-z])/\\fB\1\\fR/g' \
        -e 's/\b([A-Z]{1,}[A-Z]*)\b/\\fI\1\\fR/g' -e 's/\\f\\fI([BIR])\\fR/\\f\1/g'
}

"$program" --help >"$work/help"
version=$(sed -n 's/^fedlora \([^ ]*\) .*/\1/p' "$work/help" | head -n 1)
"$program" --complete '' | grep -v '^-' >"$work/names"
while IFS= read -r name; do
    "$program" "$name" --help >"$work/one"
    usage=$(head -n 1 "$work/one")
    arguments=${usage#fedlora "$name"}
    {
        echo ".HP"
        printf '\\fBfedlora %s\\fR%s\n' "$name" "$(usage_line "$arguments")"
    } >>"$work/synopsis"
    {
        echo ".SS $name"
        sed -n 3p "$work/one" | roff
        # "  -o, --out DIR      help"
        sed -n '4,$p' "$work/one" | grep '^  ' | while IFS= read -r line; do
            line=${line#  }
            left=${line%%  *}
            help=${line#"$left"}
            if [ "$left" = "$line" ]; then # no room between: the option ends with its value
                left=$(sed -E 's/^((-[a-z], )?--[a-z-]+( [^ ]+)?) .*/\1/' <<<"$line")
                help=${line#"$left"}
            fi
            echo .TP
            usage_line "$left"
            sed -E 's/^ +//' <<<"$help" | roff
        done
    } >>"$work/commands"
done <"$work/names"
sed -n 's/^exit codes: //p' "$work/help" | sed 's/, /\n/g' | while IFS= read -r line; do
    echo .TP
    echo ".B ${line%% *}"
    roff <<<"${line#* }"
done >"$work/exit"

while IFS= read -r line; do
    case $line in
    @SYNOPSIS@) cat "$work/synopsis" ;;
    @COMMANDS@) cat "$work/commands" ;;
    @EXIT@) cat "$work/exit" ;;
    '.\"'*) [ -n "${said:-}" ] || echo '.\" written by make man from the program and jobs/install/fedlora.1.in' && said=1 ;;
    *) printf '%s\n' "${line//@VERSION@/"$version"}" ;;
    esac
done <"$here/fedlora.1.in"
