"""LoRA and LoCon with kohya's module protocol: the network of low-rank layers, fresh or from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from library.errors import Faults, InputError, shortened
from library.lora_files.format import kind_of, modules_of
from library.lora_files.lora_file import read_lora
from library.tensor_files import not_finite
from networks.lora_args import (
    KNOWN,
    RANKS,
    ArgumentReader,
    LearningPlan,
    check_known,
    read_dropouts,
    read_learning,
    read_ranks,
)
from networks.lora_module import LoRAModule
from networks.lora_targets import UNET_PREFIX, Blocks, all_layers, blocks_of, checked_targets, shaped_like_layers
from networks.weight_change import merge_weights


class LoRANetwork(nn.Module):
    """All LoRA modules of a model, under kohya's names, so that ``state_dict()`` is the file's content."""

    def __init__(
        self, unet_loras: list[LoRAModule], text_encoder_loras: list[LoRAModule], learning: LearningPlan, blocks: Blocks
    ) -> None:
        super().__init__()
        self.unet_loras = unet_loras
        self.text_encoder_loras = text_encoder_loras
        self.learning = learning
        self.blocks = blocks

    def apply_to(self, text_encoder: Any, unet: Any, apply_text_encoder: bool, apply_unet: bool) -> None:
        """Inject into the selected parts; the other part gets no LoRA, and the file has none for it."""
        self.text_encoder_loras = self.text_encoder_loras if apply_text_encoder else []
        self.unet_loras = self.unet_loras if apply_unet else []
        for lora in self.modules_of_both():
            lora.apply_to()
            self.add_module(lora.lora_name, lora)

    def modules_of_both(self) -> list[LoRAModule]:
        """Text-encoder modules, then UNet modules, in the order of the file."""
        return self.text_encoder_loras + self.unet_loras

    def remove(self) -> None:
        """Remove every module from the model."""
        for lora in self.modules_of_both():
            lora.remove()

    def merge_to(
        self, text_encoder: Any, unet: Any, weights_sd: Mapping[str, Tensor], dtype: Any = None, device: Any = None
    ) -> None:
        """Add the network's change to the model's own weights, in their dtype and on their device."""
        multiplier = self.modules_of_both()[0].multiplier if self.modules_of_both() else 1.0
        merge_weights(unet, text_encoder, weights_sd, multiplier)

    def load_weights(self, file: str | Path) -> dict[str, list[str]]:
        """Load a LoRA file with its alphas; returns the tensors that it lacks and those without a module here."""
        tensors = read_lora(Path(file)).tensors
        found = self.load_state_dict(tensors, strict=False)
        for lora in self.modules_of_both():
            lora.scale = float(lora.alpha) / lora.rank
        return {"missing keys": list(found.missing_keys), "unexpected keys": list(found.unexpected_keys)}

    def set_multiplier(self, multiplier: float) -> None:
        """Strength of the whole network; 0 gives the base model's own output."""
        for lora in self.modules_of_both():
            lora.multiplier = multiplier

    def enable_gradient_checkpointing(self) -> None:
        """Part of the protocol; the model does the checkpointing."""

    def prepare_optimizer_params(
        self, text_encoder_lr: float | list[float] | None, unet_lr: float | None, learning_rate: float
    ) -> list[dict[str, Any]]:
        """Parameter groups with learning rates, with LoRA+ also groups of up factors; a rate of 0 has no group.

        Args:
            text_encoder_lr: one rate, or one for each text encoder.
        """
        plan, weights = self.learning, self.learning.block_weights
        unet_rate = learning_rate if unet_lr is None else unet_lr
        groups: list[dict[str, Any]] = []
        if isinstance(text_encoder_lr, list):
            for number, rate in enumerate(text_encoder_lr, 1):
                of_one = [lora for lora in self.text_encoder_loras if lora.lora_name.startswith(f"lora_te{number}_")]
                groups += _groups(of_one, rate, plan.text_up_ratio)
        else:
            text_rate = learning_rate if text_encoder_lr is None else text_encoder_lr
            groups = _groups(self.text_encoder_loras, text_rate, plan.text_up_ratio)
        if weights is None:
            return groups + _groups(self.unet_loras, unet_rate, plan.unet_up_ratio)
        by_block: dict[int, list[LoRAModule]] = {}
        for lora in self.unet_loras:
            by_block.setdefault(self.blocks.index_of(lora.lora_name), []).append(lora)
        for block in sorted(by_block):
            groups += _groups(by_block[block], unet_rate * weights[block], plan.unet_up_ratio)
        return groups

    def prepare_grad_etc(self, text_encoder: Any, unet: Any) -> None:
        """Make every factor trainable."""
        self.requires_grad_(True)

    def on_epoch_start(self, text_encoder: Any, unet: Any) -> None:
        """Switch to training mode, with dropout."""
        self.train()

    def get_trainable_params(self) -> list[nn.Parameter]:
        """The factors, for clipping."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def apply_max_norm_regularization(self, max_norm: float, device: Any = None) -> tuple[int, float, float]:
        """Scale down every module whose weight change has a norm above ``max_norm`` (Frobenius, with its scale).

        Returns:
            Modules scaled, and the mean and the largest norm after scaling.
        """
        loras = self.modules_of_both()
        if not loras:
            return 0, 0.0, 0.0
        norms = torch.stack([lora.change_norm() for lora in loras]).tolist()  # one wait for the device
        for lora, norm in zip(loras, norms, strict=True):
            if norm > max_norm:
                lora.shrink(max_norm / norm)
        after = [min(norm, max_norm) for norm in norms]
        return sum(norm > max_norm for norm in norms), sum(after) / len(after), max(after)


def _groups(loras: list[LoRAModule], rate: float, up_ratio: float | None) -> list[dict[str, Any]]:
    """One group, or two with the up factors at ``rate * up_ratio``; nothing for a rate of 0."""
    if not loras or rate == 0:
        return []
    if up_ratio is None:
        return [{"params": [parameter for lora in loras for parameter in lora.parameters()], "lr": rate}]
    downs, ups = ([getattr(lora, part).weight for lora in loras] for part in ("lora_down", "lora_up"))
    return [{"params": downs, "lr": rate}, {"params": ups, "lr": rate * up_ratio}]


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: Any,
    unet: Any,
    neuron_dropout: float | None = None,
    **network_args: str,
) -> LoRANetwork:
    """A fresh LoRA for transformers and text encoder, with ``conv_dim`` for resnets and samplers too (LoCon).

    Args:
        network_args: texts; see networks/lora_args.py.

    Raises:
        InputError: all unknown or wrong arguments; a number of layers that differs from the one that the model's
            config implies.
    """
    faults, blocks = Faults(), blocks_of(unet)
    check_known(network_args, KNOWN, "networks.lora", faults)
    reader = ArgumentReader(network_args, faults)
    dropouts, learning = read_dropouts(reader, neuron_dropout), read_learning(reader, blocks)
    rank, alpha = 4 if network_dim is None else network_dim, 1.0 if network_alpha is None else network_alpha
    plan = read_ranks(reader, rank, alpha, blocks, learning.block_weights)
    faults.raise_if_any()
    unet_layers, text_layers = checked_targets(unet, text_encoder, with_locon=plan.conv is not None)

    def modules(layers: Mapping[str, nn.Module]) -> list[LoRAModule]:
        made = []
        for name, layer in layers.items():
            rank, alpha = plan.text
            if name.startswith(UNET_PREFIX):
                is_conv = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
                rank, alpha = ((plan.conv or []) if is_conv else plan.linear)[blocks.index_of(name)]
            if rank:
                made.append(LoRAModule(name, layer, rank=rank, alpha=alpha, dropouts=dropouts, multiplier=multiplier))
        return made

    return LoRANetwork(modules(unet_layers), modules(text_layers), learning, blocks)


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: Any,
    text_encoder: Any,
    unet: Any,
    weights_sd: Mapping[str, Tensor] | None = None,
    for_inference: bool = False,
    neuron_dropout: float | None = None,
    **network_args: str,
) -> tuple[LoRANetwork, dict[str, Tensor]]:
    """A network with the modules, ranks and alphas of a kohya file, not yet filled; and the file's tensors.

    Convolutions (LoCon) are taken as they come.

    Raises:
        InputError: tensors that fit no layer of this model, or that are not finite; arguments that set ranks.
    """
    if weights_sd is None and file is None:
        raise ValueError("create_network_from_weights needs a file or its tensors")
    faults, blocks = Faults(), blocks_of(unet)
    check_known(network_args, KNOWN, "networks.lora", faults)
    reader = ArgumentReader(network_args, faults)
    reader.refuse(RANKS, f"cannot be set here: the ranks come from '{file}'; leave it out")
    dropouts, learning = read_dropouts(reader, neuron_dropout), read_learning(reader, blocks)
    faults.raise_if_any()
    layers = all_layers(unet, text_encoder)
    given = weights_sd if weights_sd is not None else read_lora(Path(str(file))).tensors
    weights = shaped_like_layers(given, layers)
    names = _fitting_names(weights, layers, file)
    loras: dict[bool, list[LoRAModule]] = {True: [], False: []}
    for name in names:
        down = weights[f"{name}.lora_down.weight"]
        alpha = float(weights.setdefault(f"{name}.alpha", torch.tensor(float(down.shape[0]))))
        lora = LoRAModule(name, layers[name], rank=down.shape[0], alpha=alpha, dropouts=dropouts, multiplier=multiplier)
        for part, own in (("lora_down", lora.lora_down.weight), ("lora_up", lora.lora_up.weight)):
            stated = weights.get(f"{name}.{part}.weight", own)
            if stated.shape != own.shape:
                raise InputError(
                    f"'{file}' does not fit this model: {name}.{part} is {tuple(stated.shape)}, the layer here takes "
                    f"{tuple(own.shape)}; it was made for another base model"
                )
        loras[name.startswith(UNET_PREFIX)].append(lora)
    return LoRANetwork(loras[True], loras[False], learning, blocks), weights


def _fitting_names(weights: Mapping[str, Tensor], layers: Mapping[str, nn.Module], file: Any) -> list[str]:
    """Module names of a file, after a check that each has a layer here and that every tensor is finite."""
    bad = not_finite(weights)
    if bad:
        raise InputError(
            f"'{file}' has NaN or infinity in {len(bad)} tensors: {shortened(bad, 3)}; the file is damaged"
        )
    modules = modules_of(weights)
    others = {kind_of(frozenset(parts)) or "" for name, parts in modules.items() if name in layers} - {"LoRA", ""}
    if others:
        raise InputError(
            f"'{file}' holds modules of the kind {' and '.join(sorted(others))}; networks.lora trains "
            "LoRA and LoCon; others are for network_module = lycoris.kohya"
        )
    names = sorted(modules)
    strange = [name for name in names if name not in layers or f"{name}.lora_down.weight" not in weights]
    if strange or not names:
        raise InputError(
            f"'{file}' does not fit this model: {len(strange)} of {len(names)} modules have no layer here: "
            f"{shortened(strange, 3)}; it was made for another base model, or it is not a LoRA"
        )
    return names
