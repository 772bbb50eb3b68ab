#!/usr/bin/env bash
# test_install.sh - make install, uninstall, dist and man: the installed program and decks work in any folder, for root and for an
# unprivileged user; nothing is left afterwards; the packaging files name the version, packages, commands and options of the program.
# FEDLORA_LONG=1 also builds from the tar file, with clang, for another processor, and with a user's CFLAGS.
. "$(dirname "$0")/../lib.sh"

if [ ! -x "$FEDLORA" ]; then
    not_ok "install: the program is built" "$FEDLORA is missing: make"
    exit
fi
version=$(awk '$2 == "FL_VERSION" { gsub(/"/, "", $3); print $3 }' include/fedlora/base.h)
# what a test installs must be what was built, whatever the sources became meanwhile
mkdir "$T/tree" "$T/work"
cp -p -r Makefile README.md CHANGELOG.md CONTRIBUTING.md LICENSE .clang-format .gitignore .ci include src inputs jobs tests analysis "$T/tree/" 2>"$T/.check"
export B
in_tree() { (cd "$T/tree" && "$@"); }
installer() { # install|uninstall [NAME=VALUE...]
    local what=$1
    shift
    in_tree env "$@" jobs/install/install.sh "$what"
}
# listing FOLDER: every file and folder below it, with modes
listing() { (cd "$1" && find . -mindepth 1 -printf '%y %m %p\n' | sort); }

# ---- a PREFIX and a DESTDIR ----
check "make install calls the installer with PREFIX, DESTDIR and B" bash -c "make -n -o '$B/fedlora' B='$B' PREFIX=/opt/f DESTDIR=/stage install |
    grep -F \"PREFIX='/opt/f' DESTDIR='/stage' B='$B' jobs/install/install.sh install\""
p="$T/a prefix&co"
check "install to a PREFIX with a blank in its name" installer install PREFIX="$p"
for file in bin/fedlora share/fedlora/{README.md,LICENSE,inputs/quickstart.yaml,inputs/README.md,jobs/one-node.sh,analysis/README.md,manifest} \
    "share/fedlora/modulefiles/fedlora/$version" "share/fedlora/modulefiles/fedlora/$version.lua" \
    share/man/man1/fedlora.1 share/bash-completion/completions/fedlora; do
    check "installed: $file" test -s "$p/$file"
done
same "the program as built" "$(md5sum <"$FEDLORA")" "$(md5sum <"$p/bin/fedlora")"
same "no leftovers and no recipes of the build are installed" "none $(find "$p" \( -name '*.pyc' -o -name __pycache__ -o -path '*/jobs/install' -o -name Makefile \) | wc -l)" "none 0"
same "the manifest lists every file" "$(sed -n 's/^file //p' "$p/share/fedlora/manifest" | sort)" "$(cd "$p" && find . -type f | sed 's,^\./,,' | sort)"
same "all may read it" "none $(find "$p" ! -perm -a=r -o -type d ! -perm -a=x | wc -l)" "none 0"
check "modulefiles hold prefix and version, no place left open" bash -c "grep -qF '$p' '$p/share/fedlora/modulefiles/fedlora/$version' &&
    grep -qF '$p' '$p/share/fedlora/modulefiles/fedlora/$version.lua' && ! grep -rE '@[A-Z]+@' '$p/share/fedlora/modulefiles'"
touch "$p/share/fedlora/inputs/mine.yaml" "$p/bin/other"
echo "file share/fedlora/inputs/older.yaml" >>"$p/share/fedlora/manifest"
touch "$p/share/fedlora/inputs/older.yaml"
check "install again over it" installer install PREFIX="$p"
check "what the older version had and this one has not is removed" test ! -e "$p/share/fedlora/inputs/older.yaml"
check "uninstall" installer uninstall PREFIX="$p"
same "uninstall leaves what others put there, and nothing else" "$(cd "$p" && find . -type f | sort)" "./bin/other"$'\n'"./share/fedlora/inputs/mine.yaml"
check_exit 4 "uninstall where nothing is says so" installer uninstall PREFIX="$T/nowhere"
check_exit 2 "a relative PREFIX is refused" installer install PREFIX=here
check "install below DESTDIR" installer install PREFIX=/opt/fedlora DESTDIR="$T/stage"
same "DESTDIR holds everything, and is not in the modulefile" "$(ls "$T/stage")/$(grep -c "$T" "$T/stage/opt/fedlora/share/fedlora/modulefiles/fedlora/$version")" opt/0
mkdir -p "$T/used/bin" "$T/used/share/man"
listing "$T/used" >"$T/before"
installer install PREFIX="$T/used" >/dev/null
installer install PREFIX="$T/used" >/dev/null
installer uninstall PREFIX="$T/used" >/dev/null
same "after install, install, uninstall a used prefix is as before" "$(cat "$T/before")" "$(listing "$T/used")"
installer uninstall PREFIX=/opt/fedlora DESTDIR="$T/stage" >/dev/null
same "uninstall leaves an empty DESTDIR" "$(cd "$T/stage" && find . | sort | tr '\n' ' ')" ". ./opt "

# ---- it works in another folder ----
tiny="--set train.steps=1 --set train.batch=2 --set data.sequences=200"
few="--set run.rounds=2 --set cohort.size=2 --set train.steps=1 --set eval.max_samples=10 --set data.sequences=200"
# at_home NAME FOLDER PREFIX COMMAND...: installs as COMMAND runs things (nothing: as this user), works in FOLDER, uninstalls
at_home() {
    local name=$1 home=$2 prefix=$3 code=0
    shift 3
    # a wrapper, empty for this user
    check "$name: install" in_tree "$@" env HOME="$home" PREFIX="$prefix" jobs/install/install.sh install
    (
        cd "$home" || exit 1
        "$@" env HOME="$home" "$prefix/bin/fedlora" --version >version 2>&1 && "$@" env HOME="$home" "$prefix/bin/fedlora" deck >deck.yaml || exit 1
        "$@" env HOME="$home" PRETRAIN_ARGUMENTS="$tiny" RUN_ARGUMENTS="$few" "$prefix/share/fedlora/jobs/quickstart.sh" >quickstart.log 2>&1 || exit 2
        "$@" env HOME="$home" mpirun -n 2 "$prefix/bin/fedlora" run "$prefix/share/fedlora/inputs/methods/fedavg.yaml" --out again $few >fedavg.log 2>&1 || exit 3
    ) || code=$?
    if [ "$code" -eq 0 ]; then
        ok "$name: version, deck, quickstart and another deck of the installed tree, in another folder"
    else
        not_ok "$name: version, deck, quickstart and another deck of the installed tree, in another folder" "step $code"$'\n'"$(tail -n 15 "$home"/*.log)"
    fi
    check "$name: --version names the version" grep -q "^# fedlora $version, " "$home/version"
    same "$name: quickstart ran its two rounds" "$(tail -n 1 "$home/runs/quickstart/rounds.csv" | cut -d, -f1)" 2
    check "$name: quickstart ends with a state" test -n "$(state_of "$home/quickstart.log")"
    same "$name: models and runs are in the working folder, nothing is added to the installed tree" \
        "$(cd "$home" && find . -maxdepth 2 -mindepth 2 -type d | grep -E '^\./(models|runs)/' | sort | tr '\n' ' ')$(find "$prefix" -type f | wc -l)" \
        "./models/tiny ./runs/quickstart $(grep -c '^file ' "$prefix/share/fedlora/manifest")"
    check "$name: uninstall" in_tree "$@" env HOME="$home" PREFIX="$prefix" jobs/install/install.sh uninstall
    check "$name: nothing is left" test ! -e "$prefix"
}
mkdir "$T/home"
at_home "this user" "$T/home" "$T/home/fedlora" env
if [ "$(id -u)" -ne 0 ]; then
    skip "an unprivileged user" "this user is one"
elif ! command -v setpriv >/dev/null 2>&1 || ! id nobody >/dev/null 2>&1; then
    skip "an unprivileged user" "no setpriv, or no user nobody"
else
    nobody=(setpriv --reuid="$(id -u nobody)" --regid="$(id -g nobody)" --clear-groups)
    mkdir "$T/nobody"
    chown nobody "$T/nobody"
    chmod 755 "$T" "$T/tree"
    chmod -R a+rX "$T/tree"
    # the build may be where only root looks
    cp "$FEDLORA" "$T/work/fedlora"
    chmod 755 "$T/work" "$T/work/fedlora"
    if "${nobody[@]}" env HOME="$T/nobody" "$T/work/fedlora" --version >"$T/.check" 2>&1; then
        at_home "nobody" "$T/nobody" "$T/nobody/fedlora" "${nobody[@]}" env B="$T/work"
        same "root and nobody: the same state" "$(state_of "$T/home/quickstart.log")" "$(state_of "$T/nobody/quickstart.log")"
        check_exit 1 "nobody: a prefix that cannot be written is an error" in_tree "${nobody[@]}" env B="$T/work" PREFIX="$T/tree/x" jobs/install/install.sh install
    else
        skip "an unprivileged user" "nobody cannot start the program here: $(head -n 1 "$T/.check")"
    fi
fi

# ---- the tar file ----
cp -rp "$T/tree" "$T/plain"
mkdir -p "$T/plain/build/src" "$T/plain/runs/x" "$T/plain/models/x" "$T/plain/analysis/__pycache__"
touch "$T/plain/build/src/a.o" "$T/plain/runs/x/log.txt" "$T/plain/models/x/config.json" "$T/plain/analysis/__pycache__/a.pyc" "$T/plain/src/base/a.o"
tar_of() { tar -tzf "$1/fedlora-$version.tar.gz" | grep -v '/$' | sed "s,^fedlora-$version/,," | sort; }
check "dist without git" "$T/plain/jobs/install/dist.sh" "$T/work/1"
same "dist without git: the same bytes again" "$("$T/plain/jobs/install/dist.sh" "$T/work/2" >/dev/null && md5sum <"$T/work/1/fedlora-$version.tar.gz")" "$(md5sum <"$T/work/2/fedlora-$version.tar.gz")"
same "dist without git: every file of the tree, nothing that was built or run" "$(tar_of "$T/work/1")" \
    "$({
        cd "$T/tree" && find . -type f ! -path '*/__pycache__/*' ! -name '*.pyc' ! -name '*~' | sed 's,^\./,,'
        echo jobs/install/REVISION
    } | sort -u)"
check "dist: one folder named after the version" bash -c "! tar -tzf '$T/work/1/fedlora-$version.tar.gz' | grep -v '^fedlora-$version/'"
if [ -e .git ] && git rev-parse -q --verify HEAD >/dev/null 2>&1; then
    check "dist with git" jobs/install/dist.sh "$T/work/git"
    same "dist with git: the files of the last commit" "$(tar_of "$T/work/git")" "$(
        {
            git ls-tree -r --name-only HEAD
            echo jobs/install/REVISION
        } | sort
    )"
    same "dist with git: the revision" "$(tar -xzOf "$T/work/git/fedlora-$version.tar.gz" "fedlora-$version/jobs/install/REVISION")" "$(git describe --always HEAD)"
else
    skip "dist with git" "this tree has no git"
fi
mkdir "$T/unpacked"
tar -C "$T/unpacked" -xzf "$T/work/1/fedlora-$version.tar.gz"
check "make in the unpacked tar file knows what to build" make -C "$T/unpacked/fedlora-$version" -n B="$T/work/b" all
check "a tar file of the unpacked tar file is the same" bash -c "'$T/unpacked/fedlora-$version/jobs/install/dist.sh' '$T/work/3' && cmp '$T/work/1/fedlora-$version.tar.gz' '$T/work/3/fedlora-$version.tar.gz'"

# ---- flags ----
mkdir "$T/work/b"
compile_line() { make -n "$@" B="$T/work/b" "$T/work/b/src/base/text.o" | grep -E ' -c -o '; }
line=$(compile_line "CFLAGS=-O1 -DMINE" CPPFLAGS=-DTHEIRS)
check "make CFLAGS= replaces optimisation and processor" bash -c '[[ $1 == *" -O1 -DMINE "* && $1 == *-DTHEIRS* && $1 != *-O3* && $1 != *-march* ]]' - "$line"
check "make CFLAGS= keeps what the numbers depend on" bash -c '[[ $1 == *-ffp-contract=off* && $1 == *-std=c11* ]]' - "$line"
check "CFLAGS in the environment count too" bash -c '[[ $1 == *" -O1 -DMINE "* ]]' - "$(CFLAGS="-O1 -DMINE" compile_line)"
check "make ARCH=" bash -c '[[ $1 == *-march=x86-64-v3* ]]' - "$(compile_line ARCH=x86-64-v3)"
check_exit 2 "fast-math is refused" make -n CFLAGS="-O3 -ffast-math" B="$T/work/b"

# ---- the page, completion, modulefile, recipes: what they name is what the program has ----
jobs/install/man.sh "$FEDLORA" >"$T/fedlora.1" 2>"$T/.check"
if cmp -s "$T/fedlora.1" jobs/install/fedlora.1; then
    ok "jobs/install/fedlora.1 is what make man writes"
else
    not_ok "jobs/install/fedlora.1 is what make man writes" "run make man"$'\n'"$(cat "$T/.check")$(diff jobs/install/fedlora.1 "$T/fedlora.1" | head -n 30)"
fi
if command -v groff >/dev/null 2>&1; then
    for page in "$T/fedlora.1" jobs/install/fedlora.1; do
        same "groff has nothing to say about ${page##*/}" "0 $(groff -ww -man -Tascii -z "$page" 2>&1 | wc -l)" "0 0"
    done
    groff -man -Tascii -P-c "$T/fedlora.1" | sed 's/.\x08//g' >"$T/page"
    # an independent look: src/app/args.c's tables against what a reader of the page sees
    words=$(sed -n '/app_command commands\[\]/,/^};/s/^    {"\([a-z]*\)",.*/   \1$/p; /app_option options\[\]/,/^};/s/^    {"\(--[a-z-]*\)",.*/       .*\1\\b/p' src/app/args.c)
    missing=$(while IFS= read -r word; do
        grep -qE -e "^$word" "$T/page" || echo "$word"
    done <<<"$words")
    same "every command and option of the tables is on the page" "$(wc -l <<<"$words" | awk '{ print ($1 > 20) }') $missing" "1 "
else
    skip "the page as a reader sees it" "groff is not installed"
fi
same "every option explains itself" "$(grep -cE '^\.TP' "$T/fedlora.1" | awk '{ print ($1 > 20) }') $(awk '/^\.TP/ { getline name; getline; if (!/^[^.]/) print name }' "$T/fedlora.1")" "1 "

# completed WORD...: what bash offers for "fedlora WORD..." at the last word
completed() {
    bash -c '. jobs/install/completion.bash
        PATH=$1:$PATH COMP_LINE="fedlora ${*:2}" COMP_POINT=${#COMP_LINE}
        COMP_POINT=${#COMP_LINE}
        _fedlora
        echo "${COMPREPLY[@]}"' - "$B" "$@"
}
same "completion: commands" "$(completed ver)" "verify"
same "completion: options of the command" "$(completed export --m)" "--merged"
same "completion: deck keys" "$(completed run d.yaml --set cohort.wei)" "cohort.weights="
same "completion: values of a key, as bash splits the word" "$(completed run d.yaml --set eval.split=v)" "validation"
same "completion: methods" "$(completed methods flex)" "flexlora"
same "completion: choices of an option" "$(completed eval --split t)" "train test"
same "completion: files" "$(completed run inputs/quick)" "inputs/quickstart.yaml"
same "completion: nothing for what is no command" "none$(completed nonsense x)" none
same "completion: exactly the commands of --help" "$("$FEDLORA" --complete '' | grep -v '^-')" "$("$FEDLORA" --help | sed -n 's/^  \([a-z][a-z]*\)  *[a-z].*/\1/p' | grep -vx fedlora)"
same "completion: every key of the reference page" "$("$FEDLORA" --complete run d --set '' | sed 's/=$//')" \
    "$("$FEDLORA" deck --reference | awk -F'`' '/^## / { s = substr($0, 4) } /^\| `/ { print s "." $2 }')"
check "completion starts no MPI" env OMPI_MCA_ess=none OMPI_MCA_pml=none "$FEDLORA" --complete run --

if command -v tclsh >/dev/null 2>&1; then
    installer install PREFIX="$T/m" >/dev/null
    # the commands of a modulefile as procedures that print what they are told
    cat >"$T/module.tcl" <<'EOF'
foreach command {module-whatis conflict prepend-path setenv} { proc $command {args} [list apply {{name args} { puts "$name $args" }} $command] }
foreach command {module-whatis conflict prepend-path setenv} { proc $command {args} "puts \"$command \$args\"" }
source [lindex $argv 0]
ModulesHelp
EOF
    same "modulefile in Tcl: what it sets" "$(MANPATH=x tclsh "$T/module.tcl" "$T/m/share/fedlora/modulefiles/fedlora/$version" 2>/dev/null | grep -v whatis)" \
        "conflict fedlora"$'\n'"prepend-path PATH $T/m/bin"$'\n'"prepend-path MANPATH $T/m/share/man"$'\n'"setenv FEDLORA_SHARE $T/m/share/fedlora"
    check "modulefile in Tcl: without MANPATH it sets none" bash -c "! env -u MANPATH tclsh '$T/module.tcl' '$T/m/share/fedlora/modulefiles/fedlora/$version' 2>&1 | grep MANPATH"
else
    skip "modulefile in Tcl" "tclsh is not installed"
fi
lua=$(command -v lua || command -v lua5.4 || command -v lua5.3 || command -v lua5.1 || true)
if [ -n "$lua" ]; then
    cat >"$T/module.lua" <<'EOF'
for _, name in ipairs{"help", "whatis", "conflict"} do _G[name] = function() end end
function pathJoin(a, b) return a .. "/" .. b end
for _, name in ipairs{"prepend_path", "setenv"} do _G[name] = function(a, b) print(name .. " " .. a .. " " .. b) end end
dofile(arg[1])
EOF
    installer install PREFIX="$T/m" >/dev/null
    same "modulefile in Lua: what it sets" "$(MANPATH=x "$lua" "$T/module.lua" "$T/m/share/fedlora/modulefiles/fedlora/$version.lua")" \
        "prepend_path PATH $T/m/bin"$'\n'"prepend_path MANPATH $T/m/share/man"$'\n'"setenv FEDLORA_SHARE $T/m/share/fedlora"
else
    skip "modulefile in Lua" "lua is not installed"
fi

if command -v python3 >/dev/null 2>&1; then
    for file in jobs/install/spack/packages/fedlora/package.py jobs/install/*.eb; do
        check "Python reads ${file##*/}" env PYTHONDONTWRITEBYTECODE=1 python3 -c 'import sys; compile(open(sys.argv[1]).read(), sys.argv[1], "exec")' "$file"
    done
    check "EasyBuild: name, version and file name agree" python3 -c 'import os, sys
e = {}
exec(open(sys.argv[1]).read(), e)
t = e["toolchain"]
assert e["version"] == sys.argv[2], e["version"]
assert os.path.basename(sys.argv[1]) == "%s-%s-%s-%s.eb" % (e["name"], e["version"], t["name"], t["version"])
assert len(e["sources"]) == len(e["checksums"])' jobs/install/*.eb "$version"
else
    skip "Python reads package.py and the EasyConfig" "python3 is not installed"
fi
same "one version: no packaging file names another" "$(grep -hoE '(fedlora[-@ ]|version\("|Version )[0-9]+\.[0-9]+\.[0-9]+' README.md jobs/install/*.* jobs/install/spack/packages/fedlora/package.py |
    grep -oE '[0-9.]+$' | sort -u)" "$version"
for file in jobs/install/fedlora.1 jobs/install/fedlora.def jobs/install/spack/packages/fedlora/package.py CHANGELOG.md; do
    check "the version is in ${file##*/}" grep -qF "$version" "$file"
done

# deps.sh on a machine with little more than a shell misses everything, and says it
mkdir "$T/bin"
for tool in bash dirname mktemp rm cat cut grep tr head sed awk id env; do
    ln -s "$(command -v "$tool")" "$T/bin/$tool"
done
env -i PATH="$T/bin" jobs/install/deps.sh --list | sort >"$T/packages"
same "the Apptainer image installs the packages of deps.sh" "$(sed -n '/apt-get install/,/[^\\]$/p' jobs/install/fedlora.def | tr -d '\\' | tr ' ' '\n' |
    grep -vE '^(apt-get|install|-y|--.*|)$' | sort)" "$(cat "$T/packages")"
awk '/^%/ { inside = ($1 == "%post") ; next } inside' jobs/install/fedlora.def >"$T/post.sh"
check "%post of the Apptainer image is a shell script" sh -n "$T/post.sh"
recipe=jobs/install/spack/packages/fedlora/package.py
same "Spack and EasyBuild name the libraries of deps.sh" "$(
    while read -r package; do
        case $package in
        libopenmpi-dev | openmpi-bin) grep -q 'depends_on("openmpi' $recipe && grep -q "'foss'" jobs/install/*.eb ;;
        libscalapack-openmpi-dev) grep -q scalapack $recipe && grep -q "'foss'" jobs/install/*.eb ;;
        libopenblas-dev) grep -q openblas $recipe && grep -q "'foss'" jobs/install/*.eb ;;
        libcmocka-dev) grep -q cmocka $recipe ;;
        build-essential) grep -q gmake $recipe ;;
        pkg-config) grep -q pkgconfig $recipe && grep -q pkgconf jobs/install/*.eb ;;
        liblzma-dev) grep -q '"xz"' $recipe && grep -q "'XZ'" jobs/install/*.eb ;;
        *)
            name=${package#lib}
            name=${name%-dev}
            grep -qi "depends_on(\"\(lib\)\?${name%-openmpi}" $recipe && grep -qi "${name%-openmpi}" jobs/install/*.eb
            ;;
        esac || echo "$package"
    done <"$T/packages" | tr '\n' ' '
)all" "all"

# ---- builds: minutes ----
if [ -z "${FEDLORA_LONG:-}" ]; then
    skip "builds from the tar file, with clang, for x86-64-v3, with a user's CFLAGS" "FEDLORA_LONG=1 does them"
    exit
fi
cores=$(nproc)
# built NAME FOLDER VARIABLES...: builds there without a warning, and the program starts
built() {
    local name=$1
    shift
    check "$name: builds" bash -c 'make -C "$@" all >"$0" 2>&1' "$T/build.log" "$T/unpacked/fedlora-$version" -j"$cores" "$@"
    same "$name: no warnings" "0 $(grep -cE 'warning|error:' "$T/build.log")" "0 0"
}
built "tar file" B="$T/b1"
check "tar file: --version names the revision in it" grep -q "revision $(cat "$T/unpacked/fedlora-$version/jobs/install/REVISION")" <("$T/b1/fedlora" --version)
same "tar file: the same methods" "$("$T/b1/fedlora" methods)" "$("$FEDLORA" methods)"
check "tar file: make install" make -C "$T/unpacked/fedlora-$version" B="$T/b1" PREFIX="$T/p1" install
check "tar file: what is installed starts" "$T/p1/bin/fedlora" deck
check "tar file: make uninstall" make -C "$T/unpacked/fedlora-$version" PREFIX="$T/p1" uninstall
check "tar file: nothing is left" test ! -e "$T/p1"
if command -v clang >/dev/null 2>&1; then
    built "clang" B="$T/b2" OMPI_CC=clang
    check "clang: it was clang" grep -aq clang "$T/b2/fedlora"
    check "clang: the program starts" "$T/b2/fedlora" --version
else
    skip "clang" "clang is not installed"
fi
if [ "$(uname -m)" = x86_64 ]; then
    built "x86-64-v3" B="$T/b3" ARCH=x86-64-v3
    check "x86-64-v3: no instructions of AVX-512" bash -c "! objdump -d '$T/b3/fedlora' | grep -q '%zmm'"
else
    skip "x86-64-v3" "another kind of processor"
fi
built "user's CFLAGS" B="$T/b4" CFLAGS="-O1 -g0"
check "user's CFLAGS: the program starts" "$T/b4/fedlora" --version
