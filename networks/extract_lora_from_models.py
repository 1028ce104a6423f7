"""A LoRA from two checkpoints, tuned and original: python networks/extract_lora_from_models.py --model_org ..."""

import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script: the suite lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from library.errors import InputError
from library.lora_files.format import DTYPES
from library.plain_text import plain
from library.progress import counted
from library.prompt_exit import run
from networks.checkpoints.layers import BaseCheckpoint, open_base_checkpoint
from networks.command_line import Flags, check_family, check_output, check_positive, checked_device, write_result
from networks.lora_targets import UNET_PREFIX
from networks.low_rank import RankChoice, clamped, decomposed


def flags() -> Flags:
    """kohya's options."""
    found = Flags("The low-rank components of what was tuned: a LoRA that turns model_org into model_tuned, nearly.")
    found.add_argument("--model_org", required=True, help="original checkpoint: .safetensors or diffusers folder")
    found.add_argument("--model_tuned", required=True, help="tuned checkpoint")
    found.add_argument("--save_to", required=True, help="the LoRA (.safetensors)")
    found.add_argument("--dim", type=int, default=4, help="rank (default 4)")
    found.add_argument("--conv_dim", type=int, help="rank of convolutions wider than 1 x 1; makes a LoCon")
    found.add_argument("--v2", action="store_true", help="say that both are SD 2.x models; it is checked")
    found.add_argument("--sdxl", action="store_true", help="say that both are SDXL models; it is checked")
    found.add_argument("--v_parameterization", action="store_true", help="they predict velocity; stated in the file")
    text = "the text encoder is left out unless a weight of it differs by more (default 0.01)"
    found.add_argument("--min_diff", type=float, default=0.01, help=text)
    clamp = "hold factors within this quantile of their values, as kohya does with 0.99; not by default"
    found.add_argument("--clamp_quantile", type=float, help=clamp)
    found.add_argument("--load_precision", choices=list(DTYPES), help="round both checkpoints to it first")
    found.add_common()
    return found


@dataclass(frozen=True)
class Pair:
    """Two open checkpoints of one family."""

    original: BaseCheckpoint
    tuned: BaseCheckpoint
    precision: torch.dtype | None

    def difference(self, name: str, device: torch.device, part: str = "weight") -> Tensor:
        """Tuned minus original; fp32. Raises: InputError for NaN, infinity and other shapes."""
        shapes = [one.shape(name, part) for one in (self.original, self.tuned)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{name} is {tuple(shapes[0] or ())} in '{self.original.path}' and {tuple(shapes[1] or ())} in "
                f"'{self.tuned.path}'; the two are no versions of one model"
            )
        values = [one.layer(name, part).to(device) for one in (self.tuned, self.original)]
        first, second = (value.to(self.precision or value.dtype).float() for value in values)
        difference = first - second
        if not bool(difference.isfinite().all()):
            bad = self.tuned if not bool(first.isfinite().all()) else self.original
            raise InputError(f"'{bad.path}' has NaN or infinity in {name}; fetch or export it again")
        return difference


def main(arguments: list[str]) -> int:
    """Extract one LoRA; returns 0."""
    options = flags().read(arguments)
    check_options(options)
    path = check_output(options.save_to, [options.model_org, options.model_tuned], overwrite=options.overwrite)
    device = checked_device(options.device)
    precision = DTYPES[options.load_precision] if options.load_precision else None
    with open_base_checkpoint(Path(options.model_org)) as org, open_base_checkpoint(Path(options.model_tuned)) as tuned:
        check_families(org, tuned, options)
        pair = Pair(org, tuned, precision)
        names = chosen_layers(pair, options, device)
        ranks = ranks_of(org, names, options)
        modules: dict[str, dict[str, Tensor]] = {}
        whole = lost = 0.0
        with counted(len(names), "extracting", "layers") as bar:
            for name in names:
                matrix = pair.difference(name, device)
                found = decomposed(matrix.flatten(1))
                rank = RankChoice(ranks[name]).of(found.values)
                factors = found.cut(rank, tuple(matrix.shape))
                if options.clamp_quantile is not None:
                    factors = clamped(factors, options.clamp_quantile)
                whole, lost = whole + float(found.values.square().sum()), lost + found.lost(rank) ** 2
                modules[name] = factors.parts()
                bar.update()
        if not whole:
            raise InputError(
                f"'{tuned.path}' differs from '{org.path}' in no layer that a LoRA changes; nothing to extract"
            )
        share, kept_apart = 1 - lost / whole, other_differences(pair, names, device)
        version = org.family.version_of(velocity=options.v_parameterization)
    print(f"the LoRA keeps {share:.2%} of the energy of the difference in its {len(names)} layers")
    if kept_apart:
        print(
            f"{kept_apart} other layers differ too, and the LoRA leaves them as they were (see --conv_dim, --min_diff)"
        )
    facts = {
        "ss_v2": str(org.family.v2),
        "ss_base_model_version": version.base_model,
        "modelspec.architecture": version.architecture,
        "modelspec.implementation": version.implementation,
        "modelspec.prediction_type": "v" if options.v_parameterization else "epsilon",
    }
    write_result(path, modules, [facts], options.save_precision or "float", no_metadata=options.no_metadata)
    return 0


def check_options(options: Namespace) -> None:
    """Raises: InputError for numbers outside their bounds."""
    check_positive(options.dim, "dim")
    check_positive(options.conv_dim, "conv_dim")
    check_positive(options.clamp_quantile, "clamp_quantile", 1.0)
    if not options.min_diff >= 0:
        raise InputError(f"min_diff must be at least 0, got {options.min_diff:g}")


def check_families(original: BaseCheckpoint, tuned: BaseCheckpoint, options: Namespace) -> None:
    """Raises: InputError for checkpoints of two families, and for another than the flags say."""
    if original.family is not tuned.family:
        raise InputError(
            f"'{original.path}' is an {original.family.name} model and '{tuned.path}' an {tuned.family.name} one"
        )
    check_family(original, options)


def chosen_layers(pair: Pair, options: Namespace, device: torch.device) -> list[str]:
    """The layers of the LoRA. Raises: InputError when the two checkpoints do not have the same layers."""
    names = [*pair.original.linear, *(pair.original.convolutions if options.conv_dim else ())]
    if set(pair.original.places) != set(pair.tuned.places):
        odd = sorted(set(pair.original.places) ^ set(pair.tuned.places))
        raise InputError(f"'{pair.tuned.path}' and '{pair.original.path}' have different layers, e.g. {odd[0]}")
    text = [name for name in names if not name.startswith(UNET_PREFIX)]
    if any(float(pair.difference(name, device).abs().max()) > options.min_diff for name in text):
        return names
    print(f"the text encoder is left out: no weight of it differs by more than {options.min_diff:g} (--min_diff)")
    return [name for name in names if name.startswith(UNET_PREFIX)]


def ranks_of(checkpoint: BaseCheckpoint, names: list[str], options: Namespace) -> dict[str, int]:
    """The rank of each layer, at most the layer's own; the number of those that are smaller is told.

    Raises:
        InputError: a rank above that of every layer.
    """
    ranks, most, small = {}, {False: 0, True: 0}, 0
    for name in names:
        shape = checkpoint.shape(name) or torch.Size([0, 0])
        is_wide, own = shape[2:].numel() > 1, min(shape[0], shape[1:].numel())
        wanted = options.conv_dim if is_wide else options.dim
        ranks[name], most[is_wide] = min(wanted, own), max(most[is_wide], own)
        small += wanted > own
    for is_wide, option in ((False, "dim"), (True, "conv_dim")):
        wanted = getattr(options, option)
        if most[is_wide] and wanted > most[is_wide]:
            raise InputError(f"{option} must be at most {most[is_wide]}, the rank of the largest layer, got {wanted}")
    if small:
        print(plain(f"{small} of {len(names)} layers have a lower rank than asked for, and get their own"))
    return ranks


def other_differences(pair: Pair, names: list[str], device: torch.device) -> int:
    """How many layers differ that the LoRA does not change, or in their bias, which no LoRA changes."""
    chosen, count = set(names), 0
    for name, parts in pair.original.places.items():
        others = [part for part in parts if part != "weight" or name not in chosen]
        count += any(bool(pair.difference(name, device, part).any()) for part in others)
    return count


if __name__ == "__main__":
    sys.exit(run(main))
