"""How much faster many LoRAs train as one stack than one by one, on the demo's base: a ratio from one run.

python -m benchmarks.stacked_speed [LoRAs] [rounds]
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from library.audit.reconstruction.stacked_lora import StackedModel, attention_layers, fresh_factors
from library.audit.reconstruction.stacked_training import StepRecipe, train_stack
from library.diffusion.model_files import load_model
from library.seeding import stream

ROOT = Path(__file__).parent.parent
STEPS, BATCH, RANK = 2, 2, 4


def seconds(model: StackedModel, latents: Tensor, context: Tensor, keys: list[str], together: int) -> float:
    """Processor seconds of ``STEPS`` steps of every LoRA, ``together`` at once."""
    recipe = StepRecipe(learning_rate=3e-3, weight_decay=0.01, clip=1.0, batch=BATCH)
    started = time.process_time()
    for first in range(0, len(keys), together):
        some = slice(first, first + together)
        start = fresh_factors(model.layers, RANK, 27 / 16, [stream(0, "A0", key) for key in keys[some]])
        train_stack(model, start, latents[some], context[some], STEPS, recipe, keys[some], seed=0)
    return time.process_time() - started


def main() -> None:
    """One by one and stacked in turn, several rounds, so that a slow minute of the machine hits both."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    torch.set_num_threads(1)
    base = load_model(str(ROOT / "demo" / "base"))
    schedule = base.scheduler.alphas_cumprod.float()
    model = StackedModel(base.unet, attention_layers(base.unet), schedule, base.fingerprint)
    keys = [str(number) for number in range(count)]
    latents = torch.randn(count, 4, 4, 16, 16, generator=stream(0, "latents"))
    context = torch.randn(count, 77, base.unet.config.cross_attention_dim, generator=stream(0, "context"))
    seconds(model, latents[:1], context[:1], keys[:1], 1)  # warm
    pairs = [[seconds(model, latents, context, keys, together) for together in (1, count)] for _ in range(rounds)]
    ratios = [alone / stacked for alone, stacked in pairs]
    rate = [count * STEPS * BATCH / statistics.median(column) for column in zip(*pairs, strict=True)]
    print(json.dumps({
        "LoRAs": count, "rounds": rounds, "faster": round(statistics.median(ratios), 2),
        "each_round": [round(ratio, 2) for ratio in ratios],
        "pictures_per_cpu_second": {"one by one": round(rate[0], 1), "stacked": round(rate[1], 1)},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
