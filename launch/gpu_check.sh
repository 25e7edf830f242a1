#!/usr/bin/env bash
# Checks and times the networks on one GPU, in at most 8 minutes: a training step beside the CPU's in
# float32 (launch.check_step states the tolerance), then one call and a training step of each network
# in bfloat16, in turns: times, MFU, memory, and with cuDNN's attention or plain (launch.benchmark).
#   bash launch/gpu_check.sh             tables on the screen
#   bash launch/gpu_check.sh --out=DIR   and DIR/gpu_check.md and DIR/gpu_check.json
#   bash launch/gpu_check.sh --tiny      toy networks, where JAX has a GPU or not: the script's own test
#   bash launch/gpu_check.sh --dry_run   the commands alone; nothing runs
# It needs jax, flax, optax, orbax and ml_collections, and neither tensorflow nor clu; it installs
# nothing. $PYTHON names the interpreter; by default it is .venv's, or python3. Each part has its
# seconds, and what it had measured when they were over is in the report; exit code 1 says that a
# part failed or was cut short, 2 that flags or packages are wrong or no GPU is there.
set -u
seconds=480 # of all parts together

networks=(
  configs/fit_500m.py
  configs/unet_284m.py
  configs/dit_500m.py
  configs/dit_factorised_500m.py
)
large=configs/fit_3b9.py # its training state alone takes 78 GB
checked=configs/shapes_fit.py,tests/tiny_unet.py,tests/tiny_dit.py
videos=8 repeats=10 out="" tiny="" dry_run=""

fail() { echo "error: $1 (see --help)" >&2; exit 2; }
for argument; do
  case $argument in
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
    --out=?*) out=$(realpath -m "${argument#*=}") ;;
    --tiny) tiny=yes networks=(tests/tiny.py tests/tiny_unet.py) large=tests/tiny.py
      checked=tests/tiny.py videos=1 repeats=2 ;;
    --dry_run) dry_run=yes ;;
    *) fail "unexpected argument '$argument'" ;;
  esac
done
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3

all=$(IFS=,; echo "${networks[*]}")
benchmark=(-m launch.benchmark --devices=1 --dtype=bfloat16
  "--batch_sizes=$videos" "--repeats=$repeats")

# part NAME SECONDS ARGUMENTS...: runs python with the arguments and --out, for so long at most.
folder="" failed=0 names=()
part() {
  local limit=$2 code=0
  local command=("$python" "${@:3}")
  if [ -n "$dry_run" ]; then
    echo "$1, $limit s at most:$(printf ' %q' "${command[@]}")"
    return
  fi
  [ "$limit" -le $((seconds - SECONDS)) ] || limit=$((seconds - SECONDS))
  [ "$limit" -gt 0 ] || { echo "$1: no time left" >&2; failed=1; return; }
  echo; echo "$1, $limit s at most"
  names+=("$1")
  timeout --kill-after=5 "$limit" "${command[@]}" "--out=$folder/$1" || code=$?
  [ "$code" -eq 0 ] || { echo "$1: exit code $code after $SECONDS s in all" >&2; failed=1; }
}

# Joins the parts' reports, as far as they were written: sections of Markdown, and one JSON object.
report() {
  local comma="" name
  mkdir -p "$out" || exit 5
  {
    echo "# One GPU, checked"
    for name in "${names[@]}"; do
      printf '\n'
      if [ -e "$folder/$name/report.md" ]; then
        sed -n '/^## /,$p' "$folder/$name/report.md" | sed '/^!\[/d'
      else
        printf '## %s\n\nNothing was measured in time.\n' "$name"
      fi
    done
  } > "$folder/gpu_check.md"
  {
    echo "{"
    for name in "${names[@]}"; do
      [ -e "$folder/$name/report.json" ] || continue
      printf '%s"%s": ' "$comma" "$name"
      cat "$folder/$name/report.json"
      comma=,
    done
    echo "}"
  } > "$folder/gpu_check.json"
  mv "$folder/gpu_check.md" "$folder/gpu_check.json" "$out" || exit 5
  echo "$out/gpu_check.md has it all"
}

if [ -z "$dry_run" ]; then
  missing=$("$python" -c 'import importlib.util as u, sys
print(*[name for name in sys.argv[1:] if not u.find_spec(name)])' \
    jax flax optax orbax ml_collections einops jaxtyping) || fail "$python does not run"
  [ -z "$missing" ] || fail "$python lacks $missing"
  "$python" -c "import jax, sys; sys.exit(jax.default_backend() != 'gpu' and not '$tiny')" ||
    fail "JAX sees no GPU; --tiny runs without"
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
export XLA_PYTHON_CLIENT_MEM_FRACTION=.92 # JAX's .75 is too little to train the large one

# Seconds of each part, for compiling mostly. Later parts find in JAX's cache what earlier compiled.
part step 90 -m launch.check_step "--configs=$checked"
part call 100 "${benchmark[@]}" "--configs=$all" --modes=infer --max_seconds=70
part attention 120 "${benchmark[@]}" "--configs=${networks[0]}" --modes=train,infer \
  --attention=fastest,plain --max_seconds=80
part training 100 "${benchmark[@]}" "--configs=$all" --modes=train --max_seconds=60
part large 70 "${benchmark[@]}" "--configs=$large" --modes=infer,train --max_seconds=40
if [ -n "$out" ] && [ -z "$dry_run" ]; then report; fi
exit $failed
