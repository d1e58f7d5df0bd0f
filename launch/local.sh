#!/usr/bin/env bash
# Trains in N processes on this machine: on GPUs each takes one, on a CPU each is one device.
#   bash launch/local.sh N --config=configs/smoke.py --workdir=runs/smoke [--config.any.field=value]
# The same command resumes. A signal is passed on: all save the same step and end with 128 + signal. When a process dies,
# the others are ended, and this ends with its status.
set -uo pipefail
count=${1:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || { echo "how many processes? bash launch/local.sh 2 --config=configs/smoke.py --workdir=runs/smoke"; exit 2; }
shift
last=60  # seconds to follow a process that has saved and ended by a signal

export JAX_NUM_PROCESSES=$count
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
declare -A number=()
for ((i = 0; i < count; i++)); do
  JAX_PROCESS_ID=$i JAX_LOCAL_DEVICE_IDS=$i python -m hope_jax.launch "$@" &
  number[$!]=$i
done
for name in TERM INT USR1; do
  trap "kill -$name \${!number[@]} 2>/dev/null" $name
done

exec 3>&2 2>/dev/null  # without the shell's own notes on jobs
status=0 timer=
while ((${#number[@]})); do
  wait -n -p ended "${!number[@]}" $timer
  code=$?
  [ -n "${ended:-}" ] || continue  # a signal came, no process ended
  if [ "$ended" = "$timer" ]; then
    echo "not all processes ended within $last s of the first: ending the others" >&3
    kill -KILL "${!number[@]}"
    timer=
    continue
  fi
  who=${number[$ended]}
  unset "number[$ended]"
  ((code == 0 || status != 0)) && continue
  status=$code
  ((${#number[@]})) || break
  if ((code == 130 || code == 138 || code == 143)); then
    sleep $last &
    timer=$!
  else
    if ((code > 128)); then
      how="died (status $code, signal $(kill -l $((code - 128)))): ending the others; the same command resumes"
    else
      how="ended with status $code, it says why above: ending the others"
    fi
    echo "process $who of $count $how" >&3
    kill -KILL "${!number[@]}"
  fi
done
[ -z "$timer" ] || kill $timer
exit $status
