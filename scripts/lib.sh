# shellcheck shell=bash disable=SC2034
# What the scripts share. Sourced by each of them, never run: it goes to the root of the repository and defines functions.

set -euo pipefail

START=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
SCRIPT=$(basename "$0")
PYTORCH_DIR=parity-tests/pytorch
REQUIREMENTS=$PYTORCH_DIR/requirements.txt
# The packages that the oracle and the generators need besides torch.
ORACLE_NEEDS=(expecttest numpy safetensors)
cd "$ROOT"

say() {
  printf '%s: %s\n' "$SCRIPT" "$*"
}

warn() {
  say "$@" >&2
}

die() {
  warn "$@"
  exit 1
}

# A wrong command line has the status 2, as in most programs.
die_usage() {
  warn "$* (see scripts/$SCRIPT --help)"
  exit 2
}

# from_start PATH: that path as the caller of the script means it.
from_start() {
  case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$START/$1" ;;
  esac
}

# pinned NAME: the requirement of that package, for example `torch==2.13.0`.
pinned() {
  grep -E "^$1==" "$REQUIREMENTS" || die "$REQUIREMENTS has no line '$1==VERSION'"
}

default_torch() {
  local line
  line=$(pinned torch)
  printf '%s\n' "${line#torch==}"
}

# tch_for TORCH: the release of tch whose bindings were generated from that release of PyTorch.
tch_for() {
  case $1 in
    2.13.0) echo 0.26.0 ;;
    2.11.0) echo 0.24.0 ;;
    2.10.0) echo 0.23.0 ;;
    2.9.0) echo 0.22.0 ;;
    *) die "no tch release goes with torch $1; choose 2.13.0, 2.11.0, 2.10.0 or 2.9.0" ;;
  esac
}

# locked_tch DIR: the version of tch in Cargo.lock.
locked_tch() {
  [ -f "$1/Cargo.lock" ] || return 0
  awk '$0 == "name = \"tch\"" { getline; gsub(/"/, "", $3); print $3 }' "$1/Cargo.lock"
}

# lock_tch VERSION DIR: pins tch, and with it torch-sys, in Cargo.lock.
lock_tch() (
  cd "$2"
  cargo update --quiet -p tch --precise "$1"
)

# These would go before .cargo/config.toml, and so before the torch that was set up.
FOREIGN_LIBTORCH=${LIBTORCH-}${LIBTORCH_USE_PYTORCH-}
unset LIBTORCH LIBTORCH_LIB LIBTORCH_INCLUDE LIBTORCH_USE_PYTORCH

# How cargo builds the harness. All of the workspace in the profile that the tests use, so that the C++ of torch-sys, which
# takes a minute or two, is compiled once for everything.
HARNESS=(--package parity --bin parity)
