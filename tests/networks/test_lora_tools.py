"""The command-line tools on LoRA files: what they compute, what they leave alone, what they refuse."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from library.diffusion.model_files import load_model
from library.errors import InputError
from library.lora_files.format import modules_of
from library.lora_files.lora_file import read_lora
from library.seeding import stream
from library.tensor_files import Slot, open_tensors, slots, stream_tensors, tensor_hash
from networks import check_lora_weights, extract_lora_from_models, merge_lora, resize_lora
from networks.base_weights import merge_base_weights
from networks.checkpoints import writing
from networks.checkpoints.layers import open_base_checkpoint
from tests.helpers import ldm_layout
from tests.helpers.lora_files import (
    CAPTION,
    FOLDER,
    LEAKING,
    PERSON,
    expect_close,
    filled_lora,
    products,
    with_metadata,
)
from tests.helpers.tiny import unet_output

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def loras(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoCons of the tiny model: two of different ranks, and one in half precision."""
    place = tmp_path_factory.mktemp("loras")
    return {
        "a": filled_lora(model_folder, place / "a.safetensors", conv_dim="2", conv_alpha="1"),
        "b": filled_lora(
            model_folder, place / "b.safetensors", seed=2, rank=3, alpha=5.0, conv_dim="2", conv_alpha="2"
        ),
        "half": filled_lora(model_folder, place / "half.safetensors", precision="fp16"),
    }


def call(main: Callable[[list[str]], int], **options: object) -> int:
    """A tool's main; a list gives several values, True a switch."""
    words: list[str] = []
    for name, value in options.items():
        words += (
            [f"--{name}"] if value is True else [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        )
    return main(words)


def bytes_of(place: Path) -> dict[str, bytes]:
    """Every file below."""
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return {str(file): file.read_bytes() for file in files}


def single_file(place: Path, monkeypatch: pytest.MonkeyPatch, second: bool = False) -> tuple[Path, Path]:
    """A narrow checkpoint in the original layout, with the settings that the tools would take from its family."""
    torch.manual_seed(3)
    settings, *parts = ldm_layout.build(place / "settings", second)
    file = place / "base.safetensors"
    save_file(ldm_layout.original_tensors(*parts), file)
    for tool in (merge_lora, extract_lora_from_models):
        monkeypatch.setattr(tool, "open_base_checkpoint", lambda path: open_base_checkpoint(path, settings))
    return file, settings


def test_what_was_merged_into_a_folder_is_extracted_again(model_folder: Path, loras, tmp_path: Path) -> None:
    before = bytes_of(model_folder)
    assert call(merge_lora.main, sd_model=model_folder, models=[loras["a"]], save_to=tmp_path / "merged") == 0
    model, naive = load_model(str(tmp_path / "merged")), load_model(str(model_folder))
    merge_base_weights(naive, [str(loras["a"])], [])
    torch.testing.assert_close(unet_output(model.unet), unet_output(naive.unet), rtol=0, atol=1e-6)
    assert call(extract_lora_from_models.main, model_org=model_folder, model_tuned=tmp_path / "merged", dim=4,
                conv_dim=2, min_diff=0, save_to=tmp_path / "x.safetensors") == 0  # fmt: skip
    expect_close(products(loras["a"]), products(tmp_path / "x.safetensors"), 1e-4)
    assert bytes_of(model_folder) == before


@pytest.mark.parametrize("second", [False, True], ids=["SD 1.x", "SD 2.x with OpenCLIP's fused matrices"])
def test_a_single_file_is_merged_and_extracted_under_its_own_names(tmp_path: Path, monkeypatch, second: bool) -> None:
    file, settings = single_file(tmp_path, monkeypatch, second)
    before = load_file(file)
    with open_base_checkpoint(file, settings) as checkpoint:
        names = [*checkpoint.linear[:3], *checkpoint.linear[-6:], checkpoint.convolutions[0]]
        tensors = {}
        for index, name in enumerate(names):
            shape = checkpoint.shape(name)
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, *shape[1:], generator=stream(1, index))
            tensors[f"{name}.lora_up.weight"] = torch.randn(
                shape[0], 2, *[1] * (len(shape) - 2), generator=stream(2, index)
            )
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "lora.safetensors")
    more = {"v2": True} if second else {}
    call(
        merge_lora.main,
        sd_model=file,
        models=[tmp_path / "lora.safetensors"],
        save_to=tmp_path / "m.safetensors",
        **more,
    )
    after = load_file(tmp_path / "m.safetensors")
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(changed) == (len(names) - 2 if second else len(names))  # one matrix holds queries, keys, values
    call(extract_lora_from_models.main, model_org=file, model_tuned=tmp_path / "m.safetensors", dim=2, conv_dim=2,
         save_to=tmp_path / "x.safetensors")  # fmt: skip
    found = products(tmp_path / "x.safetensors")
    expect_close(products(tmp_path / "lora.safetensors"), {name: found[name] for name in names}, 1e-4)
    assert all(float(value.norm()) < 1e-5 for name, value in found.items() if name not in names)
    assert all(torch.equal(value, before[name]) for name, value in load_file(file).items())


def test_merging_with_two_ratios_is_merging_with_their_sum_and_merging_twice(
    model_folder, loras, tmp_path: Path
) -> None:
    def merged(name: str, base: Path, **options: object) -> dict[str, Tensor]:
        call(merge_lora.main, sd_model=base, save_to=tmp_path / name, **options)
        return load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors")

    a = loras["a"]
    once = merged("once", model_folder, models=[a], ratios=[1.0])
    both = merged("both", model_folder, models=[a, a], ratios=[0.25, 0.75])
    merged("first", model_folder, models=[a], ratios=[0.25])
    twice = merged("twice", tmp_path / "first", models=[a], ratios=[0.75])
    for other in (both, twice):
        assert all(float((value - once[name]).abs().max()) < 2e-6 for name, value in other.items())


def test_a_sum_of_loras_is_exact_and_its_cut_is_the_nearest(loras, tmp_path: Path) -> None:
    one, two = products(loras["a"]), products(loras["b"])
    wanted = {name: 0.5 * one[name] - 2 * two[name] for name in one}
    call(merge_lora.main, models=[loras["a"], loras["b"]], ratios=[0.5, -2], save_to=tmp_path / "sum.safetensors")
    expect_close(wanted, products(tmp_path / "sum.safetensors"), 1e-6)
    call(merge_lora.main, models=[loras["a"], loras["b"]], ratios=[0.5, -2], new_rank=5, new_conv_rank=3,
         save_to=tmp_path / "cut.safetensors")  # fmt: skip
    for name, value in products(tmp_path / "cut.safetensors").items():
        values = torch.linalg.svdvals(wanted[name].flatten(1))
        rank = 3 if value.dim() == 4 and value.shape[2:] != (1, 1) else 5
        assert float((value - wanted[name]).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-3, abs=1e-5)
    metadata = read_lora(tmp_path / "cut.safetensors").metadata
    assert metadata["ss_network_dim"] == "5" and metadata["ss_v2"] == "False"


def test_a_resized_lora_errs_by_the_norm_of_the_discarded_singular_values(loras, tmp_path: Path, capsys) -> None:
    call(
        resize_lora.main,
        model=loras["a"],
        new_rank=2,
        new_conv_rank=1,
        save_to=tmp_path / "x.safetensors",
        verbose=True,
    )
    told = capsys.readouterr().out
    whole = products(loras["a"])
    for name, value in products(tmp_path / "x.safetensors").items():
        values = torch.linalg.svdvals(whole[name].flatten(1))
        rank = 1 if value.dim() == 4 and value.shape[2:] != (1, 1) else 2
        lost = float(values[rank:].norm())
        assert float((value - whole[name]).norm()) == pytest.approx(lost, rel=1e-3, abs=1e-6)
        assert f"{name}: rank " in told and f"keeps {1 - (lost / float(values.norm())) ** 2:.2%}" in told
    assert told.count("keeps") == len(whole)


def test_a_half_precision_lora_stays_one_and_its_dynamic_ranks_are_stated(loras, tmp_path: Path) -> None:
    call(resize_lora.main, model=loras["half"], new_rank=4, dynamic_method="sv_fro", dynamic_param=0.8,
         save_to=tmp_path / "x.safetensors")  # fmt: skip
    lora = read_lora(tmp_path / "x.safetensors")
    assert {value.dtype for value in lora.tensors.values()} == {torch.float16}
    assert lora.metadata["ss_network_dim"] == "Dynamic" and lora.metadata["sshs_model_hash"] == tensor_hash(
        lora.tensors
    )
    assert (tmp_path / "x.safetensors").stat().st_size < loras["half"].stat().st_size
    ranks = {parts["lora_down.weight"].shape[0] for parts in modules_of(lora.tensors).values()}
    assert min(ranks) >= 1 and max(ranks) <= 4 and len(ranks) > 1


KINDS = {
    "LoHa": lambda o, i: {"hada_w1_a": (o, 2), "hada_w1_b": (2, i), "hada_w2_a": (o, 2), "hada_w2_b": (2, i),
                          "alpha": ()},
    "LoKr": lambda o, i: {"lokr_w1": (2, 2), "lokr_w2_a": (o // 2, 2), "lokr_w2_b": (2, i // 2), "alpha": ()},
    "DoRA": lambda o, i: {"lora_down.weight": (2, i), "lora_up.weight": (o, 2), "dora_scale": (o, 1), "alpha": ()},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_merged_into_a_checkpoint_and_refused_by_name_elsewhere(
    model_folder: Path, tmp_path: Path, kind: str
) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.{part}": torch.randn(shape, generator=stream(1, part)).abs() + 0.1
               for part, shape in KINDS[kind](16, 16).items()}  # fmt: skip
    file = with_metadata(tmp_path / "x.safetensors", tensors, {})
    call(merge_lora.main, sd_model=model_folder, models=[file], ratios=[0.5], save_to=tmp_path / "merged")
    naive = load_model(str(model_folder))
    merge_base_weights(naive, [str(file)], ["0.5"])
    ours, theirs = load_model(str(tmp_path / "merged")).unet.state_dict(), naive.unet.state_dict()
    assert all(torch.allclose(value, theirs[key], atol=1e-6) for key, value in ours.items())
    assert not torch.equal(ours["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"],
                           load_model(str(model_folder)).unet.state_dict()[
                               "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"])  # fmt: skip
    with pytest.raises(InputError, match=f"kind {kind}, which cannot be cut to a rank.*extract_lora_from_models"):
        call(resize_lora.main, model=file, new_rank=1, save_to=tmp_path / "y.safetensors")
    with pytest.raises(InputError, match=f"kind {kind}, which cannot be added to another LoRA"):
        call(merge_lora.main, models=[file, file], save_to=tmp_path / "y.safetensors")
    assert check_lora_weights.main([str(file)]) == 0


def damaged(file: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a LoRA with other tensors and no metadata."""
    tensors = load_file(file)
    change(tensors)
    return with_metadata(target, tensors, {})


BAD = {
    "NaN": (lambda t: t[next(iter(sorted(t)))].fill_(float("nan")), "has NaN or infinity in 1 tensors"),
    "torn": (lambda t: t.update({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 3)}), "with a part missing"),
    "alpha 0": (
        lambda t: t.update({k: torch.tensor(0.0) for k in t if k.endswith("alpha")}),
        "alphas that are not one",
    ),
    "another family": (lambda t: t.update({"lora_te3_a.lora_down.weight": torch.ones(2, 3)}), "a transformer in place"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_lora_is_refused_and_nothing_is_written(loras, model_folder, tmp_path: Path, fault: str) -> None:
    change, message = BAD[fault]
    file = damaged(loras["a"], tmp_path / "bad.safetensors", change)
    for main, options in (
        (resize_lora.main, {"model": file, "new_rank": 1}),
        (merge_lora.main, {"models": [file], "sd_model": model_folder}),
        (merge_lora.main, {"models": [loras["b"], file]}),
    ):
        name = "out" if "sd_model" in options else "out.safetensors"
        with pytest.raises(InputError, match=message):
            call(main, save_to=tmp_path / name, **options)
    assert check_lora_weights.main([str(file)]) == 1
    assert [place.name for place in tmp_path.iterdir()] == ["bad.safetensors"]


def test_alphas_that_are_missing_or_whole_count_as_every_client_counts_them(loras, tmp_path: Path, capsys) -> None:
    def whole(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: torch.tensor(2) for name in tensors if name.endswith(".alpha")})

    def without(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".alpha")]:
            del tensors[name]

    for change, note in ((whole, "alphas are whole numbers"), (without, "modules have no alpha")):
        file = damaged(loras["b"], tmp_path / "in.safetensors", change)
        call(merge_lora.main, models=[file], save_to=tmp_path / "out.safetensors", overwrite=True)
        expect_close(products(file), products(tmp_path / "out.safetensors"), 1e-6)
        assert check_lora_weights.main([str(file)]) == 0 and note in capsys.readouterr().out


def test_a_truncated_file_and_a_wrong_hash_are_told_apart(loras, tmp_path: Path) -> None:
    short, wrong = tmp_path / "short.safetensors", tmp_path / "wrong.safetensors"
    short.write_bytes(loras["a"].read_bytes()[:-7])
    with_metadata(wrong, load_file(loras["a"]), {"sshs_model_hash": "0" * 64})
    for file, message in ((short, "no whole safetensors file"), (wrong, "is not what was saved.*check_lora_weights")):
        with pytest.raises(InputError, match=message):
            call(resize_lora.main, model=file, new_rank=1, save_to=tmp_path / "out.safetensors")
    assert check_lora_weights.main([str(wrong)]) == 1
    assert check_lora_weights.main([str(wrong), "--strip", str(tmp_path / "right.safetensors")]) == 1
    assert check_lora_weights.main([str(tmp_path / "right.safetensors")]) == 0


def test_no_input_is_ever_an_output(loras, model_folder, tmp_path: Path) -> None:
    own = tmp_path / "a.safetensors"
    own.write_bytes(loras["a"].read_bytes())
    (tmp_path / "link.safetensors").symlink_to(own)
    before = own.read_bytes()
    for place in (own, tmp_path / "link.safetensors"):
        for overwrite in ({}, {"overwrite": True}):
            with pytest.raises(InputError, match="is also an input"):
                call(resize_lora.main, model=own, new_rank=1, save_to=place, **overwrite)
    with pytest.raises(InputError, match="is also an input"):
        check_lora_weights.main([str(own), "--strip", str(own)])
    with pytest.raises(InputError, match="lies inside the input"):
        call(merge_lora.main, sd_model=model_folder, models=[own], save_to=model_folder / "new")
    with pytest.raises(InputError, match="exists already; use --overwrite"):
        call(resize_lora.main, model=loras["b"], new_rank=1, save_to=own)
    assert own.read_bytes() == before


def test_a_full_disk_leaves_no_file_and_every_input(loras, model_folder, tmp_path: Path, monkeypatch) -> None:
    before = bytes_of(model_folder)
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Room", (), {"free": 20 * 1024**2}))
    with pytest.raises(InputError, match=r"needs 0\.0. GB and its disk has 0\.02 GB free; inputs are as they were"):
        monkeypatch.setattr("networks.command_line.RESERVE", 20 * 1024**2)
        call(merge_lora.main, sd_model=model_folder, models=[loras["a"]], save_to=tmp_path / "m")
    monkeypatch.undo()

    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(writing, "stream_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        call(merge_lora.main, sd_model=model_folder, models=[loras["a"]], save_to=tmp_path / "m")
    assert list(tmp_path.iterdir()) == [] and bytes_of(model_folder) == before


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [(resize_lora.main, "--model {a} --save_to x --new_rnk 2", "unknown option '--new_rnk'; did you mean '--new_rank'"),
     (resize_lora.main, "--model {a} --save_to {out} --new_rank 9", "must be at most 4, the rank of the file, got 9"),
     (resize_lora.main, "--model {a} --save_to {out} --new_rank 0", "new_rank must be above 0, got 0"),
     (resize_lora.main, "--model {a} --save_to {out} --dynamic_method sv_fro", "go together"),
     (resize_lora.main, "--model {a} --save_to {out} --dynamic_method sv_fro --dynamic_param 2", "at most 1, got 2"),
     (resize_lora.main, "--model {a} --save_to {out} --dynamic_method sv_ratio --dynamic_param 1", "above 1, got 1"),
     (resize_lora.main, "--model {a} --save_to {out} --device cuda:77", "device 'cuda:77' is not there"),
     (resize_lora.main, "--model {a} --save_to out.ckpt", "must end in .safetensors"),
     (resize_lora.main, "--model {a} --save_to nowhere/out.safetensors", "there is no folder 'nowhere'"),
     (merge_lora.main, "--models {a} --ratios 1 2 --save_to {out}", "ratios has 2 numbers for 1 models"),
     (merge_lora.main, "--models {a} --ratios 0 --save_to {out}", "ratios must be finite and not 0"),
     (merge_lora.main, "--models {a} --sd_model {model} --v2 --save_to {out}x", "v2 is set, but .* is an SD 1.x model"),
     (extract_lora_from_models.main, "--model_org {model} --model_tuned {model} --save_to {out}", "nothing to extract"),
     (extract_lora_from_models.main, "--model_org {model} --model_tuned {model} --dim 99 --save_to {out}",
      "dim must be at most 32, the rank of the largest layer, got 99"),
     (check_lora_weights.main, "{model}", "is a folder")],
)  # fmt: skip
def test_options_are_read_strictly(loras, model_folder, tmp_path: Path, main, words: str, message: str) -> None:
    places = {"a": loras["a"], "model": model_folder, "out": tmp_path / "out.safetensors"}
    with pytest.raises(InputError, match=message):
        main([word.format(**places) for word in words.split()])
    assert list(tmp_path.iterdir()) == []


def test_the_check_tells_what_is_in_a_file_and_shows_no_word_of_it(loras, tmp_path: Path, capsys) -> None:
    file = with_metadata(tmp_path / "x.safetensors", load_file(loras["a"]), LEAKING)
    assert check_lora_weights.main([str(file)]) == 1
    said = capsys.readouterr().out
    assert check_lora_weights.main([str(file), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    for word in (CAPTION, FOLDER, PERSON, "v1-5", "1700000000"):
        assert word not in said and word not in json.dumps(facts)
    assert facts["kinds"] == ["LoRA"] and facts["hash"] == "absent" and facts["modules"] == len(products(file))
    assert "LEAK ss_tag_frequency: captions or tags" in said and "--strip SAVE_TO" in said
    clean = tmp_path / "clean.safetensors"
    assert check_lora_weights.main([str(file), "--strip", str(clean)]) == 0
    assert all(torch.equal(value, load_file(file)[name]) for name, value in load_file(clean).items())
    assert check_lora_weights.main([str(clean), "--json"]) == 0
    assert not any(
        word.encode() in clean.read_bytes() for word in (CAPTION, FOLDER, PERSON, "me/", "1700000000", "v1-5")
    )


def test_streaming_holds_one_tensor_at_a_time_and_writes_what_safetensors_reads(tmp_path: Path) -> None:
    layout = {"b": Slot(torch.float16, (3, 2)), "a": Slot(torch.float32, ()), "c": Slot(torch.int64, (2,)),
              "d": Slot(torch.float32, (0, 4))}  # fmt: skip
    values = {"a": torch.tensor(1.5), "b": torch.arange(6).reshape(3, 2).half(), "c": torch.tensor([1, -2]),
              "d": torch.zeros(0, 4)}  # fmt: skip
    asked: list[str] = []
    stream_tensors(
        tmp_path / "x.safetensors", layout, lambda name: asked.append(name) or values[name], {"format": "pt"}
    )
    assert asked == ["c", "a", "d", "b"]
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert slots(file) == layout and file.metadata() == {"format": "pt"}
    assert all(torch.equal(value, values[name]) for name, value in load_file(tmp_path / "x.safetensors").items())
    with pytest.raises(ValueError, match="its slot"):
        stream_tensors(tmp_path / "y.safetensors", layout, lambda name: torch.zeros(1), {})
    assert not (tmp_path / "y.safetensors").exists()


def test_a_tool_is_a_script_of_its_own_and_ends_with_status_2_after_a_fault(tmp_path: Path) -> None:
    """From another folder, without the suite on the path."""
    found = subprocess.run([sys.executable, ROOT / "networks" / "resize_lora.py", "--new-rank", "2"], cwd=tmp_path,
                           capture_output=True, text=True)  # fmt: skip
    assert found.returncode == 2 and "required: --model, --save_to" in found.stderr and "Traceback" not in found.stderr
