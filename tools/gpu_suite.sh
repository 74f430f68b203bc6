#!/usr/bin/env bash
# All that needs a GPU, in one lease of 25 minutes, unattended: tests, the speed ladder, training at 124M, HellaSwag.
#
#   tools/gpu_suite.sh OUT [WHEELS] [EXAMPLES]
#
# OUT       a folder: OUT/table.md has a row for each stage as soon as that ends, OUT/STAGE.log all that it said
# WHEELS    a folder of wheels to install without a network, into an environment beside the machine's own torch; "" for none
# EXAMPLES  hellaswag_val.jsonl; without it the packaged sample, repeated to 10,042 examples
#
# Each stage has a time limit, and the whole has LEASE_SECONDS (1500): a lease that is cut leaves the rows until then.
# Without CUDA the same stages run small, to show that they run (about a minute). Exit code 1 if a stage failed.
set -uo pipefail

out=$(mkdir -p "${1:?usage: gpu_suite.sh OUT [WHEELS] [EXAMPLES]}" && cd "$1" && pwd)
wheels=${2:-} examples=${3:-}
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || command -v python3)}
lease=${LEASE_SECONDS:-1500} start=$SECONDS failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
table=$out/table.md
printf '| stage | came to | seconds | says |\n| --- | --- | --- | --- |\n' >"$table"

# stage NAME SECONDS COMMAND…: its row is the last lines of what it says; nothing that it started outlives it.
stage() {
  local name=$1 limit=$2 begin=$SECONDS left=$((lease - SECONDS + start)) result
  shift 2
  if [ "$left" -lt 15 ]; then
    echo "| $name | no time left | 0 | |" >>"$table"
    failed=1
    return 1
  fi
  timeout --kill-after=10 "$((limit < left ? limit : left))" "$@" >"$out/$name.log" 2>&1
  case $? in
    0) result=ok ;;
    124 | 137) result="cut after $((SECONDS - begin)) s" failed=1 ;;
    *) result="failed ($?)" failed=1 ;;
  esac
  local said
  said=$(grep -av '^ *$' "$out/$name.log" | tail -n "${LINES_SHOWN:-12}" | tr '|' '/' | paste -sd '~' | sed 's/~/<br>/g')
  echo "| $name | $result | $((SECONDS - begin)) | $said |" >>"$table"
  sync "$table"
  [ "$result" = ok ]
}

if [ -n "$wheels" ]; then
  "$python" -m venv --system-site-packages "$work/venv"
  stage install 120 "$work/venv/bin/python" -m pip install --no-index --no-deps --find-links "$wheels" "$wheels"/*.whl
  python=$work/venv/bin/python
  for command in shard train eval; do # the commands come with the tree itself
    printf '#!%s\nfrom gpt2wds.commands.%s import main\nmain()\n' "$python" "$command" >"$work/venv/bin/gpt2wds-$command"
    chmod +x "$work/venv/bin/gpt2wds-$command"
  done
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

stage machine 60 "$python" -c '
import platform, torch
from gpt2wds.commands.overview import device_name
from gpt2wds.distributed import join_world
print("Python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
with join_world("auto") as world:
    print(device_name(world), "cuDNN", torch.backends.cudnn.version())'
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  size=(--size gpt2) ladder=(--batch 16 --seq-len 1024) count=10042
  step=(--sequences 64 --micro-batch 64 --seq-len 1024 --rounds 10 --compile) score=(--dtype bfloat16 --rounds 1)
else
  size=(--size demo) ladder=(--batch 2 --seq-len 32 --steps 1 --eager) count=8
  step=(--sequences 2 --micro-batch 2 --seq-len 32 --rounds 2 --dtype float32) score=(--rounds 1)
fi
if [ -z "$examples" ]; then
  examples=$work/examples.jsonl
  : >"$examples"
  while [ "$(wc -l <"$examples")" -lt "$count" ]; do
    cat gpt2wds/data/multiple_choice_sample.jsonl >>"$examples"
  done
fi

stage tests 300 "$python" -m pytest -n0 -rs --no-header tests/gpu
stage data 120 "$(dirname "$python")/gpt2wds-shard" shakespeare --source plays --docs-per-shard 12 --out "$work/plays"
stage ladder 300 "$python" tools/speed_ladder.py "$work/plays" "${size[@]}" "${ladder[@]}"
for attention in cudnn flash; do
  if [ "${size[1]}" = gpt2 ] || [ "$attention" = flash ]; then
    stage "step-$attention" 240 "$python" tools/bench_train.py "${size[@]}" "${step[@]}" --attention "$attention"
  fi
done
stage hellaswag 400 "$python" tools/bench_hellaswag.py --size "$([ "${size[1]}" = gpt2 ] && echo gpt2 || echo tiny)" \
  --source "$examples" --examples "$count" "${score[@]}"
cat "$table"
exit "$failed"
