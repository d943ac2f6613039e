#!/usr/bin/env bash
# The whole pipeline on drawn pictures: a first release, a better one, a spoilt one that the gate stops, a rollback.
# Usage: demo.sh DIR
set -euo pipefail

pipeline=$(cd "$(dirname "$0")" && pwd)/pipeline.sh
mkdir -p "${1:?give a folder to work in}"
cd "$1"
export DATA=demo/data PRESET=detr-tiny-two-stage RUN=demo/run MIN_AP=${MIN_AP:-5}
# pictures this small are timed in a few ms each, which a busy machine doubles: the demo is about accuracy
export GATE_OPTIONS=${GATE_OPTIONS---max-slowdown -1} TARGET=systemd

echo "== a first release, of a training that is not finished"
detrkit demo --out demo --images "${IMAGES:-1000}" --epochs "${EPOCHS:-3}"
"$pipeline" check evaluate export gate release deploy

echo "== a second one, trained to its end"
detrkit resume "$RUN" --epochs "${MORE_EPOCHS:-6}"
"$pipeline" evaluate export gate release deploy

echo "== a third one, of a training that was spoilt"
export RUN=spoilt TRAIN_OPTIONS="--epochs 1 --lr 1e-6"
"$pipeline" train export
if "$pipeline" gate; then
  echo "demo.sh: the gate let a spoilt model pass" >&2
  exit 1
fi
if "$pipeline" release; then
  echo "demo.sh: a spoilt model was released" >&2
  exit 1
fi
cat build/reports/gate.md

echo "== back to the first one"
"$pipeline" rollback
detrkit verify releases/current/bundle
