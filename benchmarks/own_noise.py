"""What the split's secret is worth: the calibrated loss at a run's own (timestep, noise) against fresh ones.

python -m benchmarks.own_noise OUTPUT_DIR [draws]     # a finished run of PLoRA.py or SPLoRA.py without accumulation
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from library import seeding
from library.assembly.pictures import EncodingRules, encode_pictures
from library.audit.statistics.intervals import hanley_mcneil_error
from library.audit.statistics.metrics import auc
from library.data import read_pictures, split_file, training_set
from library.data.batches import MemberBatches, Pictures
from library.diffusion import model_files
from library.diffusion.denoising import Denoiser
from library.diffusion.noise import Draw, NoiseRules, draw_noise
from library.options import resolve
from library.rules import pick
from networks import lora

ATTACKER = seeding.StreamKey(b"an attacker's own", 0)


def own_draws(pictures: Pictures, members: MemberBatches, key: seeding.StreamKey, rules: NoiseRules, scale: float,
              steps: int, draws: int) -> dict[int, list[Draw]]:  # fmt: skip
    """The last (timestep, noise) pairs that each member was trained with, by row."""
    found: dict[int, list[Draw]] = {}
    for step in reversed(range(steps)):
        (batch,) = members.of_step(step)
        generator = seeding.stream(key, "noise", "members", step, 0, 0)
        scaled = batch.latents(generator) * scale
        draw = draw_noise(rules, scaled, 1000, generator)
        for place, row in enumerate(batch.indices):
            if len(found.setdefault(row, [])) < draws:
                found[row].append(Draw(draw.timesteps[place : place + 1], draw.noise[place : place + 1], None))
    return found


def fresh_draws(shape: tuple[int, ...], row: int, draws: int) -> list[Draw]:
    """As many pairs of the attacker's own."""
    generator = seeding.stream(ATTACKER, "fresh", row)
    return [
        Draw(torch.randint(0, 1000, (1,), generator=generator), torch.randn(1, *shape, generator=generator), None)
        for _ in range(draws)
    ]


@torch.no_grad()
def losses(denoiser: Denoiser, pictures: Pictures, row: int, draws: list[Draw]) -> Tensor:
    """[draws] mean squared errors of one picture."""
    tokens, _ = pictures.plain_tokens([row])
    batch = pictures.plain_batches([row], 1)[0]
    latents = denoiser.scaled(batch.mean.float())
    context = denoiser.context(tokens, None).framed(batch.framing).repeated(len(draws))
    draw = Draw(torch.cat([one.timesteps for one in draws]), torch.cat([one.noise for one in draws]), None)
    difference = denoiser.difference(latents.expand(len(draws), -1, -1, -1), context, draw)
    return difference.square().mean(dim=(1, 2, 3))


def main() -> None:
    out, draws = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 24
    door = "SPLoRA" if "SPLoRA.py" in (out / "config.toml").read_text().splitlines()[0] else "PLoRA"
    config = resolve.read_config(door, ["--config_file", str(out / "config.toml")], lambda text: None)
    torch.set_num_threads(1)
    found = read_pictures.read_sources(*read_pictures.pick_rules(config))
    sides = split_file.reuse_split(out / "split.json", found.candidates, split_file.new_secret())
    model = model_files.open_base(pick(config, model_files.ModelRules), torch.float32)
    rows = training_set.build_training_set(sides, [], 1.0, model.side_multiple())
    key = sides.key(config.seed)
    steps_per_epoch = rows.steps_per_epoch(1, 1)
    steps = steps_per_epoch * config.max_train_epochs if config.max_train_epochs else config.max_train_steps
    pictures = encode_pictures(
        rows, model, pick(config, EncodingRules), steps_per_epoch=steps_per_epoch, total_steps=steps, key=key
    )
    members = MemberBatches(pictures, accumulation=1, key=key)
    own = own_draws(pictures, members, key, pick(config, NoiseRules), model.vae.config.scaling_factor, steps, draws)
    network, weights = lora.create_network_from_weights(
        1.0, out / f"{config.output_name}.safetensors", model.vae, model.text_encoder, model.unet
    )
    network.apply_to(model.text_encoder, model.unet, True, True)
    network.load_state_dict(weights)
    denoiser = Denoiser(model.unet, model.text_encoder, model.scheduler, latent_scale=model.vae.config.scaling_factor,
                        clip_skip=config.clip_skip)  # fmt: skip

    def scores(row: int, chosen: list[Draw]) -> float:
        network.set_multiplier(0.0)
        off = losses(denoiser, pictures, row, chosen)
        network.set_multiplier(1.0)
        return float((off / losses(denoiser, pictures, row, chosen)).log().mean())

    everybody = range(len(pictures.examples))
    fresh = {
        row: scores(row, fresh_draws(pictures.shape(row), row, len(own.get(row, range(draws))))) for row in everybody
    }
    at_own = {row: scores(row, own[row]) for row in own}
    others = np.array([fresh[row] for row in everybody if not pictures.is_member[row]])
    for name, values in (("fresh", [fresh[row] for row in own]), ("own", list(at_own.values()))):
        area = auc(np.array(values), others)
        error = hanley_mcneil_error(area, len(values), len(others))
        print(json.dumps({"noise": name, "draws": draws, "members": len(values), "non_members": len(others),
                          "auc": round(area, 3), "standard_error": round(error, 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
