#!/bin/sh
# Start one role with further arguments of its command: comfyui, gateway, endpoint or worker. Any other word is a command of its own.
# "healthcheck" checks the role that this container runs. PORT, YGGDRASILL_DATA, MODELS_DIR, COMFY_HOME and COMFY_ARGS are settings.
set -eu

data="${YGGDRASILL_DATA:-/data}"
home="${COMFY_HOME:-/opt/ComfyUI}"
role_file="$data/.role"
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# Record what the health check requests.
record() {
    mkdir -p "$data"
    printf '%s\n' "$1" >"$role_file"
}

role="${1:-comfyui}"
if [ "$#" -gt 0 ]; then shift; fi

case "$role" in
comfyui)
    port="${PORT:-8188}"
    record "http://127.0.0.1:$port/system_stats"
    for name in input output temp user; do mkdir -p "$data/$name"; done
    export MODELS_DIR="${MODELS_DIR:-/models}"
    # the words in COMFY_ARGS are arguments, as a worker reads them
    # shellcheck disable=SC2086
    exec "${COMFYUI_PYTHON:-python}" "$home/main.py" --listen 0.0.0.0 --port "$port" --disable-auto-launch \
        --input-directory "$data/input" --output-directory "$data/output" --temp-directory "$data/temp" --user-directory "$data/user" \
        --database-url "sqlite:///$data/user/comfyui.db" --extra-model-paths-config "$here/extra_model_paths.yaml" \
        ${COMFY_ARGS:-} "$@"
    ;;
gateway)
    port="${PORT:-8080}"
    record "http://127.0.0.1:$port/healthz"
    exec yggdrasill gateway --host 0.0.0.0 --port "$port" --data-dir "$data" "$@"
    ;;
endpoint)
    port="${PORT:-8400}"
    record "http://127.0.0.1:$port/yggdrasill/v1/health"
    exec yggdrasill serve --host 0.0.0.0 --port "$port" --data-dir "$data" "$@"
    ;;
worker)
    # a worker connects to others and does not listen
    record ""
    if [ "$#" -eq 0 ]; then set -- serverless; fi
    exec yggdrasill worker "$@"
    ;;
healthcheck)
    url=$(cat "$role_file")
    if [ -z "$url" ]; then exit 0; fi
    # an answer that a token is required is one too
    exec "${COMFYUI_PYTHON:-python}" -c '
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=8).close()
except urllib.error.HTTPError as error:
    sys.exit(error.code not in (401, 403))
except OSError as error:
    sys.exit(str(error))
' "$url"
    ;;
*)
    exec "$role" "$@"
    ;;
esac
