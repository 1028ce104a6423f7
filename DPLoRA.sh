#!/usr/bin/env bash
# Trains DP-LoRA (differentially private, DP-SGD). As it stands: on the embedded demo. Flags go on, e.g. bash DPLoRA.sh --max_train_steps 50 --output_dir out
# With --audit it audits what it has trained, and ends with the verdict.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

config="configs/dplora_demo.toml" # the options of the run; configs/dplora.toml is for Stable Diffusion 1.5
gpus=1                          # more than 1 starts one process per GPU through accelerate

source ./setup.sh
if [ "$gpus" -gt 1 ]; then
    exec accelerate launch --multi_gpu --num_processes "$gpus" DPLoRA.py --config_file "$config" "$@"
else
    exec "$python" DPLoRA.py --config_file "$config" "$@"
fi
