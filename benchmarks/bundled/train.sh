#!/usr/bin/env bash
# Train the bundled model: DATA is the folder of recordings, WORK takes manifests, synthetic speech and the runs.
# Each command goes on where it was interrupted when it is given again; the whole script may be, too.
#
# What is learnt, and in which order, decides whether anything is: a CTC model of this size that begins with sentences
# stays for thousands of steps where it says nothing but the blank. Single digits get it off that plateau in 300 steps,
# strings of them teach it to say one thing after another, and then it takes everything. Muon gets there in half the
# steps of AdamW: a loss of 0.9 a character on single digits at step 460, where AdamW has 2.0.
set -euo pipefail
data=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
corpus=$work/corpus tts=$work/tts revoiced=$work/revoiced

strings=(--valid "strings-new=$corpus/strings-new-valid.jsonl" --valid "strings-known=$corpus/strings-known-valid.jsonl")
spoken=(--valid "orders=$corpus/orders-valid.jsonl" --valid "synthetic=$corpus/synthetic-valid.jsonl")
rest=(--valid "keywords=$corpus/keywords-valid.jsonl" --valid "read=$corpus/read-valid.jsonl")
# Two processes of one thread each train a batch in parts: small products do not fill two threads.
common=(--optimizer muon --learning-rate 8e-4 --precision bfloat16 --checkpoint-every 100 --workers 2 --threads 1)

[ -f "$corpus/digits.jsonl" ] || python "$here/prepare.py" "$data" "$corpus"
{ # What the last stages need is made while the first ones train.
    [ -f "$tts/sentences.jsonl" ] || python "$here/synthesize.py" "$data" "$corpus" "$tts"
    [ -f "$revoiced/sentences.jsonl" ] || python "$here/revoice.py" "$corpus" "$tts" "$revoiced"
} &

# 1. Single digits.
sewd finetune --config "$here/config.json" --output "$work/runs/1" "${common[@]}" \
    --train "$corpus/digits.jsonl" --valid "strings-known=$corpus/strings-known-valid.jsonl" \
    --steps 700 --warmup 0.2 --hold 0.7 --batch-seconds 8 --augment gain=0.3,speed=0.3 --valid-every 700

# 2. Up to three in a row, of other voices too.
sewd finetune --init "$work/runs/1/model" --output "$work/runs/2" "${common[@]}" \
    --train "2=$corpus/digits.jsonl" --train "$corpus/synthetic-digits.jsonl" "${strings[@]}" \
    --steps 500 --warmup 0.05 --hold 0.9 --batch-seconds 12 --join 3 \
    --augment speed=0.5,tilt=0.2,noise=0.1,gain=0.3,band=0.3 --valid-every 500

# 3. Orders and keywords beside them.
sewd finetune --init "$work/runs/2/model" --output "$work/runs/3" "${common[@]}" --label-weight 0.3 \
    --train "2=$corpus/digits.jsonl" --train "$corpus/synthetic-digits.jsonl" \
    --train "$corpus/orders.jsonl" --train "$corpus/synthetic-coffee.jsonl" \
    --train "0.5=$corpus/keywords.jsonl" --train "$corpus/synthetic-keyword.jsonl" "${strings[@]}" "${spoken[@]}" \
    --steps 800 --warmup 0.05 --hold 0.9 --batch-seconds 20 --join 5 \
    --augment speed=0.5,tilt=0.2,noise=0.2,gain=0.3,band=0.4 --valid-every 400
wait
