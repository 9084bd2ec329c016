#!/usr/bin/env bash
# Measures what a GPU alone shows, in under eight minutes, and prints one table with the card's name.
#
#     bash benchmarks/gpu.sh              in float16; needs a GPU, and pip install 'cxr-ray[peers]' for the rows of peers
#     bash benchmarks/gpu.sh float32      in another precision
#     bash benchmarks/gpu.sh --cpu        every command at sizes that say nothing about speed: tries out the script
#
# Each row is printed when its command ends, and all of them at the end, also where it is interrupted. PYTHON names the interpreter
# (default: .venv/bin/python, else python3), OUT the folder of the logs (default: a new one, which the last line names).
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
precision=half
small=""
case "${1:-}" in
    --cpu) precision=float32 small=yes ;;
    ?*) precision=$1 ;;
esac
if [ -z "$small" ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: got a machine whose torch sees no GPU; expected one; run it there, or with --cpu to try out the commands."
    exit 1
fi
needed="captum jinja2 matplotlib numpy pandas PIL pyarrow pydantic yaml ray safetensors scipy skimage sklearn torch torchvision"
lacking=$("$PYTHON" -c 'import sys; from importlib.util import find_spec; print(*[m for m in sys.argv[1:] if not find_spec(m)])' $needed)
if [ -n "$lacking" ]; then
    echo "gpu.sh: got a Python ($PYTHON) that cannot import $lacking; expected all that cxr_ray depends on; install it: pip install ."
    exit 1
fi
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
table() { # of all commands, or of one
    "$PYTHON" -m benchmarks.gpu_table "$out" "$@"
}
trap 'table; echo "logs: $out"; exit 130' INT TERM

measure() { # name, seconds, module and its options
    local name=$1 limit=$2
    shift 2
    echo "gpu.sh: $*" >&2
    timeout "$limit" "$PYTHON" -m "$@" --json >"$out/$name.json" 2>"$out/$name.log"
    [ $? -eq 124 ] && echo "stopped after $limit s" >>"$out/$name.log"
    table "$name" >&2
}

if [ -n "$small" ]; then
    measure engine 120 benchmarks.engine --precision "$precision" --size 32 --rounds 1 --seconds 0.05
    measure explainers 240 benchmarks.explainers --size 64 --images 1 --rounds 1 --seconds 0.05
    measure worker 480 benchmarks.worker --precision "$precision" --size 64 --images 1 --few 1 --many 1 --rounds 1 --seconds 0.05
    measure sweeps1 750 benchmarks.sweeps --precision "$precision" --size 64 --images 4 --rounds 1
    measure sweeps4 900 benchmarks.sweeps --precision "$precision" --size 64 --images 4 --rounds 1 --models 2
    measure peers 480 benchmarks.peers --precision "$precision" --images 1 --rounds 1 --seconds 0.05
    measure training 120 benchmarks.training --size 32 --batch 4 --batches 1 --rounds 1
    measure startup 900 benchmarks.startup --rounds 1
else
    measure engine 70 benchmarks.engine --precision "$precision" --rounds 4 --seconds 0.5
    measure explainers 20 benchmarks.explainers --images 64 --rounds 2 --seconds 0.5
    measure worker 60 benchmarks.worker --precision "$precision" --rounds 2
    measure sweeps1 70 benchmarks.sweeps --precision "$precision"
    measure sweeps4 95 benchmarks.sweeps --precision "$precision" --images 312 --models 4
    measure peers 70 benchmarks.peers --precision "$precision" --images 64 --batch 256 --rounds 1 --seconds 2
    measure training 50 benchmarks.training --batches 146 --rounds 3
    measure startup 45 benchmarks.startup --rounds 1
fi
table
echo "logs: $out"
