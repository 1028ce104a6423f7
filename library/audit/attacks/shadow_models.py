"""Shadow LoRAs: the target's own recipe on other members of the same pictures, so that their labels are known."""

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import toml
from numpy.typing import NDArray

from library.audit.targets.candidate_table import Candidates
from library.data.split_file import FORMAT, read_split_file
from library.errors import InputError
from library.seeding import StreamKey, keyed_digest, numpy_stream, stream_seed
from library.tensor_files import private_folder, write_whole

logger = logging.getLogger(__name__)
NAME = "shadow"


@dataclass(frozen=True)
class ShadowRules:
    """Which shadows are asked for."""

    shadow_loras: int
    shadow_transfer: bool
    audit_seed: int


@dataclass(frozen=True)
class Recipe:
    """How the target was trained."""

    trainer: Path | None  # the door; None: another trainer made it
    options: Mapping[str, Any]  # all that shapes its weights
    split: Path
    folder: Path  # where shadows are kept


@dataclass(frozen=True)
class Shadow:
    """One shadow LoRA, trained or not."""

    sides: Sequence[str]  # of each candidate while this shadow trains
    seed: int
    folder: Path  # named by recipe, sides and seed: a retrained target gets new shadows

    @property
    def lora(self) -> Path:
        """Its file."""
        return self.folder / f"{NAME}.safetensors"

    def inside(self) -> NDArray[np.bool_]:
        """[n] who is in its training set."""
        return np.array([side.startswith("members") for side in self.sides])

    def answer_index(self, plan_name: str) -> Path:
        """The file that says where its answers lie."""
        return self.folder / f"sweep-{plan_name}.json"


@dataclass(frozen=True)
class Planned:
    """The shadows of one LoRA under audit."""

    recipe: Recipe
    halves: Sequence[Shadow]
    transfer: Shadow | None


def of_fixed_length(options: Mapping[str, Any], exposures: float | None) -> dict[str, Any]:
    """The recipe of a shadow: where ``target_auc`` ended the run, as many epochs, with the rate decayed at the end.

    A shadow has other members and fewer aux pictures, on which the target would mean something else or nothing at all.

    Args:
        exposures: of each member of the target's file.

    Raises:
        InputError: a target, and nothing says how long the run was.
    """
    fixed = dict(options)
    decay = fixed.pop("target_decay", None) or 0.0
    if fixed.pop("target_auc", None) is None:
        return dict(options)
    if exposures is None:
        raise InputError(
            "shadow LoRAs train as long as the LoRA under audit, but target_auc ended it and its file does not say "
            "after how many exposures (ss_privacy_exposures_per_image); leave shadow_loras and shadow_transfer out"
        )
    fixed.pop("max_train_steps", None)
    fixed["max_train_epochs"] = max(1, round(exposures))
    if decay and str(fixed.get("lr_scheduler", "constant")).startswith("constant"):
        fixed |= {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": decay / (1 + decay)}
    return fixed


def planned(recipe: Recipe, candidates: Candidates, rules: ShadowRules) -> Planned:
    """Decide who is in which shadow. Raises: InputError when shadows cannot be trained."""
    if (rules.shadow_loras or rules.shadow_transfer) and recipe.trainer is None:
        raise InputError(
            "shadow LoRAs repeat the recipe of the LoRA under audit, but another trainer made this one; "
            "leave shadow_loras and shadow_transfer out"
        )
    key = StreamKey(secret_of(recipe.split), rules.audit_seed)  # who is in a shadow is as private as the split
    transfer = transfer_shadow(recipe, candidates, key) if rules.shadow_transfer else None
    return Planned(recipe, half_shadows(recipe, candidates, rules.shadow_loras, key), transfer)


def secret_of(split: Path) -> bytes:
    """A split file's secret; empty where an earlier version wrote it."""
    return bytes.fromhex(read_split_file(split).get("secret", ""))


def halves(groups: Sequence[str], shadows: int, key: int | StreamKey) -> NDArray[np.bool_]:
    """[N, n] who is inside each shadow: whole groups, in complementary pairs, so that each is inside half of them."""
    if shadows < 2 or shadows % 2:
        raise InputError(f"shadow_loras must be an even number of at least 2, got {shadows}")
    names, position = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rows = []
    for pair in range(shadows // 2):
        coins = numpy_stream(key, "shadow halves", pair).random(len(names)) < 0.5
        rows += [coins[position], ~coins[position]]
    return np.stack(rows)


def half_shadows(recipe: Recipe, candidates: Candidates, count: int, key: StreamKey) -> list[Shadow]:
    """``count`` shadows on random halves of all candidates, for the likelihood ratio; aux pictures stay aux."""
    found = []
    for number, row in enumerate(halves(candidates.groups, count, key) if count else []):
        sides = [
            f"{'members' if inside else 'non-members'}-{side.rsplit('-', 1)[1]}"
            for inside, side in zip(row.tolist(), candidates.sides, strict=True)
        ]
        found.append(_shadow(recipe, candidates, sides, stream_seed(key, "shadow", number) % 2**31))
    return found


def transfer_shadow(recipe: Recipe, candidates: Candidates, key: StreamKey) -> Shadow:
    """The shadow that trains on the aux non-members and leaves the aux members out.

    The target's test pictures are on the side that no training reads.
    """
    names, position = np.unique(np.asarray(candidates.groups, dtype=str), return_inverse=True)
    ends = np.where(numpy_stream(key, "shadow transfer").random(len(names)) < 0.5, "aux", "test")
    sides = []
    for side, end in zip(candidates.sides, ends[position], strict=True):
        turned = {"non-members-aux": f"members-{end}", "members-aux": "non-members-aux"}
        sides.append(turned.get(side, "non-members-test"))
    return _shadow(recipe, candidates, sides, stream_seed(key, "shadow transfer") % 2**31)


def _shadow(recipe: Recipe, candidates: Candidates, sides: Sequence[str], seed: int) -> Shadow:
    placed = sorted(zip(candidates.pixels, sides, strict=True))
    assert recipe.trainer is not None  # planned() refuses it
    facts = json.dumps([recipe.trainer.stem, dict(recipe.options), placed, seed], sort_keys=True, default=str)
    return Shadow(sides, seed, recipe.folder / hashlib.sha256(facts.encode()).hexdigest()[:24])


def write_shadow_split(original: Path, side_of: Mapping[str, str], target: Path) -> None:
    """Write a split of the same pictures on other sides, with a secret derived from the original's.

    Args:
        side_of: side by hash of pixels.
    """
    content = read_split_file(original)
    for entry in content["images"]:
        entry["side"] = side_of[entry["pixels"]]
    secret = keyed_digest(secret_of(original), "shadow", target.parent.name).hex()
    content |= {"format": FORMAT, "secret": secret}
    content |= {"inclusion": "bernoulli", "nonmember_share": None, "aux_share": None}
    write_whole(target, json.dumps(content, indent=1) + "\n", private=True)


def train(shadow: Shadow, recipe: Recipe, candidates: Candidates) -> None:
    """Run the training door once, with the target's own options; a finished shadow is kept.

    Raises:
        InputError: when the training fails, with the end of its output.
    """
    if shadow.lora.is_file():
        return
    folder = private_folder(private_folder(recipe.folder) / shadow.folder.name)
    split, options = folder / "sides.json", folder / "recipe.toml"
    write_shadow_split(recipe.split, dict(zip(candidates.pixels, shadow.sides, strict=True)), split)
    own = {
        "split_file": str(split),
        "output_dir": str(folder),
        "output_name": NAME,
        "seed": shadow.seed,
        "save_state_on_train_end": False,
        "overwrite": True,
    }
    known = {name: value for name, value in recipe.options.items() if value is not None}
    write_whole(options, toml.dumps({**known, **own}), private=True)
    command = [sys.executable, str(recipe.trainer), "--config_file", str(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not shadow.lora.is_file():
        raise InputError("a shadow LoRA could not be trained:", *done.stderr.strip()[-500:].split("\n"))
    for file in folder.glob("*.safetensors"):
        file.chmod(0o600)
    logger.info("trained shadow LoRA %s", shadow.folder.name)
