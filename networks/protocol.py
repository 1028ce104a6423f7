"""Puts a network of any module into a model, with kohya's module protocol."""

import copy
import dataclasses
import inspect
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from library.diffusion.latent_diffusion import in_a_list
from library.errors import Faults, InputError, shortened
from library.lora_files.families import check_width
from library.lora_files.format import BrokenNetworkError, check_lora, stated_ranks, with_client_names
from library.lora_files.lora_file import read_lora
from library.lora_files.sdxl_names import UNET, diffusers_name
from library.named_code import NotImportedError, Wanted, imported
from library.tensor_files import write_tensors
from networks import lycoris_args
from networks.base_weights import merge_base_weights
from networks.given_args import KNOWN_ARGS, OWN, read_pairs, without_off
from networks.lora import LoRANetwork
from networks.lora_targets import named_layers, shaped_like_layers
from networks.network_protocol import Network

logger = logging.getLogger("library.networks")
NEEDED = ("apply_to", "prepare_optimizer_params", "prepare_grad_etc", "on_epoch_start", "get_trainable_params")
LYCORIS_WAY_OUT = "pip install lycoris-lora==4.1.3"
PREFIXES = {1: ("lora_te_",), 2: ("lora_te1_", "lora_te2_")}  # of the text encoders, by how many there are
PLAIN = (bool, int, float, str, list, dict, tuple, set, type(None))


@dataclass(frozen=True)
class NetworkRules:
    """Options of the network and of the weights that it starts from."""

    network_module: str
    network_args: list[str]
    network_dim: int
    network_alpha: float
    network_dropout: float
    network_weights: str | None
    dim_from_weights: bool
    network_train_unet_only: bool
    network_train_text_encoder_only: bool
    scale_weight_norms: float | None
    gradient_checkpointing: bool
    base_weights: list[str]
    base_weights_multiplier: list[str]
    dry_run: bool  # imports only networks.lora and lycoris.kohya


def inject(
    rules: NetworkRules, model: Any, device: torch.device, options: Mapping[str, Any]
) -> tuple[Any, dict[str, str]]:
    """Merge base_weights, create the module's network, apply it, fill it from network_weights: kohya's order.

    Args:
        model: with ``vae``, ``text_encoder``, ``unet`` and ``fingerprint``.
        options: for modules that have ``prepare_network``, as attributes of its one argument.

    Returns:
        The network on the device, and its metadata: ss_network_dim, ss_network_alpha and ss_network_args.

    Raises:
        InputError: a module without a needed function, by name; wrong network_args; files that do not fit.
    """
    faults = Faults()
    rules = faults.attempt(with_stand_in, rules) or rules
    given = without_off(rules.network_module, read_pairs(rules.network_args, faults))
    faults.attempt(merge_base_weights, model, rules.base_weights, rules.base_weights_multiplier)
    network: Any = faults.attempt(_create, rules, given, model)
    faults.raise_if_any()
    _require_calls(network, rules)
    if hasattr(network, "prepare_network"):
        network.prepare_network(SimpleNamespace(**options))
    apply_text, apply_unet = not rules.network_train_unet_only, not rules.network_train_text_encoder_only
    network.apply_to(model.text_encoder, model.unet, apply_text, apply_unet)
    if rules.network_weights:
        _load_weights(network, rules, model, apply_text and apply_unet)
    if rules.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    state = with_client_names(network.state_dict())
    try:
        check_lora({name: value.detach() for name, value in state.items()})
    except BrokenNetworkError as error:
        raise InputError(
            f"network_module '{rules.network_module}' makes a network that clients would misread: {error}"
        ) from error
    network.to(device)
    return network, stated_facts(rules, given, state)


def check_files(rules: NetworkRules) -> None:
    """Look at the LoRA files that the rules name, without a model. Raises: InputError with all that cannot be read."""
    faults = Faults()
    named = [("base_weights", file) for file in rules.base_weights]
    named += [("network_weights", rules.network_weights)] if rules.network_weights else []
    for option, file in named:
        try:
            read_lora(Path(file))
        except InputError as error:
            for message in error.messages:
                faults.add(f"{option} {message}")
    faults.raise_if_any()


def with_stand_in(rules: NetworkRules) -> NetworkRules:
    """The rules; in --dry_run with a LoRA of the same rank instead of a module that is not imported there."""
    wanted = Wanted("network_module", rules.network_module, rules.network_module, rules.dry_run)
    if not rules.dry_run or wanted.is_listed():
        return rules
    imported(wanted)  # reports that it is not imported, or refuses its name
    return dataclasses.replace(
        rules,
        network_module=OWN,
        network_args=[],
        network_weights=None,
        dim_from_weights=False,
        scale_weight_norms=None,
    )


def parameter_groups(
    network: Network,
    model: Any,
    text_encoder_lr: float | list[float] | None,
    unet_lr: float | None,
    learning_rate: float,
) -> list[dict[str, Any]]:
    """The network's parameter groups with their learning rates; other parameters are frozen.

    Older modules take two rates, newer ones three or one per text encoder; some return descriptions of the groups too.

    Args:
        text_encoder_lr: one rate for all text encoders, or one for each.

    Raises:
        InputError: more or fewer rates than text encoders; several for a module that takes one.
    """
    count = len(in_a_list(model.text_encoder))
    if isinstance(text_encoder_lr, list) and len(text_encoder_lr) != count:
        raise InputError(
            f"text_encoder_lr names {len(text_encoder_lr)} rates, and the base model has {count} text encoder"
            f"{'s' if count > 1 else ''}; give one rate for all, or one for each"
        )
    if hasattr(network, "prepare_optimizer_params_with_multiple_te_lrs"):
        rates = [text_encoder_lr] * count if isinstance(text_encoder_lr, float) else text_encoder_lr
        found = network.prepare_optimizer_params_with_multiple_te_lrs(rates, unet_lr, learning_rate)
    elif isinstance(text_encoder_lr, list) and not isinstance(network, LoRANetwork):
        raise InputError(
            f"text_encoder_lr names a rate for each text encoder ({text_encoder_lr}), and this network_module takes "
            f"one for all; give one, or use {OWN}"
        )
    elif len(inspect.signature(network.prepare_optimizer_params).parameters) < 3:
        filled = [learning_rate if rate is None else rate for rate in (text_encoder_lr, unet_lr)]
        found = network.prepare_optimizer_params(*filled)
    else:
        found = network.prepare_optimizer_params(text_encoder_lr, unet_lr, learning_rate)
    groups = found[0] if isinstance(found, tuple) else found
    groups = [{**group, "params": list(group["params"])} for group in groups]
    groups = [{"lr": learning_rate, **group} for group in groups if group["params"]]
    network.prepare_grad_etc(model.text_encoder, model.unet)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in network.get_trainable_params():
        parameter.requires_grad_(id(parameter) in trained)
    network.eval()
    return groups


def before_pass(network: Network, model: Any, *, starts_epoch: bool) -> None:
    """Training mode, in which dropouts act, and the module's own hooks."""
    network.train()
    if starts_epoch:
        network.on_epoch_start(model.text_encoder, model.unet)
    if hasattr(network, "on_step_start"):
        network.on_step_start(model.text_encoder, model.unet)


def after_step(network: Network, scale_weight_norms: float | None, device: torch.device) -> dict[str, float]:
    """Max-norm regularisation if it is on, with its figures; then evaluation mode for checks and previews."""
    figures: dict[str, float] = {}
    if scale_weight_norms is not None:
        scaled, mean, largest = network.apply_max_norm_regularization(scale_weight_norms, device)
        figures = {"keys_scaled": float(scaled), "mean_key_norm": float(mean), "max_key_norm": float(largest)}
    network.eval()
    return figures


def _create(rules: NetworkRules, given: dict[str, str], model: Any) -> Network:
    """The module's network with kohya's arguments; its errors become input errors."""
    name = rules.network_module
    try:
        module = imported(Wanted("network_module", name, name, rules.dry_run))
    except NotImportedError as error:
        if name != lycoris_args.MODULE:
            raise
        raise InputError(f"network_module '{name}' needs lycoris-lora: {LYCORIS_WAY_OUT} ({error})") from error
    except (ImportError, RuntimeError, OSError, ValueError) as error:
        way_out = LYCORIS_WAY_OUT if name == lycoris_args.MODULE else f"use {OWN}"
        raise InputError(f"network_module '{name}' cannot be imported ({error}); {way_out}") from error
    assert module is not None  # with_stand_in replaces modules that are not imported
    maker = "create_network_from_weights" if rules.dim_from_weights else "create_network"
    if not hasattr(module, maker):
        raise InputError(f"network_module '{name}' has no {maker}; use {OWN}")
    faults = Faults()
    if name == lycoris_args.MODULE:
        lycoris_args.quieten()
        lycoris_args.check_lycoris(given, rules.network_dropout, rules.dim_from_weights, faults)
    faults.raise_if_any()
    arguments = {"neuron_dropout": rules.network_dropout, "dropout": rules.network_dropout, **given}
    parts = (model.vae, model.text_encoder, model.unet)
    try:
        with (
            class_state_kept(module),
            lycoris_args.sound_presets(module) if name == lycoris_args.MODULE else nullcontext(),
        ):
            if not rules.dim_from_weights:
                return module.create_network(1.0, rules.network_dim, rules.network_alpha, *parts, **arguments)
            file = str(rules.network_weights)
            tensors = _named_for(model.text_encoder, name, _start_of(rules, model))
            return module.create_network_from_weights(1.0, file, *parts, weights_sd=tensors, **arguments)[0]
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise InputError(f"network_module '{name}' does not accept its network_args {given} ({reason})") from error


def _require_calls(network: Network, rules: NetworkRules) -> None:
    """Raises: InputError with all functions that this run needs and the network lacks."""
    wanted = [
        *NEEDED,
        *(["load_weights"] if rules.network_weights else []),
        *(["enable_gradient_checkpointing"] if rules.gradient_checkpointing else []),
        *(["apply_max_norm_regularization"] if rules.scale_weight_norms is not None else []),
    ]
    if hasattr(network, "prepare_optimizer_params_with_multiple_te_lrs"):
        wanted.remove("prepare_optimizer_params")
    lacking = [name for name in wanted if not hasattr(network, name)]
    if lacking:
        raise InputError(f"network_module '{rules.network_module}' lacks {', '.join(lacking)}; use {OWN}")


def _start_of(rules: NetworkRules, model: Any) -> dict[str, Tensor]:
    """The tensors of network_weights under kohya's names.

    Raises:
        InputError: a file of another family, or of kinds that networks.lora does not train.
    """
    try:
        lora = read_lora(Path(str(rules.network_weights)))
        check_width(lora.path, lora.tensors, model.unet.config.cross_attention_dim, model.family.name)
    except InputError as error:
        raise InputError(*(f"network_weights {message}" for message in error.messages)) from error
    others = sorted(lora.kinds - {"LoRA"})
    if others and rules.network_module == OWN:
        raise InputError(
            f"network_weights '{lora.path}' holds modules of the kind {' and '.join(others)}, and {OWN} trains LoRA "
            f"and LoCon; set network_module = {lycoris_args.MODULE}"
        )
    return shaped_like_layers(lora.tensors, named_layers(model.unet, model.text_encoder))


def _load_weights(network: Network, rules: NetworkRules, model: Any, both_parts: bool) -> None:
    """Load network_weights into the network; a warning names modules that the file lacks, which start fresh.

    Raises:
        InputError: tensors without a module in the network, or of another rank.
    """
    file = Path(str(rules.network_weights))
    own, tensors = network.state_dict(), _start_of(rules, model)
    live = _in_live_names(tensors, model.text_encoder)
    if len(set(live) & set(own)) > len(set(tensors) & set(own)):  # a module that names its layers by the module tree
        tensors = live
    with tempfile.TemporaryDirectory() as place:  # 0700: names as this network wants them, by kohya's own call
        write_tensors(Path(place) / "weights.safetensors", tensors, {}, private=True)
        try:
            found = network.load_weights(str(Path(place) / "weights.safetensors"))
        except RuntimeError as error:
            raise InputError(
                f"network_weights '{file}' has other ranks than the network (network_dim {rules.network_dim}); "
                "set dim_from_weights = true to take the file's"
            ) from error
    missing, unexpected = _two_lists(found)
    names = {name.partition(".")[0] for name in tensors}
    torn = [name for name in missing if name.partition(".")[0] in names]
    if unexpected or torn or not set(tensors) & set(own):
        part = "" if both_parts else " (or train both parts: one of them is left out)"
        raise InputError(
            f"network_weights '{file}' does not fit this network: {len(unexpected)} tensors have no module here "
            f"{shortened(sorted(unexpected), 2)}, {len(torn)} are missing {shortened(sorted(torn), 2)}; "
            f"set dim_from_weights = true to take its modules{part}"
        )
    fresh = sorted({name.partition(".")[0] for name in missing})
    if fresh:
        logger.warning("network_weights lacks %d modules, which start fresh: %s", len(fresh), shortened(fresh, 3))


def _two_lists(found: Any) -> tuple[list[str], list[str]]:
    """Missing and unexpected names in the result of load_weights: torch's pair, or a table."""
    if isinstance(found, Mapping):
        return list(found.get("missing keys", [])), list(found.get("unexpected keys", []))
    if isinstance(found, Iterable) and not isinstance(found, str):
        missing, unexpected = found
        return list(missing), list(unexpected)
    raise InputError("network_module: load_weights does not report which tensors it did not load; use networks.lora")


def _named_for(text_encoder: Any, module: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under the names that a module expects: ours from a table, others from the module tree."""
    return tensors if module == OWN else _in_live_names(tensors, text_encoder)


def _in_live_names(tensors: Mapping[str, Tensor], text_encoder: Any) -> dict[str, Tensor]:
    """Names after the module tree: without ``text_model`` where transformers has none, the UNet as in diffusers."""
    found = {}
    encoders = in_a_list(text_encoder)
    flat = [
        prefix for prefix, one in zip(PREFIXES[len(encoders)], encoders, strict=True) if not hasattr(one, "text_model")
    ]
    for name, value in tensors.items():
        prefix = next((one for one in flat if name.startswith(f"{one}text_model_")), None)
        if prefix is not None:
            name = prefix + name.removeprefix(f"{prefix}text_model_")  # noqa: PLW2901
        elif name.startswith(UNET):
            module, _, part = name.removeprefix(UNET).partition(".")
            name = f"{UNET}{diffusers_name(module)}.{part}"  # noqa: PLW2901
        found[name] = value
    return found


def stated_facts(rules: NetworkRules, given: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata about the network, from the options, or from its tensors if they came from a file.

    Only known keys of network_args are stated, and only values that cannot name a file.
    """
    dim, alpha = str(rules.network_dim), str(rules.network_alpha)
    if rules.network_weights:
        dim, alpha = stated_ranks(state)
    known = KNOWN_ARGS.get(rules.network_module, ())
    harmless = {
        name: text for name, text in given.items() if name in known and re.fullmatch(r"[\w,+-][\w,+ .-]*", text)
    }
    harmless = {name: text for name, text in harmless.items() if not re.search(r"\.[a-z]", text)}
    return {"ss_network_dim": dim, "ss_network_alpha": alpha, "ss_network_args": json.dumps(harmless)}


@contextmanager
def class_state_kept(module: ModuleType) -> Iterator[None]:
    """Restore the attributes of a module's classes afterwards: LyCORIS stores presets in them."""
    package = module.__name__.partition(".")[0]
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__.startswith(package)]
    before = {kind: _plain_attributes(kind) for kind in classes}
    try:
        yield
    finally:
        for kind, attributes in before.items():
            for name in set(_plain_attributes(kind)) - set(attributes):
                delattr(kind, name)
            for name, value in attributes.items():
                setattr(kind, name, value)


def _plain_attributes(kind: type) -> dict[str, Any]:
    return {
        name: copy.deepcopy(value)
        for name, value in vars(kind).items()
        if isinstance(value, PLAIN) and not name.startswith("__")
    }
