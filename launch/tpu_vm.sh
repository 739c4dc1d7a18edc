#!/usr/bin/env bash
# Trains on a Cloud TPU slice, and requests another one when the slice is preempted.
#
#   REPOSITORY=URL launch/tpu_vm.sh jpeg-7b v5litepod-256 us-central1-a \
#       gs://BUCKET/shards gs://BUCKET/runs/jpeg-7b
#
# Needs gcloud, logged in with a project. It runs until training is done: use tmux. A gcloud call
# that fails is repeated; a slice is created only when gcloud reports that there is none.
set -euo pipefail
name=$1 type=$2 zone=$3 shards=$4 workdir=$5
repository=${REPOSITORY:?the git URL that the machines clone the code from}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite} # v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e
max_failures=5
command -v gcloud >/dev/null || { echo "there is no gcloud; install the Google Cloud CLI" >&2 && exit 1; }

# On every machine: install once, end what an earlier connection left behind, then train.
train="
  set -e
  retry() {
    for attempt in 1 2 3 4 5; do
      if \"\$@\"; then return; fi
      echo \"\$(hostname): \$1 failed (attempt \$attempt of 5)\" >&2
      sleep 20
    done
    return 1
  }
  clone() { rm -rf jpeglm.new && git clone --depth=1 '$repository' jpeglm.new && mv jpeglm.new jpeglm; }
  install() {
    python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu,gcs]' && touch .venv/installed
  }
  [ -d jpeglm ] || retry clone
  cd jpeglm
  [ -f .venv/installed ] || retry install
  if old=\$(cat train.pid 2>/dev/null) && grep -qs jpeglm_jax.train /proc/\$old/cmdline; then
    echo \"\$(hostname): process \$old still trains; waiting for its checkpoint and end\" >&2
    kill -TERM \$old
    while kill -0 \$old 2>/dev/null; do sleep 5; done
  fi
  echo \$\$ >train.pid
  exec .venv/bin/python -m jpeglm_jax.train --distributed --config=configs/jpeg.py:7b \
    --config.data.shards='$shards' --workdir='$workdir'"

say() {
  echo "$(date -u +%FT%TZ) $name: $*" >&2
}

resource() {
  gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"
}

# Prints the state of the slice: MISSING only if gcloud reports that it does not exist, UNKNOWN if
# the call failed for any other reason.
state() {
  local errors answer
  errors=$(mktemp)
  if answer=$(resource describe --format='value(state.state)' 2>"$errors"); then
    echo "${answer:-UNKNOWN}"
  elif grep -q NOT_FOUND "$errors"; then
    echo MISSING
  else
    say "describe failed: $(tail -n 1 "$errors")"
    echo UNKNOWN
  fi
  rm -f "$errors"
}

# Deletes the slice, as often as it takes.
delete() {
  until resource delete --force --quiet || [ "$(state)" = MISSING ]; do
    say "delete failed; the slice may still cost money; again in 30 s"
    sleep 30
  done
}

failures=0 last=
while [ "$failures" -lt "$max_failures" ]; do
  now=$(state)
  if [ "$now" != "$last" ]; then
    case $now in
      ACTIVE) say "ACTIVE: training" ;;
      MISSING) say "there is no slice: creating one" ;;
      SUSPENDED | FAILED) say "$now: deleting the slice, to create another one" ;;
      UNKNOWN) say "the state of the slice is unknown: asking again every 30 s" ;;
      *) say "$now: waiting for ACTIVE, asking every 30 s" ;;
    esac
    last=$now
  fi
  case $now in
    ACTIVE)
      began=$SECONDS
      if gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$train"; then
        say "training is done: deleting the slice"
        delete
        exit 0
      fi
      # The slice was preempted, the connection was lost, or training failed.
      failures=$((SECONDS - began < 600 ? failures + 1 : 0))
      say "training ended with an error after $((SECONDS - began)) s (failure $failures of" \
        "$max_failures that end this script): again in 30 s"
      ;;
    MISSING)
      if resource create --node-id="$name" --accelerator-type="$type" \
        --runtime-version="$runtime" --spot; then
        failures=0
      else
        failures=$((failures + 1))
        say "create failed (failure $failures of $max_failures that end this script)"
      fi
      ;;
    SUSPENDED | FAILED) delete ;;
  esac
  sleep 30
done
say "$max_failures failures in a row, see the messages above; the slice was not deleted"
exit 1
