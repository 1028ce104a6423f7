"""Likelihood-ratio attack with shadow LoRAs: train N of them on random halves and compare (arXiv 2112.03570)."""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from library.audit.evidence import Candidates, Evidence, Rows
from library.audit.record_store import RecordStore
from library.check import InputError
from library.data.split import read_split_file
from library.seeding import stream_seed
from library.tensor_files import private_folder, write_whole

logger = logging.getLogger(__name__)
FEW = 8  # up to so many shadows, all pictures share one spread per timestep


def halves(groups: Sequence[str], shadows: int, seed: int) -> NDArray[np.bool_]:
    """[N, n] who is inside each shadow: whole groups, in complementary pairs, so that everyone is in half of them."""
    if shadows < 2 or shadows % 2:
        raise InputError(f"shadow_loras must be an even number of at least 2, got {shadows}")
    names, position = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rows = []
    for pair in range(shadows // 2):
        coins = np.random.default_rng(stream_seed(seed, "shadow halves", pair)).random(len(names)) < 0.5
        rows += [coins[position], ~coins[position]]
    return np.stack(rows)


def write_shadow_split(original: Path, inside: dict[str, bool], target: Path) -> None:
    """The same pictures with other members; who is on an aux side stays there."""
    content = read_split_file(original)
    for entry in content["images"]:
        end = entry["side"].rsplit("-", 1)[1]
        entry["side"] = f"{'members' if inside[entry['pixels']] else 'non-members'}-{end}"
    content["inclusion"] = "bernoulli"
    write_whole(target, json.dumps(content, indent=1) + "\n", private=True)


def train_shadow(trainer: Path, config: Path, split: Path, folder: Path, seed: int) -> Path:
    """Run the training door once, with the target's own options; a finished shadow is kept. Returns its LoRA.

    Raises:
        InputError: when the training fails, with its last words.
    """
    name = "shadow"
    lora = folder / f"{name}.safetensors"
    if lora.is_file():
        return lora
    if not trainer.is_file():
        raise InputError(f"shadow LoRAs need the trainer of the LoRA under audit, and '{trainer.name}' is not here")
    command = [sys.executable, str(trainer), "--config_file", str(config), "--split_file", str(split), "--output_dir",
               str(folder), "--output_name", name, "--seed", str(seed), "--overwrite", "--no-save_state_on_train_end",
               "--save_every_n_epochs", "1000000", "--sample_prompts", ""]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"a shadow LoRA could not be trained: {done.stderr.strip()[-500:]}")
    return lora


def train_shadows(
    original: Path,
    candidates: Candidates,
    folder: Path,
    trainer: Path,
    config: Path,
    shadows: int,
    seed: int,
    plan_name: str,
) -> list[tuple[Path, Path]]:
    """Train every shadow that is not there yet, with the target's own trainer and options.

    Returns:
        LoRA file and folder for its answers, for each shadow.
    """
    files = []
    for number, row in enumerate(halves(candidates.groups, shadows, seed)):
        split = private_folder(folder) / f"split-{number:03d}.json"
        write_shadow_split(original, dict(zip(candidates.pixels, row.tolist(), strict=True)), split)
        lora = train_shadow(trainer, config, split, folder / f"{number:03d}", seed + number)
        files.append((lora, shadow_folder(folder, number, plan_name)))
        logger.info("shadow LoRA %d of %d is there", number + 1, shadows)
    return files


def likelihood_ratios(target: Rows, shadows: Rows, inside: NDArray[np.bool_]) -> Rows:
    """[n] sum over timesteps of log N(x; in) - log N(x; out), Gaussians per picture and timestep.

    Args:
        target: [n, T] log of the loss with the LoRA over that of the base.
        shadows: [N, n, T] the same under each shadow.
        inside: [N, n] who was in its training set.
    """
    mask = inside[:, :, None]
    log_ratio = np.zeros(target.shape)
    for sign, chosen in ((1, mask), (-1, ~mask)):
        count = chosen.sum(0)
        if (count == 0).any():
            raise InputError("a picture is inside all shadows or none; more shadows are needed")
        centre = np.where(chosen, shadows, 0).sum(0) / count
        squares = np.where(chosen, (shadows - centre) ** 2, 0)
        if len(shadows) <= FEW:
            spread = (squares.sum((0, 1)) / max(int(count.sum()) - len(target), 1))[None]
        else:
            spread = squares.sum(0) / np.maximum(count - 1, 1)
        spread = np.maximum(spread, 1e-12)
        log_ratio += sign * (-0.5 * np.log(spread) - (target - centre) ** 2 / (2 * spread))
    return log_ratio.sum(1)


def shadow_folder(folder: Path, number: int, plan_name: str) -> Path:
    """Where the answers of one shadow lie."""
    return folder / f"{number:03d}" / "audit" / plan_name


def shadow_scores(
    evidence: Evidence, groups: Sequence[str], keys: Sequence[str], folder: Path, shadows: int, seed: int
) -> tuple[Rows, Rows, str]:
    """Scores of the target, of the base in its place, and what was used. Raises: InputError without cached answers."""
    inside = halves(groups, shadows, seed)
    base = np.log(evidence.losses("off"))
    answers = []
    for number in range(shadows):
        place = shadow_folder(folder, number, evidence.plan.name)
        records = RecordStore(place).gather(keys)
        answers.append(np.log(Evidence(records, records, evidence.plan).losses("on")) - base)
    target = np.log(evidence.losses("on")) - base
    stacked = np.stack(answers)
    off = likelihood_ratios(np.zeros_like(target), stacked, inside)
    return likelihood_ratios(target, stacked, inside), off, f"{shadows} shadows"
