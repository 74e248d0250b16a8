#!/bin/sh
# Installs the exact versions of constraints.txt into a virtual environment. The one way in: ./n,
# scripts/bootstrap.sh and docker/Dockerfile all call this.
#
#   scripts/install.sh VENV deps    what the project needs, without the project
#   scripts/install.sh VENV run     and the project itself, editable
#   scripts/install.sh VENV test    and what its tests need
#
# VENV/installed-KIND is a copy of the two files that decide the versions, written last: equal to
# them means installed, anything else means to do it again. Exit 3: the reason and the fix are on
# stderr.
set -eu

root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
usage="usage: scripts/install.sh VENV deps|run|test"
venv=${1:?$usage}
kind=${2:?$usage}

fail() {
    printf 'n: %s\n' "$*" >&2
    exit 3
}

find_python() {
    for name in python3 python3.13 python3.12 python3.11 python3.14; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "no Python of 3.11 or newer found: got $(python3 --version 2>&1 || :)." \
        "Install one, on Debian or Ubuntu: sudo apt install python3 python3-venv"
}

make_venv() {
    python=$(find_python)
    printf 'n: creating %s with %s\n' "$venv" "$("$python" --version)" >&2
    "$python" -m venv --clear "$venv" >&2 || fail "could not create $venv." \
        "Check the disk and its permissions; on Debian or Ubuntu: sudo apt install python3-venv"
}

# The requirements of pyproject.toml for this kind, one a line.
requirements() {
    "$venv/bin/python" - "$root/pyproject.toml" "$kind" <<'PYTHON'
import sys, tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extra = project["optional-dependencies"]["test"] if sys.argv[2] == "test" else []
print(*project["dependencies"], *extra, sep="\n")
PYTHON
}

explain() {
    log=$venv/install.log
    if grep -q -i 'no space left' "$log"; then
        fail "the disk is full: $(df -h "$venv" | tail -n 1). Free about 3 GB (8 GB with CUDA)" \
            "and run the same command again"
    fi
    if grep -q -i -E 'NewConnectionError|name resolution|ConnectTimeout|Network is unreachable' "$log"
    then
        fail "the package index cannot be reached. Connect to the network, or name a mirror" \
            "(PIP_INDEX_URL) or a folder of wheels (PIP_FIND_LINKS), and run the same command again"
    fi
    if grep -q -i 'no matching distribution' "$log"; then
        fail "a version of constraints.txt has no wheel for $("$venv/bin/python" --version) on" \
            "$(uname -sm). Use Python 3.11 to 3.13 on Linux x86_64; the whole log is $log"
    fi
    fail "the installation failed; the reason is above and in $log." \
        "Remove $venv and run the same command again"
}

pip_install() {
    "$venv/bin/python" -m pip install --no-input --disable-pip-version-check \
        --log "$venv/install.log" -c "$root/constraints.txt" "$@" >&2 || explain
}

case $kind in
    deps | run | test) ;;
    *) fail "unknown kind of installation: got $kind, expected deps, run or test" ;;
esac

mkdir -p -- "$(dirname -- "$venv")" 2>/dev/null || fail "cannot write $(dirname -- "$venv")"
exec 9>"$venv.lock" || fail "cannot write $venv.lock. Use a copy of the project that is yours"
if ! flock -n 9; then
    echo "n: another installation into $venv is running, waiting for it" >&2
    flock 9
fi

versions() {
    cat "$root/constraints.txt" "$root/pyproject.toml"
}

if versions | cmp -s - "$venv/installed-$kind" 2>/dev/null; then
    exit 0 # the other installation did it
fi

# A marker left behind means that an installation was killed half way: nothing in it is trusted.
if [ -e "$venv/installing" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    make_venv
fi
versions >"$venv/installing"
: >"$venv/install.log"
echo "n: installing the versions of constraints.txt (once; a minute or two)" >&2
requirements >"$venv/requirements.txt"
(pip_install -r "$venv/requirements.txt") || { rm -f "$venv/installing"; exit 3; }
if [ "$kind" != deps ]; then
    # setuptools is there by now, in the version of constraints.txt: no second copy for the build.
    (pip_install --quiet --no-deps --no-build-isolation -C editable_mode=compat -e "$root") ||
        { rm -f "$venv/installing"; exit 3; }
fi
for each in deps run test; do
    cp "$venv/installing" "$venv/installed-$each"
    [ "$each" != "$kind" ] || break
done
rm "$venv/installing"
echo "n: installed" >&2
