#!/usr/bin/env bash
# Trains plain LoRA, plain LoRA stopped early, PLoRA and SPLoRA on one split of the demo, audits all, writes one table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

config="configs/compare_demo.toml" # what is trained and how it is audited

source ./setup.sh
exec "$python" compare.py --config_file "$config" "$@"
