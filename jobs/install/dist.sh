#!/usr/bin/env bash
# dist.sh - makes fedlora-VERSION.tar.gz: with git the last commit (git archive), without it the files of the tree by their places.
# jobs/install/REVISION in it keeps the commit's name for `fedlora --version`. The same tree gives the same bytes.
# usage: [B=build] jobs/install/dist.sh [FOLDER]        the tar file is put into FOLDER (default: B);  normally by: make dist
set -eu
cd "$(dirname "$0")/../.."
export LC_ALL=C
into=${1:-${B:-build}}
version=$(awk '$2 == "FL_VERSION" { gsub(/"/, "", $3); print $3 }' include/fedlora/base.h)
name=fedlora-$version
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/$name/jobs/install" "$into"
plain=(--owner=root:0 --group=root:0 "--mode=u+rw,go+r-w" --format=ustar)

if [ -e .git ] && git rev-parse -q --verify HEAD >/dev/null 2>&1; then
    git describe --always HEAD >"$work/$name/jobs/install/REVISION"
    [ -z "$(git --no-optional-locks status --porcelain --untracked-files=no)" ] || echo "dist: the tree has changes that are not committed; they are left out" >&2
    git archive --format=tar --prefix="$name/" HEAD >"$work/tar"
    tar "${plain[@]}" --mtime="@$(git log -1 --format=%ct)" -C "$work" -rf "$work/tar" "$name/jobs/install/REVISION"
else
    revision=unknown
    [ ! -f jobs/install/REVISION ] || revision=$(cat jobs/install/REVISION)
    # our places only: nothing that a build, a run or an editor made
    find .ci .clang-format .gitignore Makefile ./*.md CITATION.cff LICENSE NOTICE include src inputs jobs tests analysis \
        -name __pycache__ -prune -o -type f ! -name '*.pyc' ! -name '*.[ao]' ! -name '*~' ! -name '.*.sw?' -print 2>/dev/null |
        sed 's,^\./,,' | sort >"$work/list"
    newest=$(tr '\n' '\0' <"$work/list" | xargs -0 stat -c %Y | sort -n | tail -n 1)
    tr '\n' '\0' <"$work/list" | tar -C . --null --files-from=- -cf - | tar -C "$work/$name" -xf -
    echo "$revision" >"$work/$name/jobs/install/REVISION"
    tar "${plain[@]}" --sort=name --mtime="@$newest" -C "$work" -cf "$work/tar" "$name"
fi
gzip -9 -n <"$work/tar" >"$into/$name.tar.gz"
echo "$into/$name.tar.gz: $(tar -tf "$work/tar" | grep -vc '/$') files"
