#!/usr/bin/env bash
# install.sh install|uninstall - copies the program and what belongs to it under DESTDIR/PREFIX, and takes it away again. What was
# made is listed in share/fedlora/manifest, so uninstalling removes these files, the folders that installing made, and nothing else;
# installing a newer version removes what the older one had and the newer has not.
#   bin/fedlora                                       share/man/man1/fedlora.1
#   share/fedlora/{README.md,LICENSE,inputs,jobs,analysis}   share/fedlora/modulefiles/fedlora/VERSION[.lua]
#   share/bash-completion/completions/fedlora
# usage: [PREFIX=/usr/local] [DESTDIR=] [B=build] jobs/install/install.sh install|uninstall      normally by: make install
set -euf
cd "$(dirname "$0")/../.."
umask 022
export LC_ALL=C
prefix=${PREFIX:-/usr/local}
program=${B:-build}/fedlora
top=${DESTDIR:-}$prefix
share=share/fedlora
list=$top/$share/manifest
version=$(awk '$2 == "FL_VERSION" { gsub(/"/, "", $3); print $3 }' include/fedlora/base.h)

case $prefix in
/*) ;;
*)
    echo "install: PREFIX is '$prefix'; it must be an absolute path, because the modulefile names it" >&2
    exit 2
    ;;
esac

folders=() files=() made=() before=()

# folder PATH: makes it and remembers what was not there
folder() {
    [ ! -d "$top/$1" ] || return 0
    case $1 in */*) folder "${1%/*}" ;; esac
    mkdir "$top/$1"
    folders+=("$1")
}

# put MODE FILE PATH
put() {
    case $3 in */*) folder "${3%/*}" ;; esac
    install -m "$1" "$2" "$top/$3"
    files+=("$3")
}

# fill TEMPLATE PATH: with prefix and version in their places
fill() {
    local text
    text=$(cat "$1")
    text=${text//@PREFIX@/"$prefix"}
    text=${text//@VERSION@/"$version"}
    printf '%s\n' "$text" >"$work/filled"
    put 644 "$work/filled" "$2"
}

# remember: what an earlier installation at this place made
remember() {
    local kind path
    made=() before=()
    [ -f "$list" ] || return 0
    while read -r kind path; do
        case $kind in
        folder) made+=("$path") ;;
        file) before+=("$path") ;;
        esac
    done <"$list"
}

install_all() {
    local file mode path
    remember
    if [ ! -d "$top" ]; then
        mkdir -p "$top"
        folders+=(.)
    fi
    put 755 "$program" bin/fedlora
    put 644 README.md $share/README.md
    put 644 LICENSE $share/LICENSE
    # jobs/install is about building; what hides or was left by Python and editors does not belong to us
    while IFS= read -r -d '' file; do
        mode=644
        [ ! -x "$file" ] || mode=755
        put $mode "$file" "$share/$file"
    done < <(find inputs jobs analysis \( -name __pycache__ -o -name '.?*' -o -path jobs/install \) -prune -o \
        -type f ! -name '*.pyc' ! -name '*~' -print0 | sort -z)
    put 644 jobs/install/fedlora.1 share/man/man1/fedlora.1
    put 644 jobs/install/completion.bash share/bash-completion/completions/fedlora
    fill jobs/install/modulefile.tcl "$share/modulefiles/fedlora/$version"
    fill jobs/install/modulefile.lua "$share/modulefiles/fedlora/$version.lua"
    for path in ${before[@]+"${before[@]}"}; do
        printf '%s\n' "${files[@]}" | grep -qxF -e "$path" -e "$share/manifest" || rm -f "$top/$path"
    done
    {
        for path in ${made[@]+"${made[@]}"} ${folders[@]+"${folders[@]}"}; do
            echo "folder $path"
        done
        printf 'file %s\n' "${files[@]}" $share/manifest
    } >"$work/manifest"
    install -m 644 "$work/manifest" "$list"
    echo "installed fedlora $version in $top: ${#files[@]} files; try: $top/bin/fedlora --help, $top/$share/jobs/quickstart.sh"
}

uninstall_all() {
    local path
    if [ ! -f "$list" ]; then
        echo "uninstall: $list is not there: nothing was installed with PREFIX=$prefix${DESTDIR:+ DESTDIR=$DESTDIR}" >&2
        exit 4
    fi
    remember
    for path in ${before[@]+"${before[@]}"}; do
        rm -f "$top/$path"
    done
    # the innermost first; one that somebody else uses now is not empty and stays
    [ ${#made[@]} -eq 0 ] || printf '%s\n' "${made[@]}" | sort -r | while IFS= read -r path; do
        [ "$path" != . ] || path=
        rmdir "$top${path:+/$path}" 2>/dev/null || true
    done
    echo "uninstalled fedlora from $top"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case ${1:-} in
install) install_all ;;
uninstall) uninstall_all ;;
*)
    echo "usage: [PREFIX=/usr/local] [DESTDIR=] [B=build] jobs/install/install.sh install|uninstall" >&2
    exit 2
    ;;
esac
