"""A third-party network by kohya's contract: LyCORIS through the real door, its traps, and modules that fall short."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

import PLoRA
from library import named_code
from library.diffusion.model_files import load_model
from library.errors import Faults, InputError
from library.lora_files.format import kinds_in, with_client_names, write_lora
from library.options.declarations import Config
from library.rules import pick
from library.seeding import stream
from library.tensor_files import read_tensors
from networks import given_args, lora, lycoris_args, protocol
from networks.weight_change import merge_weights
from tests.helpers.runs import assert_same_tensors
from tests.helpers.tiny import unet_output

kohya = pytest.importorskip("lycoris.kohya")
LYCORIS = "lycoris.kohya"
CPU = torch.device("cpu")


def rules(**changed: object) -> protocol.NetworkRules:
    """Rules of a LyCORIS network of rank 2; keywords change them."""
    options = {"network_module": LYCORIS, "network_dim": 2, **changed}
    return protocol.NetworkRules(**{**vars(pick(Config(), protocol.NetworkRules)), **options})


def moved(network) -> None:
    """Push every factor away from where it starts."""
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream(3, index)))


ALGORITHMS = [
    (["algo=loha", "rank_dropout=0.2", "module_dropout=0.2", "use_scalar=True"], {"LoHa"}),
    (["algo=lokr", "factor=4", "rank_dropout=0.2"], {"LoKr"}),
    (["algo=full"], {"full difference"}),
    (["algo=locon", "use_tucker=True", "train_norm=True"], {"LoRA", "LoCon with a core", "norm"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "kinds"), ALGORITHMS, ids=lambda value: str(sorted(value)))
def test_six_steps_equal_three_and_three_through_the_door(flags, tmp_path: Path, arguments, kinds) -> None:
    """LyCORIS rewrites its state_dict (the scalar goes into a factor): states hold the raw tensors instead."""
    more = ["--network_args", *arguments, "--scale_weight_norms", "0.5"] if "algo=loha" in arguments else [
        "--network_args", *arguments]  # fmt: skip
    common = {"network_module": LYCORIS, "save_state": True}
    assert PLoRA.main([*flags(**common, output_dir=tmp_path / "one", max_train_steps=6), *more]) == 0
    assert PLoRA.main([*flags(**common, output_dir=tmp_path / "two", max_train_steps=3), *more]) == 0
    state = tmp_path / "two" / "state" / "last-state"
    assert PLoRA.main([*flags(**common, output_dir=tmp_path / "two", max_train_steps=6, resume=state), *more]) == 0
    file = tmp_path / "one" / "last.safetensors"
    assert_same_tensors(file, tmp_path / "two" / "last.safetensors")
    assert_same_tensors(tmp_path / "one" / "state" / "last-state" / "lora.safetensors", state / "lora.safetensors")
    tensors, metadata = read_tensors(file)
    assert kinds_in(file) == kinds
    assert metadata["ss_network_module"] == LYCORIS and json.loads(metadata["ss_network_args"])["algo"] in arguments[0]
    assert all(name.startswith(("lora_unet_", "lora_te_text_model_encoder_layers_")) for name in tensors)
    assert sum(1 for name in {key.partition(".")[0] for key in tensors} if name.startswith("lora_te_")) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "prefixes"),
    [({"network_train_unet_only": True, "mixed_precision": "bf16", "gradient_checkpointing": True}, {"lora_unet"}),
     ({"network_train_text_encoder_only": True}, {"lora_te_text"})],
    ids=["UNet", "text encoder"],
)  # fmt: skip
def test_one_part_alone_trains_and_stands_alone_in_the_file(flags, tmp_path: Path, options, prefixes) -> None:
    assert PLoRA.main(flags(network_module=LYCORIS, network_args="algo=loha", **options)) == 0
    tensors = load_file(tmp_path / "out" / "last.safetensors")
    assert {"_".join(name.split("_")[: 2 if name.startswith("lora_unet") else 3]) for name in tensors} == prefixes
    assert any(value.abs().sum() > 0 for name, value in tensors.items() if name.endswith("hada_w2_a"))


@pytest.mark.parametrize("algo", ["loha", "lokr"])
def test_the_file_says_what_the_network_computes_and_reloads_exactly(model_folder, tmp_path: Path, algo: str) -> None:
    """The change formed from the file, merged into the base, gives the live network's output; so does a reload."""
    model = load_model(str(model_folder))
    chosen = rules(network_args=[f"algo={algo}", "conv_dim=3"])
    network, _ = protocol.inject(chosen, model, CPU, {})
    moved(network)
    ours = unet_output(model.unet)
    file = tmp_path / "last.safetensors"
    write_lora(file, network.state_dict(), {}, "float")
    for from_file in (False, True):
        again = load_model(str(model_folder))
        arguments = {"network_args": [] if from_file else chosen.network_args, "dim_from_weights": from_file}
        loaded, _ = protocol.inject(rules(network_weights=str(file), **arguments), again, CPU, {})
        assert (unet_output(again.unet) - ours).norm() < 1e-6 * ours.norm()
        assert set(with_client_names(loaded.state_dict())) == set(load_file(file))
    merged = load_model(str(model_folder))
    merge_weights(merged.unet, merged.text_encoder, load_file(file), 1.0)
    assert (unet_output(merged.unet) - ours).norm() < 1e-5 * ours.norm()


@pytest.mark.parametrize("arguments", [["algo=loha", "use_tucker=True"], ["algo=lokr", "use_tucker=True", "factor=4"],
                                       ["algo=locon", "use_tucker=True"], ["algo=loha", "rs_lora=True"],
                                       ["algo=full"]], ids=str)  # fmt: skip
def test_other_forms_merge_to_the_live_output_too(model_folder, arguments: list[str]) -> None:
    model = load_model(str(model_folder))
    base = unet_output(model.unet)
    network, _ = protocol.inject(rules(network_args=arguments), model, CPU, {})
    moved(network)
    ours = unet_output(model.unet)
    state = {name: value.detach().clone() for name, value in with_client_names(network.state_dict()).items()}
    merged = load_model(str(model_folder))
    merge_weights(merged.unet, merged.text_encoder, state, 1.0)
    assert (unet_output(merged.unet) - ours).norm() < 1e-5 * ours.norm() < (base - ours).norm()


@pytest.mark.slow
def test_diffusers_does_not_load_loha_and_lokr_and_the_run_says_so(
    flags, model_folder, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """If this begins to fail because diffusers reads them, the message may go."""
    for algo in ("loha", "lokr"):
        out = tmp_path / algo
        arguments = flags(network_module=LYCORIS, output_dir=out, max_train_steps=1, network_args=f"algo={algo}")
        assert PLoRA.main(arguments) == 0
        assert "diffusers: load_lora_weights does not read this file" in capsys.readouterr().out
        pipeline = StableDiffusionPipeline.from_pretrained(model_folder, local_files_only=True, safety_checker=None)
        with pytest.raises((ValueError, KeyError, NotImplementedError, RuntimeError)):
            pipeline.load_lora_weights(out, weight_name="last.safetensors")


def test_diffusers_loads_what_lycoris_makes_as_plain_locon(model_folder, tmp_path: Path) -> None:
    model = load_model(str(model_folder))
    network, _ = protocol.inject(rules(network_args=["algo=locon", "conv_dim=3"]), model, CPU, {})
    moved(network)
    write_lora(tmp_path / "last.safetensors", network.state_dict(), {}, "float")
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, local_files_only=True, safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name="last.safetensors")
    ours = unet_output(model.unet)
    assert (unet_output(pipeline.unet) - ours).norm() < 1e-5 * ours.norm()


def test_presets_do_not_leak_into_the_next_network_of_the_process(model_folder) -> None:
    def count(*arguments: str) -> int:
        network, _ = protocol.inject(rules(network_args=list(arguments)), load_model(str(model_folder)), CPU, {})
        return len(network.unet_loras)

    whole, table = count("algo=lora"), kohya.PRESET
    assert count("algo=lora", "preset=attn-only") < whole and count("algo=glora") > 0
    assert count("algo=lora") == whole and kohya.PRESET is table


def test_arguments_that_lycoris_would_swallow_are_refused_together() -> None:
    faults = Faults()
    given = {"algo": "lokrr", "conv_dims": "4", "loraplus_lr_ratio": "4"}
    lycoris_args.check_lycoris(given, 0.0, False, faults)
    text = "\n".join(faults.messages)
    assert "'lokr'" in text and "'conv_dim'" in text and "loraplus_lr_ratio" in text
    assert given_args.without_off("lycoris.kohya", {"algo": "lokr", "decompose_both": "False"}) == {"algo": "lokr"}
    faults = Faults()
    lycoris_args.check_lycoris({"algo": "loha"}, 0.1, False, faults)
    lycoris_args.check_lycoris({"algo": "dylora"}, 0.0, False, faults)
    lycoris_args.check_lycoris({"algo": "lora"}, 0.0, True, faults)
    assert [word in message for word, message in zip(("network_dropout", "Python", "dim_from"), faults.messages,
                                                     strict=True)] == [True] * 3  # fmt: skip


class Recorded(torch.nn.Module):
    """A network by the contract that notes its calls; subclasses of the test leave some out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        name = "lora_te_encoder_layers_0_mlp_fc1"
        part = torch.nn.Module()
        part.lora_down, part.lora_up = torch.nn.Linear(16, 2, bias=False), torch.nn.Linear(2, 32, bias=False)
        part.register_buffer("alpha", torch.tensor(1.0))
        self.add_module(name, part)

    def prepare_network(self, options) -> None:
        self.calls.append(f"prepare_network {options.seed}")

    def apply_to(self, text_encoder, unet, apply_text_encoder, apply_unet) -> None:
        self.calls.append(f"apply_to {apply_text_encoder} {apply_unet}")

    def load_weights(self, file: str):
        self.calls.append("load_weights")
        return self.load_state_dict(load_file(file), strict=False)

    def enable_gradient_checkpointing(self) -> None:
        self.calls.append("enable_gradient_checkpointing")

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr):
        self.calls.append(f"prepare_optimizer_params {text_encoder_lr} {unet_lr}")
        return [{"params": self.parameters(), "lr": text_encoder_lr}], ["text"]

    def prepare_grad_etc(self, text_encoder, unet) -> None:
        self.calls.append("prepare_grad_etc")

    def on_epoch_start(self, text_encoder, unet) -> None:
        self.calls.append("on_epoch_start")

    def on_step_start(self, text_encoder, unet) -> None:
        self.calls.append("on_step_start")

    def get_trainable_params(self):
        return list(self.parameters())


def recorded_module(monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module, seen: dict):
    """A module of one's own, as if it were installed."""

    def create_network(multiplier, dim, alpha, vae, text_encoder, unet, **arguments):
        seen.update(arguments, text_encoder=text_encoder, multiplier=multiplier, dim=dim)
        return network

    spec = importlib.util.spec_from_file_location("plugin", "/installed/plugin.py")
    module = SimpleNamespace(__name__="plugin", __spec__=spec, create_network=create_network)
    monkeypatch.setattr(named_code, "installed_places", lambda: [Path("/installed")])
    monkeypatch.setitem(__import__("sys").modules, "plugin", module)


def test_the_contracts_calls_come_in_kohyas_order(model_folder, tmp_path: Path, monkeypatch) -> None:
    """A two-argument module with descriptions: rates are filled in, texts stay texts, the text encoder comes bare."""
    network, seen, model = Recorded(), {}, load_model(str(model_folder))
    recorded_module(monkeypatch, network, seen)
    file = tmp_path / "start.safetensors"
    write_lora(file, network.state_dict(), {}, "float")
    chosen = rules(network_module="plugin", network_args=["depth=3"], network_dropout=0.1, network_weights=str(file),
                   gradient_checkpointing=True)  # fmt: skip
    protocol.inject(chosen, model, CPU, {"seed": 5})
    groups = protocol.parameter_groups(network, model, None, 2e-4, 1e-4)
    protocol.before_pass(network, model, starts_epoch=True)
    assert network.training
    assert protocol.after_step(network, None, CPU) == {} and not network.training
    assert network.calls == [
        "prepare_network 5", "apply_to True True", "load_weights", "enable_gradient_checkpointing",
        "prepare_optimizer_params 0.0001 0.0002", "prepare_grad_etc", "on_epoch_start", "on_step_start",
    ]  # fmt: skip
    assert seen["depth"] == "3" and seen["dropout"] == seen["neuron_dropout"] == 0.1 and seen["dim"] == 2
    assert seen["text_encoder"] is model.text_encoder
    assert [group["lr"] for group in groups] == [1e-4] and len(groups[0]["params"]) == 2


@pytest.mark.parametrize(
    ("call", "more"),
    [("prepare_grad_etc", {}), ("get_trainable_params", {}),
     ("apply_max_norm_regularization", {"scale_weight_norms": 1.0}),
     ("enable_gradient_checkpointing", {"gradient_checkpointing": True})],
)  # fmt: skip
def test_a_module_without_a_needed_call_is_refused_by_the_calls_name(model_folder, monkeypatch, call, more) -> None:
    lacking = type("Lacking", (torch.nn.Module,), {name: value for name, value in vars(Recorded).items()
                                                   if name not in (call, "__init__")})()  # fmt: skip
    recorded_module(monkeypatch, lacking, {})
    with pytest.raises(InputError, match=f"'plugin' lacks .*{call}"):
        protocol.inject(rules(network_module="plugin", **more), load_model(str(model_folder)), CPU, {})


def test_a_module_that_is_not_there_or_makes_nothing_is_refused(model_folder, monkeypatch) -> None:
    model = load_model(str(model_folder))
    with pytest.raises(InputError, match="'no.such.module': no module no is installed here; use networks.lora"):
        protocol.inject(rules(network_module="no.such.module"), model, CPU, {})
    with pytest.raises(InputError, match="'numpy' has no create_network; use networks.lora"):
        protocol.inject(rules(network_module="numpy"), model, CPU, {})
    with pytest.raises(InputError, match="does not accept its network_args"):
        protocol.inject(rules(network_args=["conv_dim=many"]), model, CPU, {})


def test_networks_lora_names_the_module_that_trains_other_kinds(model_folder, tmp_path: Path) -> None:
    model = load_model(str(model_folder))
    network, _ = protocol.inject(rules(network_args=["algo=loha"]), model, CPU, {})
    write_lora(tmp_path / "x.safetensors", network.state_dict(), {}, "float")
    with pytest.raises(InputError, match="kind LoHa; networks.lora trains LoRA and LoCon; others are for"):
        lora.create_network_from_weights(1.0, tmp_path / "x.safetensors", None, model.text_encoder, model.unet)
    chosen = rules(network_module="networks.lora", network_weights=str(tmp_path / "x.safetensors"))
    with pytest.raises(InputError, match="of the kind LoHa, .*set network_module = lycoris.kohya"):
        protocol.inject(chosen, load_model(str(model_folder)), CPU, {})
