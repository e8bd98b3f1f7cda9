#!/usr/bin/env bash
# Installs a wheel into a fresh environment and runs the demo from it, in an empty folder.
#
# scripts/try_wheel.sh WHEEL PYTHON
set -euo pipefail
wheel=$(realpath "$1")
python=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel[cpu,demo]"
export PATH="$folder/venv/bin:$PATH"
mkdir "$folder/empty"
cd "$folder/empty"
for command in jaxval jaxval-sample jaxval-fidelity jaxval-convert; do
  "$command" --help >"$folder/help.txt" || { cat "$folder/help.txt" >&2; exit 1; }
done
python -m jaxval.demo
