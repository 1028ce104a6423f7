"""network_args as they are given: texts to pairs, those that ask for nothing, and what is wrong without a model."""

from collections.abc import Mapping

from library.errors import Faults
from library.key_values import split_pair
from networks import lora_args, lycoris_args

OWN = "networks.lora"
KNOWN_ARGS = {OWN: lora_args.KNOWN, lycoris_args.MODULE: lycoris_args.KNOWN}
OFF = ("false", "none", "0", "0.0", "")  # in small letters
READ_AS_ON = ("decompose_both",)  # LyCORIS reads the text False as true


def read_pairs(pairs: list[str], faults: Faults) -> dict[str, str]:
    """``["conv_dim=8", "algo=loha"]`` -> texts by key; no pair, and a key with two values, are faults."""
    given: dict[str, str] = {}
    for pair in pairs:
        found = split_pair(pair)
        if found is None:
            faults.add(f"network_args: '{pair}' is not key=value, e.g. conv_dim=8")
        elif given.setdefault(found[0], found[1]) != found[1]:
            faults.add(f"network_args: '{found[0]}' is given twice, as {given[found[0]]!r} and {found[1]!r}")
    return given


def without_off(module: str, given: Mapping[str, str]) -> dict[str, str]:
    """The pairs without keys that are off and that the module does not have, or would read as on."""
    known = KNOWN_ARGS.get(module)
    return {
        name: text
        for name, text in given.items()
        if text.lower() not in OFF or known is None or (name in known and name not in READ_AS_ON)
    }


def check_given(module: str, pairs: list[str], network_dropout: float, from_weights: bool, faults: Faults) -> list[str]:
    """Collect what is wrong with network_args whatever the model; returns the keys that are off and left out."""
    read = read_pairs(pairs, faults)
    given = without_off(module, read)
    if module == OWN:
        lora_args.check_known(given, lora_args.KNOWN, OWN, faults)
        reader = lora_args.ArgumentReader(given, faults)
        lora_args.read_dropouts(reader, network_dropout)
        lora_args.check_numbers(reader)
    elif module == lycoris_args.MODULE:
        lycoris_args.check_lycoris(given, network_dropout, from_weights, faults)
    return [name for name in read if name not in given]
