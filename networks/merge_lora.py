"""Merges LoRAs: into a checkpoint, or with each other: python networks/merge_lora.py --models a.safetensors ..."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:  # started as a script: the suite lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from library.errors import InputError
from library.incoming.files import is_folder
from library.lora_files.families import check_width
from library.lora_files.format import modules_of
from library.lora_files.lora_file import LoraFile
from library.plain_text import plain
from library.progress import counted
from library.prompt_exit import run
from networks.checkpoints.layers import open_base_checkpoint
from networks.checkpoints.writing import write_merged
from networks.command_line import (
    Flags,
    check_family,
    check_one_family,
    check_output,
    check_positive,
    checked_device,
    factors_in,
    precision_of,
    read_checked,
    write_result,
)
from networks.low_rank import Factors, concatenated, decomposed_factors


def flags() -> Flags:
    """kohya's options."""
    found = Flags("Merge LoRAs into a checkpoint (with sd_model), or with each other into one LoRA (without).")
    found.add_argument("--sd_model", help="checkpoint to merge into: .safetensors, or a folder in diffusers layout")
    found.add_argument("--models", nargs="+", required=True, help="the LoRAs")
    found.add_argument("--ratios", nargs="+", type=float, help="strength of each LoRA (default: 1 each)")
    found.add_argument("--save_to", required=True, help="the result: .safetensors; a folder where sd_model is one")
    found.add_argument("--new_rank", type=int, help="cut the sum of LoRAs to this rank (default: all ranks together)")
    found.add_argument(
        "--new_conv_rank", type=int, help="the same for convolutions wider than 1 x 1 (default: new_rank)"
    )
    found.add_argument("--concat", action="store_true", help="kohya's switch; without new_rank it is always done")
    found.add_argument("--v2", action="store_true", help="say that sd_model is an SD 2.x model; it is checked")
    found.add_argument("--sdxl", action="store_true", help="say that sd_model is an SDXL model; it is checked")
    found.add_common()
    return found


def main(arguments: list[str]) -> int:
    """Merge; returns 0."""
    options = flags().read(arguments)
    ratios = checked_ratios(options)
    into_folder = options.sd_model is not None and is_folder(options.sd_model)
    inputs = [*options.models, *([options.sd_model] if options.sd_model else [])]
    path = check_output(options.save_to, inputs, overwrite=options.overwrite, folder=into_folder)
    device = checked_device(options.device)
    loras = [read_checked(model) for model in options.models]
    check_one_family(loras)
    if options.sd_model is None:
        merge_with_each_other(loras, ratios, path, options)
        return 0
    if options.new_rank is not None or options.new_conv_rank is not None:
        raise InputError("new_rank is for LoRAs that are merged with each other; leave it or sd_model out")
    merge_into_checkpoint(loras, ratios, path, options, device)
    return 0


def checked_ratios(options: Namespace) -> list[float]:
    """The strength of each LoRA. Raises: InputError for another number of them, for 0 and for what is not finite."""
    ratios = options.ratios if options.ratios is not None else [1.0] * len(options.models)
    if len(ratios) != len(options.models):
        raise InputError(f"ratios has {len(ratios)} numbers for {len(options.models)} models; give one for each")
    for ratio in ratios:
        if ratio == 0 or ratio - ratio != 0:
            raise InputError(f"ratios must be finite and not 0, got {ratio:g}; leave a model out to not merge it")
    check_positive(options.new_rank, "new_rank")
    check_positive(options.new_conv_rank, "new_conv_rank")
    return ratios


def merge_into_checkpoint(
    loras: Sequence[LoraFile], ratios: Sequence[float], path: Path, options: Namespace, device: torch.device
) -> None:
    """W + sum of ratio * change, tensor by tensor, with one rounding to the stored dtype.

    Changes that depend on W (DoRA, OFT, GLoRA) are those of the checkpoint's own W, whatever the order of the LoRAs.
    """
    with open_base_checkpoint(Path(options.sd_model)) as checkpoint:
        check_family(checkpoint, options)
        changes: dict[str, list[tuple[Mapping[str, Tensor], float]]] = {}
        for lora, ratio in zip(loras, ratios, strict=True):
            check_width(lora.path, lora.tensors, checkpoint.context_width, checkpoint.family.name)
            modules = modules_of(lora.tensors)
            checkpoint.check_layers(list(modules), lora.path)
            for name, parts in modules.items():
                changes.setdefault(name, []).append((parts, ratio))
        write_merged(checkpoint, changes, path, options.save_precision, device)
    print(plain(f"written: {path} ({len(changes)} layers of '{options.sd_model}' changed)"))


def merge_with_each_other(loras: Sequence[LoraFile], ratios: Sequence[float], path: Path, options: Namespace) -> None:
    """One LoRA with the sum of ratio * change: all ranks together exactly, or the nearest of a rank."""
    terms: dict[str, list[tuple[Factors, float]]] = {}
    for lora, ratio in zip(loras, ratios, strict=True):
        for name, factors in factors_in(lora, "added to another LoRA").items():
            terms.setdefault(name, []).append((factors, ratio))
    check_ranks(terms, options)
    merged: dict[str, dict[str, Tensor]] = {}
    whole = lost = 0.0
    with counted(len(terms), "merging", "modules") as bar:
        for name, of_layer in terms.items():
            try:
                factors = concatenated(of_layer)
            except InputError as error:
                raise InputError(f"{name}: {error}; the LoRAs were made for different base models") from error
            rank = options.new_conv_rank if factors.is_wide and options.new_conv_rank else options.new_rank
            if rank is not None:
                found = decomposed_factors(factors)
                rank = min(rank, len(found.values))
                whole, lost = whole + float(found.values.square().sum()), lost + found.lost(rank) ** 2
                factors = found.cut(rank, factors.shape)
            merged[name] = factors.parts()
            bar.update()
    if options.new_rank is not None:
        print(f"the rank keeps {1 - lost / whole if whole else 1.0:.2%} of the energy of the sum")
    precision = options.save_precision or precision_of({k: v for lora in loras for k, v in lora.tensors.items()})
    write_result(path, merged, [lora.metadata for lora in loras], precision, no_metadata=options.no_metadata)


def check_ranks(terms: Mapping[str, Sequence[tuple[Factors, float]]], options: Namespace) -> None:
    """Raises: InputError for a rank that cuts nothing: one above those of all LoRAs together, in every layer."""
    most = max((sum(factors.rank for factors, _ in of_layer) for of_layer in terms.values()), default=0)
    for option in ("new_rank", "new_conv_rank"):
        wanted = getattr(options, option)
        if wanted is not None and wanted > most:
            raise InputError(f"{option} must be at most {most}, the ranks of the files together, got {wanted}")


if __name__ == "__main__":
    sys.exit(run(main))
