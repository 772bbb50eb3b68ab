# completion.bash - words for `fedlora` in bash. The program is asked (fedlora --complete WORD...), so commands, options, deck keys and
# their values are those of the version in PATH. Installed as share/bash-completion/completions/fedlora, which bash-completion loads
# when PREFIX is /usr or /usr/local; elsewhere:  source PREFIX/share/bash-completion/completions/fedlora
# zsh:  autoload -U +X compinit bashcompinit; compinit; bashcompinit; source this file
# shellcheck shell=bash

_fedlora() {
    local line word candidate typed what before='' start=0 i
    local -a words=()
    COMPREPLY=()
    # the words as typed: bash also cuts at = and :, which belong to --set section.key=value
    line=${COMP_LINE:0:COMP_POINT}
    read -ra words <<<"$line"
    [[ $line != *[[:space:]] ]] || words+=('')
    # "mpirun -n 4 fedlora run ..." also comes here when bash-completion completes the command after mpirun
    for ((i = 0; i < ${#words[@]}; i++)); do
        if [[ ${words[i]##*/} == fedlora ]]; then
            start=$((i + 1))
        fi
    done
    ((start > 0 && start < ${#words[@]})) || return 0
    word=${words[start - 1]}
    typed=${words[${#words[@]} - 1]}
    # what bash does not take for a part of the last word must not be offered again
    if [[ $typed == *=* && ${COMP_WORDBREAKS:-} == *=* ]]; then
        before=${typed%"${typed##*=}"}
    fi
    while IFS= read -r candidate; do
        case $candidate in
        @file | @dir)
            compopt -o filenames 2>/dev/null
            what=-f
            [[ $candidate == @file ]] || what=-d
            while IFS= read -r candidate; do
                COMPREPLY+=("$candidate")
            done < <(compgen "$what" -- "$typed")
            ;;
        *)
            # after key= the value follows at once
            [[ $candidate != *= ]] || compopt -o nospace 2>/dev/null
            COMPREPLY+=("${candidate#"$before"}")
            ;;
        esac
    done < <("${word/#\~/$HOME}" --complete "${words[@]:start}" 2>/dev/null)
}
complete -F _fedlora fedlora
