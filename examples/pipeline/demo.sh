#!/usr/bin/env bash
# The whole pipeline on drawn pictures: a first release, a second one of half the size, a third whose training was
# spoilt, which the gate stops, and the way back. Usage: demo.sh DIR; what detrkit demo left in DIR/demo is used.
set -euo pipefail

pipeline=$(cd "$(dirname "$0")" && pwd)/pipeline.sh
mkdir -p "${1:?give a folder to work in}"
cd "$1"
export DATA=demo/data PRESET=detr-tiny-two-stage RUN=demo/run MIN_AP=${MIN_AP:-5} TARGET=systemd
# pictures this small take a few ms each, which a busy machine doubles: the demo is about accuracy
export GATE_OPTIONS="--max-slowdown -1"

echo "== a first release"
if [ ! -d demo ]; then detrkit demo; fi
"$pipeline" check evaluate export gate release deploy

echo "== a second one: the same weights in half the size"
EXPORT_OPTIONS="--precision 16" "$pipeline" export gate release deploy

echo "== a third one, trained on a handful of pictures by mistake"
export RUN=spoilt TRAIN_OPTIONS="--epochs 1"
if [ ! -d few ]; then detrkit data sample demo/data --out few --count 24; fi
DATA=few "$pipeline" train
"$pipeline" export
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
