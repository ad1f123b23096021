#!/usr/bin/env bash
# Train the bundled model: DATA is the folder of recordings, WORK takes manifests, synthetic speech and the runs.
# Each command goes on where it was interrupted when it is given again; the whole script may be, too.
set -euo pipefail
data=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)

[ -f "$work/corpus/digits.jsonl" ] || python "$here/prepare.py" "$data" "$work/corpus"
[ -f "$work/tts/espeak.jsonl" ] || python "$here/synthesize.py" "$data" "$work/tts" 1500

corpus=$work/corpus tts=$work/tts
strings=(--valid "strings-new=$corpus/strings-new-valid.jsonl" --valid "strings-known=$corpus/strings-known-valid.jsonl")
others=(
    --valid "orders=$corpus/orders-valid.jsonl" --valid "keywords=$corpus/keywords-valid.jsonl"
    --valid "synthetic=$corpus/synthetic-valid.jsonl" --valid "read=$corpus/read-valid.jsonl"
)

# 1. What is short: single digits, keywords, small strings. The convolutions first learn what a spectrum is.
sewd finetune --config "$here/config.json" --output "$work/runs/1" \
    --train "$corpus/digits.jsonl" --train "0.5=$corpus/synthetic-digits.jsonl" \
    --train "0.15=$corpus/keywords.jsonl" --train "0.5=$corpus/synthetic-keyword.jsonl" \
    "${strings[@]}" \
    --mel-steps 100 --steps 1000 --learning-rate 8e-4 --warmup 0.1 --hold 0.9 --batch-seconds 15 --join 2 \
    --label-weight 0.3 --augment speed=0.6,tilt=0.3,noise=0.2,gain=0.3,band=0.2 --precision bfloat16 \
    --valid-every 250 --checkpoint-every 50

# 2. Everything: strings of up to seven digits, orders, keywords, read English, all the synthetic voices.
sewd finetune --init "$work/runs/1/last" --output "$work/runs/2" \
    --train "4=$corpus/digits.jsonl" --train "1=$corpus/synthetic-digits.jsonl" \
    --train "1=$corpus/orders.jsonl" --train "1=$corpus/synthetic-coffee.jsonl" \
    --train "0.6=$corpus/keywords.jsonl" --train "1=$corpus/synthetic-keyword.jsonl" \
    --train "0.5=$corpus/read-short.jsonl" --train "0.2=$corpus/read-long.jsonl" --train "0.5=$corpus/synthetic-read.jsonl" \
    --train "0.6=$tts/flite.jsonl" --train "0.2=$tts/espeak.jsonl" \
    "${strings[@]}" "${others[@]}" \
    --steps 4000 --learning-rate 8e-4 --warmup 0.02 --hold 0.58 --batch-seconds 40 --join 7 \
    --label-weight 0.3 --augment speed=0.7,reverb=0.15,tilt=0.3,noise=0.4,gain=0.3,band=0.3,codec=0.05 \
    --precision bfloat16 --valid-every 400 --checkpoint-every 50 --save-dtype float16
