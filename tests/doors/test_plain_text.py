"""Nothing that a file says steers the terminal, a log, a page or a shell: one function on the way out, tried at many
ways in."""

import io
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import toml
import torch

import audit
import compare
import PLoRA
from library import plain_text
from library.audit.report import html
from library.audit.report.comparison.comparison_table import markdown
from library.audit.report.figures import Stop, exposure_figure
from library.errors import Faults, InputError, shortened
from library.options import resolve, write
from library.plain_text import STEERING, PlainStream, for_html, for_shell, plain, plain_lines
from library.tensor_files import write_tensors
from library.training import messages
from library.training.output_folder import OutputFolder

EVIL = "a\x1b[31mb\x07\r\nFORGED: all is well\x9b2J\x7f\u202etxt.exe\u2066\u2028end"
CODES = [*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F),
         *range(0x2066, 0x206A), 0xD800, 0xDCFF, 0xDFFF]  # fmt: skip


@pytest.mark.parametrize("code", CODES, ids=hex)
def test_every_character_that_steers_is_shown_as_an_escape(code: int) -> None:
    shown = plain(f"x{chr(code)}y")
    assert shown.isascii() and shown.isprintable() and shown[:2] == "x\\" and shown[-1] == "y"


def test_ordinary_text_of_any_script_stays_as_it_is() -> None:
    for text in ("d'été", "日本語 写真", "עברית", "emoji 👩‍🎨", "tab-free 10 % \\n", ""):
        assert plain(text) == plain_lines(text) == text
    assert plain("two\nlines\t") == "two\\nlines\\t" and plain_lines("two\nlines\t\x1b") == "two\nlines\t\\x1b"


def test_a_message_is_one_line_whatever_the_values_in_it_hold() -> None:
    faults = Faults()
    faults.take(InputError(f"file '{EVIL}' is missing", "second message"))
    faults.add(f"key '{EVIL}'")
    with pytest.raises(InputError) as caught:
        faults.raise_if_any()
    assert len(str(caught.value).splitlines()) == 3 == len(caught.value.messages)
    assert not STEERING.search(str(caught.value).replace("\n", ""))
    assert not STEERING.search(shortened([EVIL]))


def test_a_logged_message_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    messages.show_library_messages(wanted=True, level="INFO")
    logging.getLogger("library.data").warning("no pictures in %s", EVIL)
    said = capsys.readouterr().err
    assert said.endswith("\n") and not STEERING.search(said[:-1]) and "\\x1b[31m" in said


def test_the_net_lets_line_breaks_and_progress_bars_pass_and_nothing_else() -> None:
    out, err = io.StringIO(), io.StringIO()
    print(f"own line\n{EVIL}\ttab", file=PlainStream(out))  # type: ignore[arg-type]
    stream = PlainStream(err, "\n\t\r")
    stream.writelines(["\r 50 %|####", "\x1b[A\x1b[A", "\x1b[A not alone"])
    assert out.getvalue().count("\n") == 3 and "\r" not in out.getvalue() and "\x1b" not in out.getvalue()
    assert err.getvalue() == "\r 50 %|####\x1b[A\x1b[A\\x1b[A not alone"


@pytest.mark.parametrize("raised", [InputError(EVIL), RuntimeError(EVIL)])
def test_what_a_door_raises_reaches_the_terminal_plain(raised, capsys, monkeypatch) -> None:
    def main(arguments: list[str]) -> int:
        print(EVIL)
        raise raised

    status = resolve.run(main)
    said = capsys.readouterr()
    assert status == (2 if isinstance(raised, InputError) else 1)
    for text in (said.out, said.err):
        assert "\\x1b[31m" in text and not STEERING.search(text.translate({10: None, 13: None}))
    assert "\r" not in said.out


def test_a_page_shows_text_and_runs_none() -> None:
    strange = f'"><script>alert(1)</script>\' onerror="x {EVIL}'
    parts = [html.heading(strange), html.paragraph(strange), html.facts([(strange, strange)]),
             html.table((strange,), [(strange,)]), html.figure("<svg/>", strange, strange),
             html.verdict("leak", strange, [strange], strange, [strange]), html.definitions([(strange, strange)]),
             html.pictures([([(strange, "data:,")], strange, strange)])]  # fmt: skip
    whole = html.page(strange, parts[:1], parts)
    assert "<script" not in whole and 'onerror="' not in whole and "' onerror" not in whole
    assert not STEERING.search(whole.replace("\n", "")) and for_html("<\x1b>") == "&lt;\\x1b&gt;"


def test_a_figure_reads_no_formulas_in_names() -> None:
    stop = Stop(1.0, 0.5, 0.4, 0.6, (0.3, 0.2, 0.4), 0.35)
    named = {f"$\\frac{{$ {EVIL}": [stop], "</text><script>--><b>": [stop]}
    drawn = exposure_figure(named, known=True)
    assert drawn.startswith("<svg ") and "<script" not in drawn and "<b>" not in drawn
    assert not STEERING.search(drawn.replace("\n", ""))


@pytest.mark.parametrize(
    "word", ["output/my run", "it's", "$(touch x)", "`id`", "a;b", "-flag", EVIL, "tab\there", "x\udcffy", "\\x1b '\n'"]
)
def test_a_printed_command_can_be_pasted_as_it_stands(word: str, tmp_path: Path) -> None:
    line = for_shell([sys.executable, "-c", "import os, sys; print(os.fsencode(sys.argv[1]).hex())", word])
    assert not STEERING.search(line)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert bytes.fromhex(done.stdout) == word.encode("utf-8", "surrogateescape") and not list(tmp_path.iterdir())


def test_the_way_on_is_quoted_for_the_shell(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "my run; touch x", "last")
    folder.path.mkdir()
    line = messages.how_to_resume("PLoRA", folder, str(folder.state("-step00000002")))
    words = shlex.split(line.removeprefix("continue with: "))
    assert words[2:] == ["--config_file", str(folder.config()), "--resume", str(folder.state("-step00000002"))]
    lora = {f"lora_unet_x.lora_{part}.weight": torch.ones(1, 1) for part in ("down", "up")}
    write_tensors(folder.lora(), {**lora, "lora_unet_x.alpha": torch.tensor(1.0)}, {})
    text = messages.how_to_use(folder, None)
    assert f"bash audit.sh '{folder.path}'" in text and f"load_lora_weights('{folder.path}', weight_name=" in text


def test_a_configs_values_read_back_as_they_were_and_steer_nothing() -> None:
    config = resolve.read_config("PLoRA", ["--train_data_dir", ".", "--pretrained_model_name_or_path", ".",
                                               "--metadata", "full", "--training_comment", EVIL])  # fmt: skip
    text = write.resolved_toml("PLoRA", config)
    assert not STEERING.search(text.replace("\n", ""))
    flat = {name: value for table in toml.loads(text).values() for name, value in table.items()}
    assert flat["training_comment"] == EVIL


def test_a_table_in_markdown_keeps_its_cells() -> None:
    row = {"method": f"a | b {EVIL}", "exposures": None, "vae_frechet_distance": None, "vae_kernel_distance": None,
           "held_out_gain": (0, 0, 0), "share_of_best_plain_gain": None,
           "asr": None, "auc_deviation": 0, "tpr_at_5_fpr": None, "main_auc": 0.5,
           "main_auc_interval": (0, 1), "main_auc_difference": None, "main_auc_difference_interval": None,
           "main_tpr_at_5_fpr": None, "worst_attack": "x", "worst_auc": 0.5, "worst_auc_interval": (0, 1),
           "paper_attack_is_credited": False, "verdict": "leak", "members": 1, "non_members": 1}  # fmt: skip
    assert "a \\| b a\\x1b[31mb" in markdown([row]).splitlines()[2]


# Ways in: each puts EVIL somewhere and gives the flags of a door that will speak of it.


def _flag_name(place: Path) -> list[str]:
    return [f"--{EVIL}", "1"]


def _flag_value(place: Path) -> list[str]:
    return ["--optimizer_type", EVIL]


def _number(place: Path) -> list[str]:
    return ["--network_dim", EVIL]


def _choice(place: Path) -> list[str]:
    return ["--inclusion", EVIL]


def _network_module(place: Path) -> list[str]:
    return ["--network_module", EVIL]


def _network_argument(place: Path) -> list[str]:
    return ["--network_args", f"{EVIL}=1"]


def _optimizer_argument(place: Path) -> list[str]:
    return ["--optimizer_args", f"{EVIL}"]


def _scheduler(place: Path) -> list[str]:
    return ["--lr_scheduler_type", EVIL]


def _missing_folder(place: Path) -> list[str]:
    return ["--reg_data_dir", str(place / EVIL)]


def _missing_base(place: Path) -> list[str]:
    return ["--pretrained_model_name_or_path", EVIL]


def _missing_config(place: Path) -> list[str]:
    return ["--config_file", str(place / EVIL)]


def _config_key(place: Path) -> list[str]:
    (place / "x.toml").write_text(f"{json.dumps(EVIL)} = 1\n")
    return ["--config_file", str(place / "x.toml")]


def _config_section(place: Path) -> list[str]:
    (place / "x.toml").write_text(f"[{json.dumps(EVIL)}]\nnetwork_dimm = 1\n")
    return ["--config_file", str(place / "x.toml")]


def _config_value(place: Path) -> list[str]:
    (place / "x.toml").write_text(f"param_alpha = {json.dumps(EVIL)}\n")
    return ["--config_file", str(place / "x.toml")]


def _config_name(place: Path) -> list[str]:
    (place / f"{EVIL}.toml").write_text("network_dimm = 1\n")
    return ["--config_file", str(place / f"{EVIL}.toml")]


def _broken_config(place: Path) -> list[str]:
    (place / "x.toml").write_text(f"{EVIL}\n")
    return ["--config_file", str(place / "x.toml")]


def _dataset_config(place: Path) -> list[str]:
    (place / "d.toml").write_text(f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\n{json.dumps(EVIL)} = 1\n')
    return ["--dataset_config", str(place / "d.toml")]


def _metadata_file(place: Path) -> list[str]:
    (place / "m.json").write_text(json.dumps({EVIL: {"caption": "x"}}))
    return ["--in_json", str(place / "m.json")]


def _picture_name(place: Path) -> list[str]:
    next(iter(sorted((place / "pictures").rglob("*.txt")))).rename(place / "pictures" / "1_zebrafolder" / f"{EVIL}.txt")
    next(iter(sorted((place / "pictures").rglob("*.png")))).rename(place / "pictures" / "1_zebrafolder" / f"{EVIL}.png")
    (place / "pictures" / "1_zebrafolder" / f"{EVIL}.png").write_bytes(b"no picture")
    return []


def _prompt_key(place: Path) -> list[str]:
    (place / "p.json").write_text(json.dumps([{"prompt": "x", EVIL: 1}]))
    return ["--sample_prompts", str(place / "p.json")]


def _split_file(place: Path) -> list[str]:
    entry = {"pixels": EVIL, "side": "members-aux", "group": EVIL, "path": f"/x/{EVIL}"}
    content = {"format": 1, "seed": 1, "inclusion": EVIL, "images": [entry]}
    (place / "s.json").write_text(json.dumps(content))
    return ["--split_file", str(place / "s.json")]


def _lora_keys(place: Path) -> list[str]:
    write_tensors(place / "n.safetensors", {f"{EVIL}.lora_down.weight": torch.ones(2, 2)}, {EVIL: EVIL})
    return ["--network_weights", str(place / "n.safetensors")]


def _lora_nan(place: Path) -> list[str]:
    write_tensors(place / "n.safetensors", {EVIL: torch.full((2, 2), float("nan"))}, {})
    return ["--base_weights", str(place / "n.safetensors")]


def _tracker_config(place: Path) -> list[str]:
    (place / "t.toml").write_text(f"[{json.dumps(EVIL)}]\nx = 1\n")
    return ["--log_tracker_config", str(place / "t.toml"), "--log_with", "wandb"]


def _state(place: Path) -> list[str]:
    (place / "state").mkdir()
    content = {"format": 2, "done": 1, "options": {EVIL: EVIL}, "split": EVIL, "checks": []}
    (place / "state" / "state.json").write_text(json.dumps(content))
    return ["--resume", str(place / "state")]


def _extension(place: Path) -> list[str]:
    return ["--caption_extension", EVIL]


def _output_name(place: Path) -> list[str]:
    return ["--output_name", EVIL]


def _dataset_name(place: Path) -> list[str]:
    return ["--dataset_name", EVIL]


WAYS_IN = [
    _flag_name, _flag_value, _number, _choice, _network_module, _network_argument, _optimizer_argument, _scheduler,
    _missing_folder, _missing_base, _missing_config, _config_key, _config_section, _config_value, _config_name,
    _broken_config, _dataset_config, _metadata_file, _picture_name, _prompt_key, _split_file, _lora_keys,
    _lora_nan, _tracker_config, _state, _extension, _output_name, _dataset_name,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS_IN, ids=lambda way: way.__name__.strip("_"))
def test_no_way_into_a_trainer_reaches_the_terminal_raw(
    way: Callable[[Path], list[str]], flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the net: the message itself is plain, one line a fault, and shows the escape."""
    more = way(tmp_path)
    replaced = {word[2:] for word in more} & {"network_dim", "pretrained_model_name_or_path", "inclusion"}
    if "--split_file" in more:
        replaced.add("split_secret_file")
    if "--dataset_name" in more:
        replaced.add("train_data_dir")
    try:
        with pytest.raises(InputError) as caught:
            PLoRA.main([*flags(**dict.fromkeys(replaced), dry_run=True), *more])
    finally:
        said = capsys.readouterr()
    text = str(caught.value)
    assert not STEERING.search(text.replace("\n", "")), text
    assert any(escape in text for escape in ("\\x1b", "\\u001b", "\\x9b")) or "FORGED" not in text, text
    assert not any(line.startswith("FORGED") for line in (text + said.out + said.err).splitlines())
    assert "\x1b" not in said.out + said.err and "\x9b" not in said.out + said.err


def _bad_label(place: Path) -> list[str]:
    return [str(place / EVIL)]


def _bad_run_config(place: Path) -> list[str]:
    (place / "run").mkdir()
    (place / "run" / "config.toml").write_text(f"{EVIL}\n")
    (place / "run" / "split.json").write_text("{}")
    write_tensors(place / "run" / "last.safetensors", {}, {})
    return [str(place / "run")]


def _bad_figure(place: Path) -> list[str]:
    (place / "run").mkdir()
    (place / "run" / "config.toml").write_text("")
    (place / "run" / "split.json").write_text("{}")
    tensors = {"lora_unet_x.lora_down.weight": torch.ones(1, 1), "lora_unet_x.lora_up.weight": torch.ones(1, 1)}
    write_tensors(place / "run" / "last.safetensors", tensors, {"ss_privacy_param_alpha": EVIL})
    return [str(place / "run")]


@pytest.mark.parametrize("way", [_bad_label, _bad_run_config, _bad_figure], ids=lambda way: way.__name__.strip("_"))
def test_no_way_into_the_audit_reaches_the_terminal_raw(way: Callable[[Path], list[str]], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        audit.main(way(tmp_path))
    text = str(caught.value)
    assert not STEERING.search(text.replace("\n", ""))
    assert "\\x1b" in text or "\\x9b" in text or "FORGED" not in text


def test_a_comparison_names_folders_and_doors_alone(tmp_path: Path) -> None:
    runs = [{"name": "../up", "door": "PLoRA"}, {"name": EVIL, "door": "PLoRA"}, {"name": "a", "door": "../evil"},
            {"name": "b", "checkpoint_of": "../c"}, {"name": ".", "door": "SPLoRA"}, {"name": "ok", "door": "audit"},
            {"name": "", "door": "PLoRA"}]  # fmt: skip
    (tmp_path / "plan.toml").write_text("\n".join(f"[[runs]]\n{toml.dumps(run)}" for run in runs))
    with pytest.raises(InputError) as caught:
        compare.main(["--config_file", str(tmp_path / "plan.toml")])
    lines = caught.value.messages
    assert sum("becomes a folder" in line for line in lines) == 4
    assert sum("door must be one of PLoRA, SPLoRA, DPLoRA, got" in line for line in lines) == 2
    assert sum("is not another run of this file" in line for line in lines) == 1
    assert not STEERING.search(str(caught.value).replace("\n", "")) and plain_text.plain(EVIL)[:4] == "a\\x1"
