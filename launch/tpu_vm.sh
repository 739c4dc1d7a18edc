#!/usr/bin/env bash
# Trains on a Cloud TPU slice, and requests another one when the slice is preempted.
#
#   REPOSITORY=URL launch/tpu_vm.sh jpeg-7b v5litepod-256 us-central1-a \
#       gs://BUCKET/shards gs://BUCKET/runs/jpeg-7b
#
# Needs gcloud, logged in with a project. It runs until training is done: use tmux.
set -euo pipefail
name=$1 type=$2 zone=$3 shards=$4 workdir=$5
repository=${REPOSITORY:?the git URL that the machines clone the code from}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite} # v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e

# On every machine: install once, then train.
train="
  set -e
  [ -d jpeglm ] || git clone --depth=1 '$repository' jpeglm
  cd jpeglm
  [ -d .venv ] || { python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu,gcs]'; }
  exec .venv/bin/python -m jpeglm_jax.train --distributed --config=configs/jpeg.py:7b \
    --config.data.shards='$shards' --workdir='$workdir'"

resource() {
  gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"
}

failures=0
while [ "$failures" -lt 5 ]; do
  case $(resource describe --format='value(state.state)' 2>/dev/null || echo MISSING) in
    ACTIVE)
      began=$SECONDS
      if gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$train"; then
        resource delete --force --quiet
        exit 0
      fi
      # The slice was preempted, or training failed: five quick failures in a row end this script.
      failures=$((SECONDS - began < 600 ? failures + 1 : 0))
      ;;
    MISSING)
      resource create --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" --spot
      ;;
    SUSPENDED | FAILED) resource delete --force --quiet ;;
  esac
  sleep 30
done
echo "five failures in a row, see the last lines above; the slice $name still exists" >&2
exit 1
