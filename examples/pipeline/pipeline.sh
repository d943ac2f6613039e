#!/usr/bin/env bash
# The steps of a model from data to production. GitHub Actions and GitLab CI call them one by one; so can you:
#   ./pipeline.sh check train evaluate export gate release deploy
# Every step can be repeated: what was killed is taken up again, and no release is ever written over.
set -euo pipefail

DATA=${DATA:-data}                       # any layout that detrkit reads; TEST_DATA: further sets that the gate asks
TEST_DATA=${TEST_DATA:-}
PRESET=${PRESET:-detr-r50}
RUN=${RUN:-runs/model}
TRAIN_OPTIONS=${TRAIN_OPTIONS:-}         # such as "--epochs 50 --init published"
EXPORT_OPTIONS=${EXPORT_OPTIONS:-}       # such as "--precision 16"
CANDIDATE=${CANDIDATE:-build/candidate}  # the bundle that is measured is the one that is served
REPORTS=${REPORTS:-build/reports}
RELEASES=${RELEASES:-releases}           # a folder that outlives the job: a volume, a mounted bucket
MIN_AP=${MIN_AP:-30}                     # least AP, in points; the only measure of a first release
GATE_OPTIONS=${GATE_OPTIONS:-}           # such as "--max-loss 2 --max-slowdown 20"
TARGET=${TARGET:-compose}                # see: detrkit deploy --help
DEPLOYMENT=${DEPLOYMENT:-build/deployment}

read -ra train_options <<< "$TRAIN_OPTIONS"
read -ra export_options <<< "$EXPORT_OPTIONS"
read -ra gate_options <<< "$GATE_OPTIONS"
sets=()
for set in "$DATA" $TEST_DATA; do sets+=(--data "$set"); done
mkdir -p "$REPORTS"

check() {
  detrkit data check "$DATA" --model "$PRESET" --html "$REPORTS/data.html"
}

train() {  # goes on where a run of the same name was stopped
  detrkit train --model "$PRESET" --data "$DATA" --run "$RUN" --resume "${train_options[@]}"
}

evaluate() {
  detrkit eval "$RUN" --data "$DATA" --out "$REPORTS/eval"
}

export_bundle() {  # and prove that it finds what the model finds
  rm -rf "$CANDIDATE"
  detrkit export "$RUN" --out "$CANDIDATE" "${export_options[@]}"
  detrkit verify "$CANDIDATE"
}

gate() {  # exit code 1 and reasons in gate.md if it is worse than the release in use, beyond chance, or slower
  rm -rf "$REPORTS/gate" "$REPORTS/gate.md"
  local old=()
  if [ -e "$RELEASES/current" ]; then old=("$RELEASES/current/bundle"); fi
  detrkit gate "$CANDIDATE" "${old[@]}" "${sets[@]}" --min-ap "$MIN_AP" --out "$REPORTS/gate" \
    --markdown "$REPORTS/gate.md" "${gate_options[@]}"
}

release() {  # asks the gate once more: another release may have come in between
  detrkit release "$CANDIDATE" --to "$RELEASES" "${sets[@]}" --min-ap "$MIN_AP" "${gate_options[@]}"
}

deploy() {  # writes the files; what carries them to your machines stands in the workflow
  rm -rf "$DEPLOYMENT"
  detrkit deploy "$RELEASES/current/bundle" --to "$TARGET" --out "$DEPLOYMENT"
}

rollback() {
  detrkit release --to "$RELEASES" --rollback
  deploy
}

for step in "$@"; do
  case $step in
    check | train | evaluate | gate | release | deploy | rollback) "$step" ;;
    export) export_bundle ;;
    *)
      echo "pipeline.sh: no step $step; there are: check train evaluate export gate release deploy rollback" >&2
      exit 2
      ;;
  esac
done
