#!/bin/sh
# Measures a host with all its GPUs: whether its ranks agree with one, then what they cost.
#
#   scripts/measure_host.sh [--python FILE] [--commit HASH] [--out DIR] [PART...]
#
# Parts, all of them in this order unless some are named, each less than ten minutes:
#   check       ranks against one rank, late and killed ranks, resumed training
#   transport   dispatch and return between all ranks, layer s1, beside all_to_all
#   super       the official step of `super` and its parts
#   moe         the step of `moe`
#   ultra       the step of `ultra`, as many of its layers as the host holds
# Rows go to DIR (bench/results), one file a part. A part that fails ends it: numbers of wrong
# results are worth nothing.
set -eu

root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
commit=
out=$root/bench/results

fail() {
    printf 'measure_host: %s\n' "$*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --python | --commit | --out)
            [ $# -gt 1 ] || fail "$1 needs a value"
            case $1 in --python) python=$2 ;; --commit) commit=$2 ;; --out) out=$2 ;; esac
            shift 2
            ;;
        -*) fail "unknown option $1. Known: --python, --commit, --out" ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || set -- check transport super moe ultra
for part; do
    case $part in check | transport | super | moe | ultra) ;; *)
        fail "unknown part $part. Known: check, transport, super, moe, ultra" ;;
    esac
done

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
[ "$gpus" -ge 2 ] || fail "found $gpus GPU(s), expected two or more. One is measured by: n bench step"
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr 'A-Z ' 'a-z-')
[ -n "$commit" ] || commit=$(git -C "$root" rev-parse HEAD 2>/dev/null) ||
    fail "git does not know the commit here. Name it: --commit HASH"

cd -- "$root"
mkdir -p -- "$out"
say() {
    printf '\n== %s, %s GPUs\n' "$*" "$gpus"
}
rows() {
    printf '%s/%s-%s-x%s-%.7s.jsonl' "$out" "$1" "$name" "$gpus" "$commit"
}
measure() {
    rows=$(rows "$1")
    shift
    "$python" -m bench "$@" --gpus "$gpus" --commit "$commit" --rows "$rows"
}
for part; do
    say "$part"
    case $part in
        check)
            "$python" -m pytest -q -p no:cacheprovider -m "soak or not soak" \
                tests/rdep/test_device.py tests/test_train_gpu.py
            ;;
        transport) measure transport transport --shapes s1 ;;
        *) measure "step-$part" step --presets "$part" --no-peer ;;
    esac
done
