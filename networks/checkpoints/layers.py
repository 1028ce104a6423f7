"""A base model on the disk: where the weight of every layer that a LoRA can name lies, read tensor by tensor."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from library.diffusion.diffusers_folder import check_kind, check_parts
from library.diffusion.families.family import Family
from library.diffusion.families.recognise import family_of_file
from library.diffusion.folder_settings import check_files
from library.diffusion.single_file import converted, unfilled_parts, with_text_model_names
from library.errors import Faults, InputError, shortened
from library.incoming.files import is_file, is_folder
from library.incoming.foreign import foreign_reader
from library.tensor_files import Slot, open_tensors, slots
from networks.lora_targets import all_text_targets, locon_targets, named_layers, unet_targets

ROWS = 1 << 32  # a tag is ROWS * number of the tensor + row


@dataclass(frozen=True)
class Place:
    """A tensor of a file, or some of its rows: OpenCLIP keeps queries, keys and values in one matrix."""

    file: Path
    name: str
    first: int
    rows: int
    is_whole: bool


@dataclass(frozen=True)
class BaseCheckpoint:
    """An open checkpoint; tensors are read when they are asked for."""

    path: Path
    family: Family
    context_width: int  # of the text states
    files: Mapping[Path, Mapping[str, Slot]]  # those with layers that a LoRA can name
    places: Mapping[str, Mapping[str, Place]]  # name in a LoRA file -> "weight", "bias" -> place
    linear: tuple[str, ...]  # layers that kohya's LoRA changes: UNet, then text encoder
    convolutions: tuple[str, ...]  # those that LoCon adds
    opened: Mapping[Path, Any]

    def read(self, file: Path, name: str) -> Tensor:
        """A whole tensor as it is stored."""
        return self.opened[file].get_tensor(name)

    def layer(self, lora_name: str, part: str = "weight") -> Tensor:
        """The weight or bias of a layer by its name in a LoRA file."""
        place = self.places[lora_name][part]
        stored = self.read(place.file, place.name)
        return stored if place.is_whole else stored[place.first : place.first + place.rows]

    def shape(self, lora_name: str, part: str = "weight") -> torch.Size | None:
        """The shape of a layer's weight or bias; None where the layer has no bias."""
        place = self.places[lora_name].get(part)
        if place is None:
            return None
        stored = self.files[place.file][place.name].shape
        return torch.Size(stored if place.is_whole else (place.rows, *stored[1:]))

    def header(self, file: Path) -> dict[str, str]:
        """The part of a file's metadata that its readers need: the library that it was written for."""
        metadata = self.opened[file].metadata() or {}
        return {"format": metadata["format"]} if metadata.get("format") == "pt" else {}

    def check_layers(self, lora_names: list[str], what: object) -> None:
        """Raises: InputError for modules without a layer here."""
        strange = [name for name in lora_names if name not in self.places]
        if strange or not lora_names:
            raise InputError(
                f"'{what}' has {len(strange)} of {len(lora_names)} modules without a layer in '{self.path}': "
                f"{shortened(strange, 3)}; it was made for another base model"
            )


@contextmanager
def open_base_checkpoint(path: Path, settings: Path | None = None) -> Iterator[BaseCheckpoint]:
    """A single file in the original layout, or a diffusers folder; only headers are read.

    Args:
        settings: dimensions of a single file; None: those shipped for its family.

    Raises:
        InputError: other files and families, by name; layers without a tensor.
    """
    with ExitStack() as stack:
        if is_folder(path):
            yield _open_folder(path, stack)
        else:
            yield _open_file(path, settings, stack)


def _open_file(path: Path, settings: Path | None, stack: ExitStack) -> BaseCheckpoint:
    if path.suffix != ".safetensors" and is_file(path):
        raise InputError(
            f"'{path}' is not read tensor by tensor: give a .safetensors of it, or its folder in diffusers layout"
        )
    opened = stack.enter_context(open_tensors(path))
    layout = slots(opened)
    tags = tagged(layout)
    family = family_of_file(path, tags)
    with torch.device("meta"):
        unet, _, *text_encoders = empty = unfilled_parts(settings or family.settings, family)
    renamed = with_text_model_names(path, tags)
    parts = converted(path, empty, renamed, family)
    numbered = list(layout)
    found = {
        (part, name): _place_of(path, tag, numbered, layout)
        for part, (_, state) in parts.items()
        if part != "VAE"
        for name, tag in state.items()
    }
    return _joined(path, family, (unet, text_encoders), found, {path: (opened, layout)})


def tagged(layout: Mapping[str, Slot]) -> dict[str, Tensor]:
    """Tensors of the same names and shapes whose values tell tensor and row, in the memory of their rows alone.

    What a key map makes of them shows where each of its results comes from.
    """
    tags: dict[str, Tensor] = {}
    for number, (name, slot) in enumerate(layout.items()):
        rows = torch.arange(slot.shape[0] if slot.shape else 1) + number * ROWS
        tags[name] = rows.reshape(-1, *[1] * (len(slot.shape) - 1)).expand(slot.shape) if slot.shape else rows[0]
    return tags


def _place_of(file: Path, tag: Tensor, numbered: list[str], layout: Mapping[str, Slot]) -> Place:
    first = int(tag.flatten()[0])
    name, rows = numbered[first // ROWS], tag.shape[0] if tag.dim() else 1
    shape = layout[name].shape
    return Place(file, name, first % ROWS, rows, not shape or rows == shape[0])


def _open_folder(path: Path, stack: ExitStack) -> BaseCheckpoint:
    family = check_kind(path)
    check_parts(path, family)
    faults = Faults()
    roles = {"unet": "unet", "vae": "vae"} | {one.folder: "text_encoder" for one in family.texts}
    for part, role in roles.items():
        check_files(path / part, role, faults)
    faults.raise_if_any()
    with foreign_reader(f"'{path}'"), torch.device("meta"):
        unet, _, *text_encoders = unfilled_parts(path, family)
    folders = {"unet": "UNet"} | {one.folder: one.role for one in family.texts}
    found: dict[tuple[str, str], Place] = {}
    files: dict[Path, tuple[Any, dict[str, Slot]]] = {}
    for folder, part in folders.items():
        for file in sorted((path / folder).glob("*.safetensors")):
            opened = stack.enter_context(open_tensors(file))
            files[file] = opened, slots(opened)
            for name, slot in files[file][1].items():
                if (part, name) in found:
                    other = found[part, name].file.name
                    raise InputError(f"'{path / folder}' has its weights twice, in {other} and {file.name}; keep one")
                rows = slot.shape[0] if slot.shape else 1
                found[part, name] = Place(file, name, 0, rows, True)
    without = sorted(set(folders) - {file.parent.name for file in files})
    if without:
        raise InputError(f"'{path}' has no .safetensors in {'/, '.join(without)}/; pickles are not read here")
    return _joined(path, family, (unet, text_encoders), found, files)


def _joined(
    path: Path,
    family: Family,
    parts: tuple[Any, list[Any]],
    found: Mapping[tuple[str, str], Place],
    files: Mapping[Path, tuple[Any, dict[str, Slot]]],
) -> BaseCheckpoint:
    """Places by the names of a LoRA file. Raises: InputError for layers of the model without a tensor."""
    unet, text_encoders = parts
    names = {(part, name.removeprefix("text_model.")): place for (part, name), place in found.items()}
    roles = ["UNet", *(one.role for one in family.texts)]
    modules = {
        id(module): (role, dotted.removeprefix("text_model."))
        for role, one in zip(roles, (unet, *text_encoders), strict=True)
        for dotted, module in one.named_modules()
    }
    places: dict[str, dict[str, Place]] = {}
    missing: list[str] = []
    for lora_name, layer in named_layers(unet, text_encoders).items():
        part, dotted = modules[id(layer)]
        for tensor, _ in layer.named_parameters(recurse=False):
            place = names.get((part, f"{dotted}.{tensor}"))
            if place is None:
                missing.append(f"{dotted}.{tensor}")
            else:
                places.setdefault(lora_name, {})[tensor] = place
    if missing:
        raise InputError(f"'{path}' lacks {len(missing)} tensors of its layers: {shortened(missing, 3)}")
    linear: dict[str, nn.Module] = unet_targets(unet) | all_text_targets(family, text_encoders)
    return BaseCheckpoint(
        path, family, int(unet.config.cross_attention_dim), {file: layout for file, (_, layout) in files.items()},
        places, tuple(linear), tuple(locon_targets(unet)), {file: opened for file, (opened, _) in files.items()},
    )  # fmt: skip
