#!/usr/bin/env bash
# Audits one or more LoRAs: bash audit.sh OUTPUT_DIR [OUTPUT_DIR ...]. The report is OUTPUT_DIR/audit/report.html.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

config="configs/audit.toml" # the options of the audit

source ./setup.sh
exec "$python" audit.py --config_file "$config" "$@"
