"""Cuts a LoRA to a lower rank by its singular values: python networks/resize_lora.py --model a.safetensors ..."""

import sys
from argparse import Namespace
from pathlib import Path

if not __package__:  # started as a script: the suite lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.errors import InputError
from library.plain_text import plain
from library.progress import counted
from library.prompt_exit import run
from networks.command_line import (
    Flags,
    check_output,
    check_positive,
    checked_device,
    factors_in,
    precision_of,
    read_checked,
    write_result,
)
from networks.low_rank import METHODS, Factors, RankChoice, decomposed_factors

SHOWN = 5  # layers that lose most


def flags() -> Flags:
    """kohya's options."""
    found = Flags("Cut a LoRA to a lower rank by its singular values, and say how much energy every layer keeps.")
    found.add_argument("--model", required=True, help="the LoRA")
    found.add_argument("--save_to", required=True, help="the smaller LoRA (.safetensors)")
    found.add_argument("--new_rank", type=int, default=4, help="rank; with dynamic_method the most (default 4)")
    found.add_argument("--new_conv_rank", type=int, help="rank of convolutions wider than 1 x 1 (default: new_rank)")
    found.add_argument("--dynamic_method", choices=METHODS, help="choose the rank of each layer by its singular values")
    found.add_argument("--dynamic_param", type=float, help="sv_ratio: above 1; sv_fro and sv_cumulative: share up to 1")
    found.add_argument("--verbose", action="store_true", help="print every layer")
    found.add_common()
    return found


def main(arguments: list[str]) -> int:
    """Resize one file; returns 0."""
    options = flags().read(arguments)
    choices = rank_choices(options)
    path = check_output(options.save_to, [options.model], overwrite=options.overwrite)
    device = checked_device(options.device)
    lora = read_checked(options.model)
    modules = factors_in(lora, "cut to a rank")
    check_ranks(modules, choices)
    lines: list[tuple[float, str]] = []
    cut, whole, lost = {}, 0.0, 0.0
    with counted(len(modules), "resizing", "modules") as bar:
        for name, factors in modules.items():
            moved = Factors(factors.up.to(device), factors.down.to(device), factors.scale, factors.shape)
            found = decomposed_factors(moved)
            rank = choices[factors.is_wide].of(found.values)
            cut[name] = found.cut(rank, factors.shape).parts()
            kept, error = found.kept_energy(rank), found.lost(rank)
            lines.append((kept, f"{name}: rank {factors.rank} -> {rank}, keeps {kept:.2%} of the energy, "
                                f"error {error:.3g} of norm {float(found.values.norm()):.3g}"))  # fmt: skip
            whole, lost = whole + float(found.values.square().sum()), lost + error**2
            bar.update()
    shown = lines if options.verbose else sorted(lines)[:SHOWN]
    print(f"energy by layer{'' if options.verbose else ', those that lose most'}:")
    for _, line in shown:
        print(plain(f"  {line}"))
    share = 1 - lost / whole if whole else 1.0
    print(f"all layers keep {share:.2%} of the energy; error {lost**0.5:.4g} of norm {whole**0.5:.4g}")
    precision = options.save_precision or precision_of(lora.tensors)
    write_result(path, cut, [lora.metadata], precision, no_metadata=options.no_metadata)
    return 0


def rank_choices(options: Namespace) -> dict[bool, RankChoice]:
    """The choice for convolutions wider than 1 x 1 (True), and for all other layers.

    Raises:
        InputError: ranks below 1; a method without its parameter, or with one outside its bounds.
    """
    method, param = options.dynamic_method, options.dynamic_param
    if (method is None) != (param is None):
        raise InputError(
            "dynamic_method and dynamic_param go together, e.g. --dynamic_method sv_fro --dynamic_param 0.9"
        )
    if method == "sv_ratio" and not param > 1:
        raise InputError(f"dynamic_param of sv_ratio must be above 1, got {param:g}; 2 to 20 are usual")
    check_positive(param, "dynamic_param", None if method == "sv_ratio" else 1.0)
    check_positive(options.new_rank, "new_rank")
    check_positive(options.new_conv_rank, "new_conv_rank")
    wide = options.new_rank if options.new_conv_rank is None else options.new_conv_rank
    return {False: RankChoice(options.new_rank, method, param), True: RankChoice(wide, method, param)}


def check_ranks(modules: dict[str, Factors], choices: dict[bool, RankChoice]) -> None:
    """Raises: InputError when a rank is above that of every layer it is for: nothing would be cut."""
    for wide, name in ((False, "new_rank"), (True, "new_conv_rank")):
        ranks = [one.rank for one in modules.values() if one.is_wide == wide]
        if ranks and choices[wide].method is None and choices[wide].rank > max(ranks):
            raise InputError(
                f"{name} must be at most {max(ranks)}, the rank of the file, got {choices[wide].rank}; "
                "a cut adds no directions"
            )


if __name__ == "__main__":
    sys.exit(run(main))
