#!/bin/bash
# What needs a GPU, part by part, each with a time limit; results in $OUT.
#
#     OUT=results DATA=../shared/data bash benchmarks/gpu.sh parity equality group step loss peak compile batch
#     OUT=results RSICD=../shared/data/rsicd STEPS=600 SECONDS_LEFT=400 bash benchmarks/gpu.sh rsicd
#
# GPU_REHEARSAL=1: sizes for a CPU. PARITY: script and folder of recorded numbers. A part that fails does not stop the others.
set -u
OUT=${OUT:?folder of the results}
DATA=${DATA:-../shared/data}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-100}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH=$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
mkdir -p "$OUT"
tiny=${GPU_REHEARSAL:+--tiny}
began=$(date +%s)

limited() { # seconds, name, command: output to the log and the screen
  local limit=$1 name=$2 start
  shift 2
  start=$(date +%s)
  timeout -k 5 "$limit" "$@" 2>&1 | tee "/tmp/gpu-$name.log" | cut -c1-400 | tail -n 25
  local code=${PIPESTATUS[0]}
  cat "/tmp/gpu-$name.log" >> "$OUT/gpu.log"
  echo "== $name: exit status $code, $(($(date +%s) - start)) s (at $(($(date +%s) - began)) s)" | tee -a "$OUT/gpu.log"
}

measure() { limited "$LIMIT" "$1" "$PYTHON" "$here/gpu.py" "$1" -o "$OUT" --data "$DATA" $tiny; }

for part in "$@"; do
  case $part in
    equality | bf16 | peak | compile | batch) measure "$part" ;;
    parity) limited "$LIMIT" parity "$PYTHON" $PARITY ;;
    group) limited "$LIMIT" group "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 1 "$here/gpu.py" group -o "$OUT" $tiny ;;
    step)
      if [ -n "$tiny" ]; then
        limited "$LIMIT" compare "$PYTHON" "$here/step.py" --compare --bf16 --layers 1 --studies 4 --repeats 1 --data "$DATA" -o "$OUT/step.json"
        limited "$LIMIT" step "$PYTHON" "$here/step.py" --bf16 --domains chest-ct --scale 0.01 --repeats 1 -o "$OUT/step.json"
      else
        limited "$LIMIT" compare "$PYTHON" "$here/step.py" --compare --bf16 --layers 12 --studies 256 --repeats 5 --data "$DATA" -o "$OUT/step.json"
        limited "$LIMIT" step "$PYTHON" "$here/step.py" --bf16 --scale 1 --batch-factor 8 --repeats 5 -o "$OUT/step.json"
      fi ;;
    loss)
      if [ -n "$tiny" ]; then limited "$LIMIT" loss "$PYTHON" "$here/loss.py" --cases tiny --ranks 1 --repeats 1 -o "$OUT/loss.json"
      else limited "$LIMIT" loss "$PYTHON" "$here/loss.py" --repeats 3 -o "$OUT/loss.json"; fi ;;
    tests) limited "$LIMIT" tests "$PYTHON" -m pytest -q -p no:cacheprovider -x tests/trainer/test_fused.py tests/trainer/test_golden_losses.py tests/trainer/test_resident.py tests/modeling ;;
    rsicd)
      runs=${RUNS:-/tmp/rsicd-runs}
      own=(--data "$RSICD" --recipe remote-sensing --variant "${VARIANT:-paper}" --tokenizer "$DATA/tokenizers/bpe_simple_vocab_16e6.txt.gz" --seeds 0 -o "$runs" --cache-pictures "${PICTURES:-224}")
      settings=(resident_pictures=true save_minutes=1.5 save_strategy=no save_only_model=true save_total_limit=1 logging_steps=10 dataloader_persistent_workers=true "max_steps=${STEPS:-400}" ${SETTINGS:-})
      limited "${SECONDS_LEFT:-400}" rsicd "$PYTHON" "$here/rsicd.py" "${own[@]}" --results "$OUT/rsicd-paper.json" --set "${settings[@]}"
      tail -n 15 "$runs/seed-0/log.txt" | cut -c1-300
      cp "$runs/seed-0/log.txt" "$OUT/rsicd-log.txt"
      if [ -e "$runs/seed-0/result.json" ]; then cp "$runs/seed-0/result.json" "$OUT/rsicd-seed-0.json"
      else timeout 60 "$PYTHON" "$here/rsicd.py" "${own[@]}" --last | tail -n 1 | tee "$OUT/rsicd-last.json"; fi ;;
    *) echo "there is no part $part" ;;
  esac
done
