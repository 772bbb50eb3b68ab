#!/usr/bin/env bash
# test_effects.sh - the scripts of this folder end with a verdict. 1 to 3 are mathematics: theirs must be "reproduced". With FEDLORA_LONG=1 also
# 4 to 6, trainings, of which any verdict will do.
. "$(dirname "$0")/../lib.sh"

if ! command -v python3 >/dev/null 2>&1; then
    skip "published effects" "there is no python3"
    exit
fi
numbers=(1 2 3)
[ -z "${FEDLORA_LONG:-}" ] || numbers+=(4 5 6)
tests/effects/run.sh "${numbers[@]}" >"$T/log" 2>&1 </dev/null
for number in "${numbers[@]}"; do
    line=$(grep "^$number: " "$T/log")
    case $line in
    *"VERDICT reproduced") ok "effect $number: reproduced" ;;
    *"VERDICT not reproduced" | *"VERDICT partly")
        if [ "$number" -ge 4 ]; then
            ok "effect $number: ${line##*VERDICT }"
        else
            not_ok "effect $number" "$(cat "$T/log")"
        fi
        ;;
    *) not_ok "effect $number: no verdict" "$(cat "$T/log")" ;;
    esac
done
