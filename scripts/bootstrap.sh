#!/bin/sh
# Sets up a bare GPU host: checks the driver and Python, installs what ./n installs, checks that
# torch sees the GPUs, and links `n` onto PATH.
set -eu

root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
# CUDA 13, which torch's wheel carries, needs this driver branch or a newer one
# (docs.nvidia.com/cuda/cuda-toolkit-release-notes, table "CUDA Toolkit and Minimum Required Driver").
min_driver=580

fail() {
    printf 'bootstrap: %s\n' "$*" >&2
    exit 3
}

say() {
    printf 'bootstrap: %s\n' "$*" >&2
}

bin=$HOME/.local/bin
[ ! -w /usr/local/bin ] || bin=/usr/local/bin
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            cat <<HELP
usage: scripts/bootstrap.sh [--bin DIR]

Checks the NVIDIA driver (branch $min_driver or newer) and Python (3.11 or newer), installs the exact
versions of constraints.txt into .venv, checks that torch sees the GPUs, links n into DIR.

  --bin DIR   where the link goes (default: $bin)

Without a GPU none of this is needed: ./n speedrun works as it is.
HELP
            exit 0
            ;;
        --bin)
            [ $# -gt 1 ] || { echo "bootstrap: --bin needs a folder. Run: scripts/bootstrap.sh --help" >&2; exit 2; }
            bin=$2
            shift 2
            ;;
        *)
            printf 'bootstrap: unknown argument: got %s. Run: scripts/bootstrap.sh --help\n' "$1" >&2
            exit 2
            ;;
    esac
done

command -v nvidia-smi >/dev/null || fail "no NVIDIA driver found: nvidia-smi is not on PATH." \
    "Install driver $min_driver or newer and reboot; without a GPU run ./n speedrun instead"
gpus=$(nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader \
    2>&1) || fail "nvidia-smi failed: $gpus. After a driver update reboot, then run this again"
[ -n "$gpus" ] || fail "nvidia-smi lists no GPU. Check the container's --gpus or the host's PCI bus"
printf '%s\n' "$gpus" >&2

driver=$(printf '%s\n' "$gpus" | sed -n '1s/.*, *//p')
case ${driver%%.*} in
    '' | *[!0-9]*) fail "nvidia-smi names no driver version: got '$driver'. Reinstall the driver" ;;
esac
[ "${driver%%.*}" -ge "$min_driver" ] ||
    fail "the driver is too old: got $driver, expected $min_driver or newer. Update it and reboot"
printf '%s\n' "$gpus" | grep -q -E ', *(9|10)\.0,' ||
    say "no GPU here is of compute capability 9.0 or 10.0; ./n doctor says what that rules out"

sh "$root/scripts/install.sh" "$root/.venv" run
"$root/.venv/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    fail "torch does not see the GPUs (a CPU build, or a driver that does not fit). Check" \
        "'pip config list' for an index of CPU wheels, remove .venv and run this again"

mkdir -p -- "$bin" && ln -sf -- "$root/n" "$bin/n" ||
    fail "cannot write $bin. Name another folder: scripts/bootstrap.sh --bin DIR"
say "linked $bin/n"
case :$PATH: in
    *:"$bin":*) ;;
    *) say "$bin is not on PATH. Add to your shell's profile: export PATH=\"$bin:\$PATH\"" ;;
esac
say "ready. Run: n doctor"
