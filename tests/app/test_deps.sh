#!/usr/bin/env bash
# test_deps.sh - jobs/install/deps.sh: silent when all is there; without compiler and package manager it names what to install.
. "$(dirname "$0")/../lib.sh"

check_exit 0 "deps: everything is there" jobs/install/deps.sh
same "deps: says nothing then" "$(wc -c <"$T/.check")" 0

# a machine with little more than a shell: no compiler, no apt-get, no sudo
mkdir "$T/bin"
for tool in bash dirname mktemp rm cat cut grep tr head sed awk id env; do
    ln -s "$(command -v "$tool")" "$T/bin/$tool"
done
check_exit 3 "deps: exit code 3 when nothing can be installed" env -i PATH="$T/bin" jobs/install/deps.sh
cp "$T/.check" "$T/said"
for word in build-essential libopenmpi-dev libhdf5-openmpi-dev libscalapack-openmpi-dev libyaml-dev librandom123-dev "module load"; do
    check "deps: names $word" grep -q "$word" "$T/said"
done

# a compiler that knows no jansson
cat >"$T/mpicc" <<'EOF'
#!/usr/bin/env bash
for word in "$@"; do
    case $word in *.c) ! grep -q jansson.h "$word" || exit 1 ;; esac
done
exec mpicc "$@"
EOF
chmod +x "$T/mpicc"
same "deps: names the one that is missing" "$(MPICC=$T/mpicc jobs/install/deps.sh --list)" libjansson-dev
