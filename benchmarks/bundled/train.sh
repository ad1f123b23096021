#!/usr/bin/env bash
# Train the bundled model:
#     train.sh DATA VOICES NOVELS WORK
# DATA is the directory of recordings, VOICES the directory `voices` of the npm package kokoro-js, NOVELS the directory
# `data` of the Debian package r-cran-janeaustenr. The prepared data and the runs are written to WORK.
# After an interruption, run the same command or the whole script again: it resumes.
#
# The order of the training data decides whether the model learns at all. A CTC model of this size that begins with
# sentences outputs nothing but the blank for thousands of steps. Single digits get it off that plateau in 300 steps,
# strings of digits teach it to output one word after another, and then it learns from everything. Muon needs half the
# steps of AdamW: at step 460 on single digits its loss is 0.9 per character, and AdamW's is 2.0.
set -euo pipefail
data=$1 voices=$2 novels=$3 work=$4
here=$(cd "$(dirname "$0")" && pwd)
corpus=$work/corpus tts=$work/tts revoiced=$work/revoiced kokoro=$work/kokoro

strings=(--valid "strings-new=$corpus/strings-new-valid.jsonl" --valid "strings-known=$corpus/strings-known-valid.jsonl")
spoken=(--valid "orders=$corpus/orders-valid.jsonl" --valid "synthetic=$corpus/synthetic-valid.jsonl")
rest=(--valid "keywords=$corpus/keywords-valid.jsonl" --valid "read=$corpus/read-valid.jsonl")
# Two workers with one thread each share a batch: small products do not use two threads fully.
common=(--optimizer muon --precision bfloat16 --checkpoint-every 100 --workers 2 --threads 1)

export RAY_worker_niceness=0

[ -f "$corpus/digits.jsonl" ] || python "$here/prepare.py" "$data" "$corpus"
{ # The data of the last stages is made while the first stages train.
    [ -f "$tts/sentences.jsonl" ] || python "$here/synthesize.py" "$data" "$corpus" "$tts"
    [ -f "$revoiced/sentences.jsonl" ] || python "$here/revoice.py" "$corpus" "$tts" "$revoiced"
    # For the bundled model, the 500 digit strings in $kokoro had one or two voices; the others were added in stage 8.
    python "$here/kokoro.py" "$voices" "$corpus" "$kokoro" digits 500
    python "$here/kokoro.py" "$voices" "$corpus" "$work/kokoro-more" digits 2600
    python "$here/kokoro.py" "$voices" "$corpus" "$work/kokoro-more" sentences 348
    python "$here/narrate.py" "$novels" "$work/novels" 1570
} &
making=$!

# 1. Single digits.
sewd finetune --model-config "$here/config.json" --output "$work/runs/1" "${common[@]}" --learning-rate 8e-4 \
    --train "$corpus/digits.jsonl" --valid "strings-known=$corpus/strings-known-valid.jsonl" \
    --steps 700 --warmup 0.2 --hold 0.7 --batch-seconds 8 --augment gain=0.3,speed=0.3 --valid-every 700

# 2. Up to three digits in a row, with other voices too.
sewd finetune --init "$work/runs/1/model" --output "$work/runs/2" "${common[@]}" --learning-rate 8e-4 \
    --train "2=$corpus/digits.jsonl" --train "$corpus/synthetic-digits.jsonl" "${strings[@]}" \
    --steps 500 --warmup 0.05 --hold 0.9 --batch-seconds 12 --join 3 \
    --augment speed=0.5,tilt=0.2,noise=0.1,gain=0.3,band=0.3 --valid-every 500

# 3. Orders and keywords too.
sewd finetune --init "$work/runs/2/model" --output "$work/runs/3" "${common[@]}" --learning-rate 8e-4 --label-weight 0.3 \
    --train "2=$corpus/digits.jsonl" --train "$corpus/synthetic-digits.jsonl" \
    --train "$corpus/orders.jsonl" --train "$corpus/synthetic-coffee.jsonl" \
    --train "0.5=$corpus/keywords.jsonl" --train "$corpus/synthetic-keyword.jsonl" "${strings[@]}" "${spoken[@]}" \
    --steps 400 --warmup 0.05 --hold 0.9 --batch-seconds 20 --join 5 \
    --augment speed=0.5,tilt=0.2,noise=0.2,gain=0.3,band=0.4 --valid-every 400

# 4. Everything but sentences, with SpecAugment (few and short masks: a digit lasts less than half a second).
python - "$work/runs/3/model/config.json" <<'P'
import json, sys
path = sys.argv[1]
config = json.load(open(path))
config.update(apply_spec_augment=True, mask_time_prob=0.05, mask_time_length=6, mask_time_min_masks=0)
config.update(mask_feature_prob=0.05, mask_feature_length=8, mask_feature_min_masks=0)
json.dump(config, open(path, "w"), indent=2)
P
everything=(
    --label-weight 0.3 --batch-seconds 40 --join 7 "${strings[@]}" "${spoken[@]}" "${rest[@]}"
    --train "5=$corpus/digits.jsonl" --train "1.5=$corpus/synthetic-digits.jsonl"
    --train "2=$revoiced/digits.jsonl" --train "$revoiced/synthetic-digits.jsonl"
    --train "1.2=$corpus/orders.jsonl" --train "0.7=$revoiced/orders.jsonl" --train "$corpus/synthetic-coffee.jsonl"
    --train "0.6=$corpus/keywords.jsonl" --train "$corpus/synthetic-keyword.jsonl"
    --train "0.5=$tts/flite.jsonl" --train "0.3=$tts/espeak.jsonl"
    --train "$corpus/read-short.jsonl" --train "$corpus/read-long.jsonl" --train "$corpus/synthetic-read.jsonl"
)
wait_for() { until [ -f "$1" ]; do kill -0 "$making" && sleep 5; done; }
wait_for "$revoiced/synthetic-digits.jsonl"
augment=speed=0.7,reverb=0.15,tilt=0.3,noise=0.4,gain=0.3,codec=0.05
sewd finetune --init "$work/runs/3/model" --output "$work/runs/4" "${common[@]}" "${everything[@]}" \
    --augment "$augment,band=0.45" --learning-rate 8e-4 --steps 1000 --warmup 0.04 --hold 0.96 --valid-every 500 --seed 3

# 5. With sentences, and changed voices for all kinds of speech; the learning rate falls. For the bundled model this stage
# was ended at step 2500, to add single digits in many voices.
wait "$making"
more=(
    --train "3=$kokoro/digits.jsonl" --train "$revoiced/keywords.jsonl" --train "$revoiced/flite.jsonl"
    --train "$revoiced/read-short.jsonl" --train "$revoiced/read-long.jsonl"
    --train "0.2=$tts/sentences.jsonl" --train "$revoiced/sentences.jsonl"
)
sewd finetune --init "$work/runs/4/model" --output "$work/runs/5" "${common[@]}" "${everything[@]}" "${more[@]}" \
    --augment "$augment,band=0.45" --learning-rate 8e-4 --steps 4000 --warmup 0.01 --hold 0.34 --valid-every 500 --seed 4

# 6. With single digits in four hundred voices, and a telephone's band more often; ended at step 1500.
mkdir -p "$work/cut"
python "$here/cut.py" "$work/runs/5/model" "$work/cut/digits.jsonl" "$corpus/synthetic-digits.jsonl" "$kokoro/digits.jsonl"
sewd finetune --init "$work/runs/5/model" --output "$work/runs/6" "${common[@]}" "${everything[@]}" "${more[@]}" \
    --train "4=$work/cut/digits.jsonl" --train "$corpus/orders.jsonl" \
    --augment "$augment,band=0.6" --learning-rate 4e-4 --steps 2600 --warmup 0.02 --hold 0.15 --valid-every 500 --seed 5

# 7. With microphones of many frequency responses: the new speaker's has little above 2 kHz. Ended at step 2000.
sewd finetune --init "$work/runs/6/model" --output "$work/runs/7" "${common[@]}" "${everything[@]}" "${more[@]}" \
    --train "4=$work/cut/digits.jsonl" --train "$corpus/orders.jsonl" \
    --augment "$augment,tilt=0.6,band=0.6" --learning-rate 3e-4 --steps 2300 --warmup 0.02 --hold 0.1 --valid-every 500 \
    --seed 6

# 8. With digits in 2,185 more voices, whose timbre and prosody are mixed independently. Ended at step 1800: the new
# speaker's recordings turned out to be cut where he is loud, without the quiet sounds of "five" and "eight".
voices_more=$work/kokoro-more
[ -f "$work/cut/more.jsonl" ] ||
    python "$here/cut.py" "$work/runs/7/model" "$work/cut/more.jsonl" "$voices_more/digits.jsonl"
last=(
    --label-weight 0.3 --batch-seconds 80 --join 7 "${strings[@]}" "${spoken[@]}" "${rest[@]}"
    --train "$corpus/synthetic-digits.jsonl" --train "2=$revoiced/digits.jsonl" --train "$revoiced/synthetic-digits.jsonl"
    --train "$kokoro/digits.jsonl" --train "$voices_more/digits.jsonl" --train "$work/cut/digits.jsonl"
    --train "1.5=$corpus/orders.jsonl" --train "0.5=$revoiced/orders.jsonl" --train "$corpus/synthetic-coffee.jsonl"
    --train "0.5=$corpus/keywords.jsonl" --train "$corpus/synthetic-keyword.jsonl" --train "0.5=$revoiced/keywords.jsonl"
    --train "0.4=$tts/flite.jsonl" --train "0.3=$tts/espeak.jsonl" --train "0.5=$revoiced/flite.jsonl"
    --train "$corpus/read-short.jsonl" --train "$corpus/read-long.jsonl" --train "$corpus/synthetic-read.jsonl"
    --train "0.5=$revoiced/read-short.jsonl" --train "0.5=$revoiced/read-long.jsonl"
    --train "0.2=$tts/sentences.jsonl" --train "0.5=$revoiced/sentences.jsonl" --train "$voices_more/sentences.jsonl"
    --optimizer muon --precision bfloat16 --checkpoint-every 100 --workers 1 --threads 1 --valid-every 500
)
far=speed=0.8,reverb=0.2,tilt=0.6,noise=0.45,gain=0.3,band=0.6,codec=0.05
sewd finetune --init "$work/runs/7/model" --output "$work/runs/8" "${last[@]}" \
    --train "5=$corpus/digits.jsonl" --train "$work/cut/more.jsonl" \
    --augment "$far" --learning-rate 5e-4 --steps 4500 --warmup 0.03 --hold 0.37 --seed 8

# 9. With clips cut at both ends; from the last checkpoint of stage 8, as a model. Step 2800, the last, was the best.
sewd finetune --init "$work/runs/8/last" --output "$work/runs/9" "${last[@]}" \
    --train "6=$corpus/digits.jsonl" --train "2=$work/cut/more.jsonl" \
    --augment "trim=0.6,$far" --learning-rate 4e-4 --steps 2800 --warmup 0.02 --hold 0.28 --seed 9

# Up to here `trim` cut sentences too: in 60 % of them, on average a second of a short sentence of read English, with words
# that stayed in its text. Now it cuts single words only.

# 10. Mostly read English (two thirds of the audio) and novels, from the model of stage 9; less augmentation and half the
# dropout, because the model made nearly as many errors in its training sentences as in others. Ended at step 3292.
cp -r "$work/runs/9/model" "$work/runs/9-less-dropout"
sed -i 's/"hidden_dropout": 0.1/"hidden_dropout": 0.05/' "$work/runs/9-less-dropout/config.json"
read=(
    --train "3=$corpus/read-short.jsonl" --train "3=$corpus/read-long.jsonl" --train "2=$voices_more/sentences.jsonl"
    --train "$revoiced/read-short.jsonl" --train "$revoiced/read-long.jsonl" --train "$work/novels/novels.jsonl"
    --label-weight 0.3 --batch-seconds 48 --join 7 "${strings[@]}" "${common[@]}"
    --valid "orders=$corpus/orders-valid.jsonl" --valid "read=$corpus/read-valid.jsonl"
    --train "0.3=$tts/flite.jsonl" --train "0.2=$tts/espeak.jsonl" --train "0.3=$revoiced/flite.jsonl"
    --train "0.3=$revoiced/keywords.jsonl"
)
sewd finetune --init "$work/runs/9-less-dropout" --output "$work/runs/10" "${read[@]}" \
    --train "2.5=$corpus/digits.jsonl" --train "0.5=$corpus/synthetic-digits.jsonl" \
    --train "0.7=$revoiced/digits.jsonl" --train "0.5=$revoiced/synthetic-digits.jsonl" --train "0.4=$kokoro/digits.jsonl" \
    --train "0.4=$voices_more/digits.jsonl" --train "0.8=$work/cut/more.jsonl" --train "0.4=$work/cut/digits.jsonl" \
    --train "0.8=$corpus/orders.jsonl" --train "0.3=$revoiced/orders.jsonl" --train "0.5=$corpus/synthetic-coffee.jsonl" \
    --train "0.3=$corpus/keywords.jsonl" --train "0.5=$corpus/synthetic-keyword.jsonl" \
    --train "2=$corpus/synthetic-read.jsonl" --train "0.2=$tts/sentences.jsonl" --train "0.7=$revoiced/sentences.jsonl" \
    --augment trim=0.6,speed=0.7,reverb=0.1,tilt=0.4,noise=0.3,gain=0.3,band=0.5,codec=0.04 \
    --learning-rate 4.5e-4 --steps 6000 --warmup 0.008 --hold 0.992 --valid-every 700 --seed 12

# 11. The learning rate falls, with more orders and digits; from the last checkpoint of stage 10, as a model. The error rate
# for digits of an unknown speaker is measured on this stage's model, which was trained on four speakers of digits.
final=(
    "${read[@]}" --train "0.8=$corpus/synthetic-digits.jsonl" --train "$revoiced/digits.jsonl"
    --train "0.8=$revoiced/synthetic-digits.jsonl" --train "0.6=$kokoro/digits.jsonl"
    --train "0.6=$voices_more/digits.jsonl" --train "1.2=$work/cut/more.jsonl" --train "0.6=$work/cut/digits.jsonl"
    --train "2.5=$corpus/orders.jsonl" --train "0.5=$revoiced/orders.jsonl" --train "0.8=$corpus/synthetic-coffee.jsonl"
    --train "0.5=$corpus/keywords.jsonl" --train "0.7=$corpus/synthetic-keyword.jsonl"
    --train "1.5=$corpus/synthetic-read.jsonl" --train "0.1=$tts/sentences.jsonl" --train "0.5=$revoiced/sentences.jsonl"
    --augment trim=0.6,speed=0.7,reverb=0.1,tilt=0.5,noise=0.35,gain=0.3,band=0.5,codec=0.04
    --warmup 0.02 --valid-every 5000 --checkpoint-every 50
)
sewd finetune --init "$work/runs/10/last" --output "$work/runs/11" "${final[@]}" \
    --train "3.5=$corpus/digits.jsonl" --learning-rate 4.5e-4 --steps 3300 --hold 0.35 --seed 21

# 12. With the fifth speaker too: users are other speakers in any case, and five speakers teach more than four.
sewd finetune --init "$work/runs/11/last" --output "$work/runs/12" "${final[@]}" \
    --train "3.5=$corpus/digits-five.jsonl" --learning-rate 1.5e-4 --steps 450 --hold 0.2 --seed 22

python "$here/bundle.py" "$work/runs/12/model" "$here/../../sewd_model/bundled"
