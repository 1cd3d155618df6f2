#!/usr/bin/env bash
# All that a GPU has to show, in parts of at most nine minutes, each with its result written as it ends.
#
#     benchmarks/first_day.sh [FOLDER [PART...]]
#
# FOLDER (default: benchmarks/results/first_day) gets a log of each part, results for `benchmarks/report.py`, and a file
# PART.done for each part that ended well. A part with such a file is skipped, so that the same command goes on where it
# was stopped. Without names, all parts run. The exit code is 1 if a part failed or ran out of time.
#
# PYTHON         the Python to use (default: python)
# LIMIT          seconds of a part (default: 540)
# DATA, CACHE    a folder of cases for the part `promise12`, and the cache of their preparation, with which training
#                needs no SimpleITK; without DATA the part trains on phantoms
set -uo pipefail
cd "$(dirname "$0")/.."

folder=${1:-benchmarks/results/first_day}
shift $(($# ? 1 : 0))
python=${PYTHON:-python}
limit=${LIMIT:-540}
all=(doctor step fast layers inference tests kernels training peers compiled promise12)
parts=("${@:-${all[@]}}")
mkdir -p "$folder" || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

benchmark() {
    # pytest writes what it has measured when it is interrupted, too
    local name=$1
    shift
    "$python" -m pytest "$@" --benchmark-only --benchmark-json "$folder/$name.json" -p no:cacheprovider
}

part_doctor() { "$python" -m vnet_fast.doctor; }
part_tests() {
    local parallel=()
    # with pytest-xdist three minutes on 16 cores; most of it is Triton's compiler
    "$python" -c "import xdist" 2>/dev/null && parallel=(-n auto) && export OMP_NUM_THREADS=1
    "$python" -m pytest tests -m gpu -p no:cacheprovider -rs --durations 20 "${parallel[@]}"
}
part_layers() { benchmark layers benchmarks/bench_layers.py; }
part_kernels() { benchmark kernels benchmarks/bench_dice.py benchmarks/bench_dice_ce.py benchmarks/bench_add_prelu.py benchmarks/bench_norm_prelu.py benchmarks/bench_sgd.py benchmarks/bench_adamw.py benchmarks/bench_augment.py; }
# The paper's batch of 2 first, of all providers in one run; cuDNN's search takes the others half a minute each. A slow
# compiler of another provider costs only its own part.
part_step() { benchmark step benchmarks/bench_step.py -k "2- and not compile"; }
part_fast() { benchmark fast benchmarks/bench_fast.py; }
part_peers() { benchmark peers benchmarks/bench_step.py -k "not 2- and not compile"; }
part_compiled() { benchmark compiled benchmarks/bench_step.py -k compile; }
part_training() { benchmark training benchmarks/bench_training.py; }
part_inference() { benchmark inference benchmarks/bench_inference.py; }
part_promise12() {
    local run=$folder/promise12 code=0 data=()
    [ -n "${DATA:-}" ] && data=(--data "$DATA" --binary)
    [ -n "${CACHE:-}" ] && data+=(--cache "$CACHE")
    if [ -e "$run/last.pt" ]; then
        data=(--resume "$run")
    else
        data+=(--output "$run")
    fi
    # a stop is no failure: the log and the best weights are kept
    timeout --signal INT --kill-after 60 "${TRAINING:-300}" "$python" -m vnet_fast.train "${data[@]}" || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 124 ] || [ "$code" -eq 130 ] || return "$code"
    tail -n 1 "$run/log.csv"
}

if [ "${PART:-}" ]; then
    "part_$PART"
    exit
fi

failed=()
for part in "${parts[@]}"; do
    case " ${all[*]} " in
    *" $part "*) ;;
    *)
        echo "error: $part: no such part. Choose from ${all[*]}" >&2
        exit 2
        ;;
    esac
    if [ -e "$folder/$part.done" ]; then
        echo "$part: done before"
        continue
    fi
    start=$SECONDS
    PART=$part timeout --signal INT --kill-after 30 "$limit" bash benchmarks/first_day.sh "$folder" >"$folder/$part.log" 2>&1
    code=$?
    echo "$part: exit code $code after $((SECONDS - start)) s, $(tail -n 1 "$folder/$part.log")"
    if [ "$code" -eq 0 ]; then
        touch "$folder/$part.done"
    else
        failed+=("$part")
    fi
done
[ ${#failed[@]} -eq 0 ] || {
    echo "failed: ${failed[*]}. Their logs are in $folder; the same command repeats them"
    exit 1
}
