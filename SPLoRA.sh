#!/usr/bin/env bash
# Trains Stable PrivateLoRA (ratio objective). As it stands: on the embedded demo. Flags go on, e.g. bash SPLoRA.sh --max_train_steps 50 --output_dir out
# With --audit it audits what it has trained, and ends with the verdict.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

config="configs/splora_demo.toml" # the options of the run; configs/splora.toml is for Stable Diffusion 1.5
gpus=1                          # more than 1 starts one process per GPU through accelerate

source ./setup.sh
if [ "$gpus" -gt 1 ]; then
    exec accelerate launch --multi_gpu --num_processes "$gpus" SPLoRA.py --config_file "$config" "$@"
else
    exec "$python" SPLoRA.py --config_file "$config" "$@"
fi
