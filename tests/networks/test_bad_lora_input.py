"""What the tools say to bad input, tool by tool: one clear sentence, nothing written, every input as it was."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from library.errors import InputError
from library.lora_files.format import modules_of
from library.lora_files.lora_file import read_lora
from networks import check_lora_weights, extract_lora_from_models, merge_lora, resize_lora
from networks.weight_change import weight_change
from tests.helpers import tiny, tiny_sdxl
from tests.helpers.lora_files import filled_lora, with_metadata

ROOT = Path(__file__).parent.parent.parent
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def inputs(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound LoRA, one of SDXL, damaged ones, and damaged copies of the base."""
    place = tmp_path_factory.mktemp("inputs")
    sound = filled_lora(model_folder, place / "sound.safetensors", conv_dim="2")
    tensors = load_file(sound)
    first = next(name for name in sorted(tensors) if name.endswith("lora_up.weight"))

    def changed(name: str, change: Callable[[dict[str, Tensor]], object], **metadata: str) -> Path:
        copy = {key: value.clone() for key, value in tensors.items()}
        change(copy)
        return with_metadata(place / f"{name}.safetensors", copy, metadata)

    found = {
        "sound": sound,
        "xl": filled_lora(tiny_sdxl.write_model(place / "xl_base"), place / "xl.safetensors"),
        "nan": changed("nan", lambda t: t[first].fill_(torch.nan)),
        "torn": changed("torn", lambda t: t.update({first: torch.ones(t[first].shape[0], 3, *t[first].shape[2:])})),
        "wrong_hash": changed("wrong_hash", lambda t: None, sshs_model_hash="0" * 64),
        "huge": changed("huge", lambda t: t.update({first: t[first] * 1e30})),
        "model": tiny.write_model(place / "base"),
        "nan_model": tiny.write_model(place / "nan_base", seed=1),
        "short_model": tiny.write_model(place / "short_base", seed=2),
        "xl_model": place / "xl_base",
    }
    short = place / "short.safetensors"
    short.write_bytes(sound.read_bytes()[:-7])
    unet = load_file(found["nan_model"] / WEIGHTS)
    name = next(key for key in sorted(unet) if "attn2.to_k" in key)
    unet[name][0, 0] = torch.nan
    save_file(unet, found["nan_model"] / WEIGHTS)
    cut = found["short_model"] / WEIGHTS
    cut.write_bytes(cut.read_bytes()[:-7])
    return found | {"short": short}


TOOLS = {"resize": resize_lora, "merge": merge_lora, "extract": extract_lora_from_models, "check": check_lora_weights}
BAD = [
    ("resize --model {short} --save_to {out} --new_rank 1", "short.safetensors' is no whole safetensors file"),
    ("merge --models {sound} {short} --save_to {out}", "short.safetensors' is no whole safetensors file"),
    ("merge --sd_model {model} --models {short} --save_to {folder}", "short.safetensors' is no whole safetensors file"),
    ("check {short}", "short.safetensors' is no whole safetensors file"),
    ("merge --sd_model {short_model} --models {sound} --save_to {folder}", "is no whole safetensors file"),
    ("extract --model_org {model} --model_tuned {short_model} --save_to {out}", "is no whole safetensors file"),
    ("resize --model {wrong_hash} --save_to {out} --new_rank 1", "wrong_hash.safetensors' is not what was saved"),
    ("merge --models {sound} {wrong_hash} --save_to {out}", "wrong_hash.safetensors' is not what was saved"),
    ("merge --sd_model {model} --models {wrong_hash} --save_to {folder}", "is not what was saved"),
    ("resize --model {nan} --save_to {out} --new_rank 1", "nan.safetensors' has NaN or infinity in 1 tensors"),
    ("merge --models {sound} {nan} --save_to {out}", "nan.safetensors' has NaN or infinity in 1 tensors"),
    ("merge --sd_model {model} --models {nan} --save_to {folder}", "has NaN or infinity in 1 tensors"),
    ("extract --model_org {model} --model_tuned {nan_model} --save_to {out}", "nan_base' has NaN or infinity in lora_"),
    ("extract --model_org {nan_model} --model_tuned {model} --save_to {out}", "nan_base' has NaN or infinity in lora_"),
    ("merge --sd_model {nan_model} --models {sound} --save_to {folder}", "has NaN or infinity in down_blocks.*attn2"),
    ("merge --sd_model {model} --models {huge} --ratios 1e30 --save_to {folder}", "is not finite; the LoRAs or their"),
    ("merge --sd_model {model} --models {huge} --save_precision fp16 --save_to {folder}",
     "which fp16 cannot hold; try --save_precision float"),
    ("resize --model {huge} --save_to {out} --new_rank 1 --save_precision fp16", "try --save_precision float"),
    ("resize --model {torn} --save_to {out} --new_rank 1", "1 modules whose factors cannot be multiplied: 'lora_"),
    ("merge --models {torn} --save_to {out}", "1 modules whose factors cannot be multiplied: 'lora_"),
    ("merge --models {sound} {xl} --save_to {out}", "made for different base models: SDXL alone '.*xl.safetensors'"),
    ("merge --sd_model {model} --models {xl} --save_to {folder}", r"another base model: .* \(SDXL\), .* \(SD 1.x\)"),
    ("merge --sd_model {xl_model} --models {sound} --save_to {folder}", r"another base model: .* 40 \(SDXL\)"),
    ("extract --model_org {model} --model_tuned {xl_model} --save_to {out}", "is an SD 1.x model and '.*' an SDXL one"),
    ("resize --model {sound} --save_to {out} --new_rank 5", "new_rank must be at most 4, the rank of the file, got 5"),
    ("resize --model {sound} --save_to {out} --new_rank 2 --new_conv_rank 3", "new_conv_rank must be at most 2"),
    ("merge --models {sound} {sound} --new_rank 9 --save_to {out}", "new_rank must be at most 8, .* together, got 9"),
    ("merge --models {sound} --new_rank 1 --new_conv_rank 5 --save_to {out}", "new_conv_rank must be at most 4,"),
    ("extract --model_org {model} --model_tuned {short_model} --dim 0 --save_to {out}", "dim must be above 0, got 0"),
    ("resize --model {sound} --save_to {sound} --new_rank 1 --overwrite", "is also an input"),
    ("merge --models {sound} --save_to {sound} --overwrite", "is also an input"),
    ("extract --model_org {model} --model_tuned {nan_model} --save_to {nan_model}/x.safetensors", "lies inside the in"),
    ("merge --sd_model {model} --models {sound} --save_to {model}", "is also an input"),
    ("check {sound} --strip {sound} --overwrite", "is also an input"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_gets_one_clear_sentence_and_nothing_is_written(
    inputs: dict[str, Path], tmp_path: Path, words: str, message: str
) -> None:
    before = bytes_of(inputs)
    places = {**inputs, "out": tmp_path / "out.safetensors", "folder": tmp_path / "folder"}
    tool, *arguments = (word.format(**places) for word in words.split())
    with pytest.raises(InputError, match=message) as caught:
        TOOLS[tool].main(arguments)
    assert len(caught.value.messages) == 1 and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [] and bytes_of(inputs) == before


def bytes_of(inputs: dict[str, Path]) -> dict[str, bytes]:
    """Every file beside and below the inputs."""
    files = [file for file in inputs["sound"].parent.rglob("*") if file.is_file()]
    return {str(file): file.read_bytes() for file in files}


def test_a_file_of_several_ranks_goes_through_every_tool(inputs, tmp_path: Path) -> None:
    """Half of the modules at rank 2: a cut to 3 leaves these as they are, and sums add each layer's own."""
    mixed, cut, total = (tmp_path / f"{name}.safetensors" for name in ("mixed", "cut", "total"))
    copy = load_file(inputs["sound"])
    for name in sorted(modules_of(copy))[::2]:
        copy |= {f"{name}.lora_down.weight": copy[f"{name}.lora_down.weight"][:2].clone(),
                 f"{name}.lora_up.weight": copy[f"{name}.lora_up.weight"][:, :2].clone()}  # fmt: skip
    with_metadata(mixed, copy, {})
    assert (
        resize_lora.main(["--model", str(mixed), "--save_to", str(cut), "--new_rank", "3", "--new_conv_rank", "2"]) == 0
    )
    assert merge_lora.main(["--models", str(mixed), str(inputs["sound"]), "--save_to", str(total)]) == 0
    one, other = (modules_of(read_lora(file).tensors) for file in (mixed, inputs["sound"]))
    for name, parts in modules_of(read_lora(total).tensors).items():
        weight = torch.zeros(parts["lora_up.weight"].shape[0], *parts["lora_down.weight"].shape[1:])
        change = weight_change(parts, weight)
        wanted = weight_change(one[name], weight) + weight_change(other[name], weight)
        assert torch.allclose(change, wanted, atol=1e-5 * float(wanted.abs().max()))
        assert len(parts["lora_down.weight"]) == sum(len(of[name]["lora_down.weight"]) for of in (one, other))
    ranks = {len(parts["lora_down.weight"]) for parts in modules_of(read_lora(cut).tensors).values()}
    assert ranks == {2, 3} and read_lora(cut).metadata["ss_network_dim"] == "Dynamic"


@pytest.mark.parametrize("tool", ["resize", "merge into a checkpoint"])
def test_a_disk_that_is_full_in_the_middle_leaves_no_file_and_ends_in_one_line(
    inputs: dict[str, Path], tmp_path: Path, tool: str
) -> None:
    """The system itself refuses to let a file grow beyond 20,000 bytes."""
    words = {
        "resize": ["resize_lora.py", "--model", inputs["sound"], "--new_rank", "2",
                   "--save_to", tmp_path / "x.safetensors"],
        "merge into a checkpoint": ["merge_lora.py", "--sd_model", inputs["model"], "--models", inputs["sound"],
                                    "--save_to", tmp_path / "merged"],
    }[tool]  # fmt: skip
    before = bytes_of(inputs)
    done = subprocess.run(
        [sys.executable, ROOT / "networks" / words[0], *map(str, words[1:])], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 130 and "stopped: File too large" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [] and bytes_of(inputs) == before
