"""Every kind of LoRA that LyCORIS trains, in the audit's model: on, off, fresh, and gradients of its own factors."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from library.audit.queries.audited_model import AuditedModel, precision_of, with_adapter
from library.audit.targets.provenance import read_adapter
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.model_files import load_model
from library.errors import InputError
from library.lora_files.format import write_lora
from library.options.declarations import Config
from library.rules import pick
from library.seeding import stream
from networks import protocol
from networks.adapted_layers import SCALES, ZERO_AT_START, changes_nothing, untrained_network
from networks.base_weights import merge_base_weights
from networks.per_sample_gradients import AdapterLayer, GradientReader
from tests.helpers.tiny import unet_output

pytest.importorskip("lycoris.kohya")
CPU = torch.device("cpu")
SETTINGS = {"clip_skip": 1, "max_token_length": 75, "weighted_captions": False}
KINDS = {
    "DoRA": ["algo=locon", "conv_dim=2", "dora_wd=True"],
    "DoRA by columns": ["algo=lora", "dora_wd=True", "wd_on_output=False"],
    "LoHa": ["algo=loha", "conv_dim=2"],
    "LoHa with a core": ["algo=loha", "use_tucker=True"],
    "LoKr": ["algo=lokr", "factor=4"],
    "LoKr in full": ["algo=lokr", "factor=4", "full_matrix=True"],
    "LoKr of products": ["algo=lokr", "factor=4", "decompose_both=True", "dora_wd=True"],
    "GLoRA": ["algo=glora"],
    "OFT": ["algo=diag-oft", "constraint=0.001", "rescaled=True"],
    "full difference": ["algo=full"],
    "core and norms": ["algo=locon", "use_tucker=True", "train_norm=True"],
}


def trained(model_folder: Path, file: Path, arguments: list[str]) -> tuple[Tensor, Tensor]:
    """A LyCORIS network that does something, in a file; and what UNet and text encoder answer with it."""
    model = load_model(str(model_folder))
    rules = {**vars(pick(Config(), protocol.NetworkRules)), "network_module": "lycoris.kohya", "network_dim": 2,
             "network_alpha": 3.0, "network_args": arguments}  # fmt: skip
    network, _ = protocol.inject(protocol.NetworkRules(**rules), model, CPU, {})
    network.eval()
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream(3, index)))
        answers = unet_output(model.unet), model.text_encoder(torch.arange(20)[None]).last_hidden_state
    write_lora(file, network.state_dict(), {}, "float")
    return answers


def audited_of(model_folder: Path, file: Path) -> tuple[AuditedModel, LatentDiffusion]:
    """The file as the audit opens it."""
    model = load_model(str(model_folder))
    weights, _, _ = read_adapter(file)
    run = SimpleNamespace(lora=file, settings=SETTINGS)
    return with_adapter(run, model, weights, None), model


def losses(audited: AuditedModel, rows: slice = slice(None)) -> Tensor:
    """[B] squares of the noise prediction on fixed latents and captions."""
    latents = torch.randn(2, 4, 8, 8, generator=stream(7))[rows]
    states = audited.encode_text(["a fox", "two red hens"][rows])
    return audited.predict_noise(latents, torch.full((len(latents),), 300), states).square().mean((1, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_kind_is_told_from_one_that_changes_nothing(model_folder: Path, tmp_path: Path, kind: str) -> None:
    """Zeros where an untrained module has them; a stated length changes weights by itself, so such a file counts."""
    trained(model_folder, tmp_path / "x.safetensors", KINDS[kind])
    tensors, _, _ = read_adapter(tmp_path / "x.safetensors")
    assert not changes_nothing(tensors)
    emptied = {name: value * (name.partition(".")[2] not in ZERO_AT_START) for name, value in tensors.items()}
    assert changes_nothing(emptied) is not any(name.partition(".")[2] in SCALES for name in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_asked_as_it_was_trained_and_can_be_switched(model_folder: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "x.safetensors"
    unet, text = trained(model_folder, file, KINDS[kind])
    audited, model = audited_of(model_folder, file)
    base = load_model(str(model_folder))
    audited.switch("on")
    assert (unet_output(model.unet) - unet).norm() < 1e-5 * unet.norm()
    assert (unet - unet_output(base.unet)).norm() > 1e-4 * unet.norm()
    with torch.no_grad():
        assert (model.text_encoder(torch.arange(20)[None]).last_hidden_state - text).norm() < 1e-5 * text.norm()
    audited.switch("off")
    assert torch.equal(unet_output(model.unet), unet_output(base.unet))
    audited.switch("fresh")
    assert (unet_output(model.unet) - unet_output(base.unet)).norm() < 1e-5 * unet.norm()
    merge_base_weights(base, [str(file)], [])
    assert (unet_output(base.unet) - unet).norm() < 1e-5 * unet.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_kinds_factors_equal_single_backward_passes(
    model_folder: Path, tmp_path: Path, kind: str
) -> None:
    """Norms of both groups of factors together, picture by picture."""
    trained(model_folder, tmp_path / "x.safetensors", KINDS[kind])
    audited, _ = audited_of(model_folder, tmp_path / "x.safetensors")
    audited.switch("on")
    with GradientReader(audited.layers) as reader:
        taken = reader.taken(losses(audited).sum(), 2)
        factors = reader.factors()
    assert len(taken) == len(factors) == 2 * len(audited.layers)
    weights = [[value for name, value in layer.named_parameters() if not name.endswith(("diff_b", "b_norm"))]
               for layer in audited.layers]  # fmt: skip
    flat = [value for values in weights for value in values]
    for row in range(2):
        found = iter(torch.autograd.grad(losses(audited, slice(row, row + 1)).sum(), flat))
        for at, values in enumerate(weights):
            alone = sum(next(found).square().sum() for _ in values)
            batched = sum(one[row].square().sum() for one in taken[2 * at : 2 * at + 2])
            assert torch.allclose(batched, alone, rtol=1e-3, atol=1e-12), audited.layers[at].lora_name


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_of_a_kind_has_gradients_in_its_outer_factors_only(
    model_folder: Path, tmp_path: Path, kind: str
) -> None:
    trained(model_folder, tmp_path / "x.safetensors", KINDS[kind])
    audited, _ = audited_of(model_folder, tmp_path / "x.safetensors")
    audited.switch("fresh")
    with GradientReader(audited.layers) as reader:
        taken = reader.taken(losses(audited).sum(), 2)
        along = [factor.norm() for factor in reader.factors()[1::2]]
    outer = max(float(one.abs().max()) for one in taken[1::2])
    assert outer > 0 and max(along) < 1e-5  # nothing has moved yet
    assert all(float(one.abs().max()) < 1e-4 * outer for one in taken[0::2] if one.numel())


def test_low_rank_factors_have_the_same_gradients_in_either_form(model_folder: Path, tmp_path: Path) -> None:
    """The trainer's own modules and the built ones: one LoRA, the same two columns a layer."""
    trained(model_folder, tmp_path / "x.safetensors", ["algo=locon", "conv_dim=2"])
    audited, _ = audited_of(model_folder, tmp_path / "x.safetensors")
    assert all(isinstance(layer, AdapterLayer) for layer in audited.layers)
    model, weights = load_model(str(model_folder)), read_adapter(tmp_path / "x.safetensors")[0]
    built = untrained_network("x", model.unet, model.text_encoder, weights)
    built.apply_to()
    built.load_state_dict(weights)
    audited.switch("on")
    found = []
    for layers, one in ((audited.layers, audited), (built.layers, audited_like(audited, model))):
        with GradientReader(layers) as reader:
            taken, factors = reader.taken(losses(one).sum(), 2), reader.factors()
        names = [layer.name if isinstance(layer, AdapterLayer) else layer.lora_name for layer in layers]
        products = [(grad * factor).flatten(1).sum(1) for grad, factor in zip(taken, factors, strict=True)]
        norms = [grad.flatten(1).norm(dim=1) for grad in taken]
        found.append({name: torch.stack([*norms[2 * at : 2 * at + 2], *products[2 * at : 2 * at + 2]])
                      for at, name in enumerate(names)})  # fmt: skip
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(value, found[1][name], rtol=1e-3, atol=1e-8) for name, value in found[0].items())


def audited_like(audited: AuditedModel, model: LatentDiffusion) -> AuditedModel:
    """Another model under the same settings."""
    from library.audit.queries.audited_model import audited_model_of

    return audited_model_of(model, [], audited.switch, **SETTINGS, precision=None)


def test_a_kind_that_cannot_be_opened_is_named(model_folder: Path, tmp_path: Path) -> None:
    trained(model_folder, tmp_path / "x.safetensors", ["algo=boft"])
    with pytest.raises(InputError, match="x.safetensors': lora_.*kind BOFT"):
        audited_of(model_folder, tmp_path / "x.safetensors")
    trained(model_folder, tmp_path / "y.safetensors", ["algo=loha"])
    weights = read_adapter(tmp_path / "y.safetensors")[0]
    model = load_model(str(model_folder))
    with pytest.raises(InputError, match="1 of .* modules have no layer here: 'lora_unet_nowhere'"):
        untrained_network("y", model.unet, model.text_encoder, weights | {"lora_unet_nowhere.diff": torch.ones(2, 2)})
    name = next(name for name in weights if name.endswith("hada_w1_b"))
    wide = {**weights, name: torch.ones(2, 99), name.replace("w1", "w2"): torch.ones(2, 99)}
    with pytest.raises(InputError, match="y' does not fit this model: lora_.* has another shape than its layer"):
        untrained_network("y", model.unet, model.text_encoder, wide)


@pytest.mark.parametrize(
    ("device", "capability", "asked", "expected"),
    [
        ("cpu", None, None, None),
        ("cpu", None, "bf16", torch.bfloat16),
        ("cuda", (8, 0), None, torch.bfloat16),
        ("cuda", (7, 5), None, None),
        ("cuda", (7, 5), "fp16", torch.float16),
        ("cuda", (9, 0), "no", None),
    ],
)
def test_an_audit_computes_in_what_the_gpu_can_or_in_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, device: str, capability, asked: str | None, expected: torch.dtype | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda place: capability)
    assert precision_of(torch.device(device), asked) == expected
    with pytest.raises(InputError, match="fp16 needs a CUDA GPU"):
        precision_of(CPU, "fp16")


def test_the_option_decides_what_the_unet_computes_in(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    trained(model_folder, file, KINDS["LoHa"])
    weights, _, _ = read_adapter(file)
    run = SimpleNamespace(lora=file, settings=SETTINGS)
    found = {}
    for precision in (None, torch.bfloat16):
        audited = with_adapter(run, load_model(str(model_folder)), weights, precision)
        audited.switch("on")
        found[precision] = losses(audited)
    assert found[torch.bfloat16].dtype == torch.float32 and not torch.equal(found[None], found[torch.bfloat16])
    assert torch.allclose(found[None], found[torch.bfloat16], rtol=0.05)
