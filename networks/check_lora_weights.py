"""What a LoRA file holds, whether it is sound, who loads it, and what its metadata gives away."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: the suite lies one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import Tensor

from library.errors import InputError
from library.incoming.files import is_folder
from library.lora_files.clients import verdicts_of
from library.lora_files.families import context_width, family_name
from library.lora_files.format import RANK_DIMENSIONS, modules_of, stated_ranks, with_hashes
from library.lora_files.lora_file import read_lora, refuse_pickle
from library.lora_files.metadata_leaks import leaks_of, stripped
from library.lora_files.other_names import other_family
from library.plain_text import plain
from library.prompt_exit import run
from library.tensor_files import not_finite, open_tensors, read_tensors, slots, tensor_hash, write_tensors
from networks.command_line import Flags, check_output, check_room
from networks.low_rank import factors_of

BLOCK = ("down_blocks", "mid_block", "up_blocks", "lora_te")


def flags() -> Flags:
    """kohya's options, and the suite's own json and strip."""
    found = Flags("Say what a LoRA file holds, whether it is sound, who loads it, and what its metadata gives away.")
    found.add_argument("file", help="the LoRA (.safetensors)")
    found.add_argument(
        "-s", "--show_all_keys", action="store_true", help="list every tensor, not the up and down alone"
    )
    found.add_argument("--json", action="store_true", help="print one JSON object in place of the report")
    found.add_argument("--strip", metavar="SAVE_TO", help="write a copy whose metadata may be shared")
    found.add_argument("--overwrite", action="store_true", help="replace the file of --strip where it exists")
    return found


def main(arguments: list[str]) -> int:
    """Check one file; returns 0, or 1 where something is wrong with it or its metadata gives something away."""
    options = flags().read(arguments)
    path = Path(options.file)
    if is_folder(path):
        raise InputError(f"'{path}' is a folder; name the .safetensors file in it")
    target = check_output(options.strip, [path], overwrite=options.overwrite) if options.strip else None
    refuse_pickle(path)
    facts = facts_of(path)
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        report(facts)
        if options.show_all_keys:
            list_tensors(path)
    if target is not None:
        write_stripped(path, target)
    leaks = facts["leaks"] and target is None
    return 1 if facts["faults"] or facts["hash"] == "differs" or leaks else 0


def facts_of(path: Path) -> dict[str, Any]:
    """Everything that the report says. Values of the metadata are in none of it."""
    raw, metadata = read_tensors(path)
    stated, found = metadata.get("sshs_model_hash"), tensor_hash(raw)
    leaks = [{"key": leak.key, "gives_away": leak.what, "letters": leak.letters} for leak in leaks_of(metadata)]
    facts: dict[str, Any] = {
        "file": path.name,
        "tensors": len(raw),
        "dtypes": sorted({str(value.dtype).removeprefix("torch.") for value in raw.values()}),
        "tensor_hash": found,
        "hash": "absent" if not stated else "right" if stated == found else "differs",
        "metadata_keys": len(metadata),
        "leaks": leaks,
        "dropped_by_strip": sorted(set(metadata) - set(stripped(metadata))),
        "faults": [],
    }
    other = other_family(raw)
    try:
        lora = read_lora(path)
    except InputError as error:
        bad = not_finite({name: value for name, value in raw.items() if not value.is_complex()})
        return facts | {"family": other or "an unknown base model", "faults": error.messages, "not_finite": bad}
    modules = modules_of(lora.tensors)
    width = context_width(lora.tensors)
    dim, alpha = stated_ranks(lora.tensors)
    return facts | {
        "family": family_name(lora.tensors) or f"an unknown base model (text states of width {width})",
        "notes": notes_of(raw, modules),
        "kinds": sorted(lora.kinds),
        "modules": len(modules),
        "unet_modules": sum(name.startswith("lora_unet_") for name in modules),
        "rank": dim,
        "alpha": alpha,
        "ranks": _counts(modules),
        "norms": norms(modules),
        "clients": {one.client: {"loads": one.loads, "reason": one.reason} for one in verdicts_of(raw, lora.tensors)},
        "not_finite": [],
    }


def notes_of(raw: Mapping[str, Tensor], modules: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """What is unusual about the alphas of a file and no fault."""
    alphas = [value for name, value in raw.items() if name.endswith(".alpha")]
    missing = sum("alpha" in parts for parts in modules.values()) - len(alphas)
    whole = sum(not value.is_floating_point() for value in alphas)
    found = (
        [f"{missing} modules have no alpha; every client takes the rank, so that the scale is 1"] if missing > 0 else []
    )
    return found + (
        [f"{whole} alphas are whole numbers, as kohya writes them by mistake; they count as they are"] if whole else []
    )


def _counts(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
    """How many modules have each pair of rank and alpha."""
    counts: dict[str, int] = {}
    for parts in modules.values():
        rank = next((parts[name].shape[at] for name, at in RANK_DIMENSIONS.items() if name in parts), None)
        alpha = f"{float(parts['alpha']):g}" if "alpha" in parts else "none"
        key = f"rank {'none' if rank is None else rank}, alpha {alpha}"
        counts[key] = counts.get(key, 0) + 1
    return counts


def norms(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """Frobenius norm of the change by block, of LoRA and LoCon; of other kinds the norm of their factors."""
    squares: dict[str, float] = {}
    for name, parts in modules.items():
        factors = factors_of(parts)
        values = [factors.product()] if factors else [one.float() for part, one in parts.items() if part != "alpha"]
        block = next((one for one in BLOCK if one in name), "other")
        if block.endswith("_blocks"):
            block += "_" + name.split(f"{block}_")[1].partition("_")[0]
        squares[block] = squares.get(block, 0.0) + sum(float(one.square().sum()) for one in values)
    return {block: square**0.5 for block, square in sorted(squares.items())}


def report(facts: Mapping[str, Any]) -> None:
    """Print the facts for a person."""
    print(plain(f"{facts['file']}: {facts['tensors']} tensors ({', '.join(facts['dtypes'])}), for {facts['family']}"))
    for fault in facts["faults"]:
        print(plain(f"  WRONG: {fault}"))
    hashes = {
        "absent": "the header states none",
        "right": "as the header states",
        "differs": "WRONG: the header states another; the tensors were changed after they were saved",
    }
    print(plain(f"hash of the tensors: {facts['tensor_hash'][:12]}, {hashes[facts['hash']]}"))
    if "modules" in facts:
        text = facts["modules"] - facts["unet_modules"]
        print(f"modules: {facts['unet_modules']} in the UNet, {text} in the text encoders; {', '.join(facts['kinds'])}")
        print("ranks: " + "; ".join(f"{count} of {pair}" for pair, count in facts["ranks"].items()))
        print("norms by block: " + ", ".join(f"{block} {norm:.4g}" for block, norm in facts["norms"].items()))
        for note in facts["notes"]:
            print(plain(f"note: {note}"))
        print("clients:")
        for client, one in facts["clients"].items():
            print(plain(f"  {client}: {'loads it' if one['loads'] else one['reason']}"))
    print(f"metadata: {facts['metadata_keys']} keys, of which {len(facts['leaks'])} give something away")
    for leak in facts["leaks"]:
        print(plain(f"  LEAK {leak['key']}: {leak['gives_away']} ({leak['letters']} letters)"))
    settings = set(facts["dropped_by_strip"]) - {leak["key"] for leak in facts["leaks"]}
    if settings:
        print(f"  {len(settings)} more keys are settings of a training, and not on the list of what may be shared")
    if facts["leaks"]:
        print("  --strip SAVE_TO writes a copy without them")


def list_tensors(path: Path) -> None:
    """Print name, shape, mean and least absolute value, as kohya's tool does."""
    with open_tensors(path) as file:
        for name in sorted(slots(file)):
            value = file.get_tensor(name).float()
            size = value.abs() if value.numel() else value.new_zeros(1)
            print(plain(f"{name}, {tuple(value.shape)}, mean |x| {size.mean():.4g}, least |x| {size.min():.4g}"))


def write_stripped(path: Path, target: Path) -> None:
    """The same tensors under the same names with clean metadata; hashes are stated anew."""
    raw, metadata = read_tensors(path)
    clean = stripped(metadata)
    for name in ("sshs_model_hash", "sshs_legacy_hash"):
        clean.pop(name, None)
    clean = with_hashes(raw, clean)
    check_room(target, sum(value.numel() * value.itemsize for value in raw.values()))
    write_tensors(target, raw, clean, private=False)
    print(plain(f"written: {target}, with {len(clean)} of {len(metadata)} keys"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main))
