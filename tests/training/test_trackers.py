"""Trackers: what leaves the machine is figures; where TensorBoard's files lie; and how fast a run was."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import SPLoRA
from library.errors import InputError
from library.options.declarations import Config
from library.rules import pick
from library.training import trackers
from library.training.output_folder import OutputFolder
from library.training.speed import Speed
from library.training.trackers import LogRules


def rules(**changed: Any) -> LogRules:
    """As the doors make them."""
    return pick(dataclasses.replace(Config(), **changed), LogRules)


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """A module in wandb's place that writes down every call."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Run:
        """What wandb.init returns."""

        def log(self, figures: dict[str, Any], step: int) -> None:
            calls.append(("log", {"figures": figures, "step": step}))

        def finish(self) -> None:
            calls.append(("finish", {}))

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]

    def note(name: str, result: Any) -> Any:
        def call(**arguments: Any) -> Any:
            calls.append((name, arguments))
            return result

        return call

    module.Settings = note("Settings", "settings")  # type: ignore[attr-defined]
    module.init = note("init", Run())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_wandb_gets_figures_and_nothing_else(flags, tmp_path: Path, fake_wandb) -> None:
    """A whole run with previews and captions: every call is searched for anything but names of figures and numbers."""
    (tmp_path / "prompts.txt").write_text("walrus001 --s 2\n")
    config = tmp_path / "tracker.toml"
    config.write_text('[wandb]\nentity = "team"\ntags = ["lora"]\n')
    assert (
        SPLoRA.main(
            flags(
                log_with="all", log_tracker_name="project", log_tracker_config=config, wandb_run_name="run",
                sample_prompts=tmp_path / "prompts.txt", sample_at_first=True, sample_every_n_steps=1,
            )
        )
        == 0
    )  # fmt: skip
    kinds = [name for name, _ in fake_wandb]
    assert kinds[:2] == ["Settings", "init"] and kinds[-1] == "finish" and kinds.count("log") >= 8
    settings, init = fake_wandb[0][1], fake_wandb[1][1]
    assert init.pop("dir") == str(tmp_path / "out")  # stays here: where wandb keeps its own files
    assert init == {
        "project": "project",
        "name": "run",
        "config": {},
        "settings": "settings",
        "entity": "team",
        "tags": ["lora"],
    }
    assert settings["console"] == "off" and settings["host"] == settings["program"] == "private"
    assert all(settings[name] for name in ("disable_code", "disable_git", "x_disable_meta", "x_disable_machine_info"))
    logged = [call for name, call in fake_wandb if name == "log"]
    for call in logged:
        assert all(type(value) is float for value in call["figures"].values()) and type(call["step"]) is int
        assert all(name.split("/")[0] in ("step", "epoch", "speed") for name in call["figures"])
    text = json.dumps(logged).lower()
    assert not any(word in text for word in ("walrus", "ocelot", "quokka", "zebra", str(tmp_path).lower()))
    assert "step/adaptation_loss" in text and "epoch/adaptation_loss_non_members_aux" in text
    assert (tmp_path / "out" / "tensorboard").is_dir()


def test_wandbs_own_settings_know_the_switches_that_keep_the_machine_private() -> None:
    """With the real package, where it is installed, and without a network."""
    wandb = pytest.importorskip("wandb")
    known = wandb.Settings.model_fields
    for name in ("console", "disable_code", "disable_git", "save_code", "disable_job_creation", "host", "program",
                 "x_disable_meta", "x_disable_stats", "x_disable_machine_info", "x_save_requirements"):  # fmt: skip
        assert name in known


def test_wandb_is_asked_for_by_name_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package wandb: pip install wandb"):
        trackers.check_trackers(rules(log_with="wandb"))
    trackers.check_trackers(rules())
    with pytest.raises(InputError, match='wandb_run_name is for wandb, but log_with is "tensorboard"'):
        trackers.check_trackers(rules(wandb_run_name="x"))


def test_what_would_leak_through_the_tracker_config_is_refused_all_at_once(tmp_path: Path) -> None:
    file = tmp_path / "tracker.toml"
    file.write_text("[wandb]\nsave_code = true\nentitty = 'x'\n[aim]\nx = 1\n")
    with pytest.raises(InputError) as caught:
        trackers.read_tracker_config(str(file))
    text = str(caught.value)
    assert "'save_code' is not supported, since only figures leave this machine" in text
    assert "did you mean 'entity'" in text and "[aim] is not supported" in text
    file.write_text("[wandb")
    with pytest.raises(InputError, match="not valid TOML"):
        trackers.read_tracker_config(str(file))


def test_tensorboard_lies_beside_the_log_in_logging_dir_or_in_a_dated_folder_with_the_prefix(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out", "last")
    assert trackers.tensorboard_folder(rules(), folder) == str(tmp_path / "out" / "tensorboard")
    assert trackers.tensorboard_folder(rules(logging_dir="logs"), folder) == "logs"
    dated = Path(trackers.tensorboard_folder(rules(logging_dir="logs", log_prefix="mine-"), folder))
    assert dated.parent == Path("logs") and dated.name.startswith("mine-20") and len(dated.name) == 5 + 14


def test_what_trackers_write_is_the_owners_alone(tmp_path: Path, fake_wandb) -> None:
    """TensorBoard names the machine and holds previews; wandb's modes are set when the run ends."""
    out, logs, mine = (tmp_path / name for name in ("out", "logs", "mine"))
    for folder in (out, mine):
        folder.mkdir(mode=0o755)
    (mine / "events.out.tfevents.1.other").write_text("")
    both = trackers.open_trackers(rules(log_with="all"), OutputFolder(out, "last"), 0)
    (out / "wandb" / "run").mkdir()
    (out / "wandb" / "run" / "notes.json").write_text("{}")
    (out / "wandb" / "latest").symlink_to("run")
    others = [
        trackers.open_trackers(rules(logging_dir=str(place)), OutputFolder(out, "last"), 0) for place in (logs, mine)
    ]
    for tracker in (*both, *others[0], *others[1]):
        tracker.figures(1, {"step/loss": 1.0})
        tracker.close()
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    folders = {"out/wandb": 0o700, "out/wandb/run": 0o700, "out/tensorboard": 0o700, "logs": 0o700, "mine": 0o755}
    assert {name: modes[name] for name in folders} == folders and modes["out/wandb/run/notes.json"] == 0o600
    assert modes.pop("mine/events.out.tfevents.1.other") == 0o644  # another program's
    events = [mode for name, mode in modes.items() if "tfevents" in name]
    assert events == [0o600] * 3


def test_pictures_never_reach_wandb(tmp_path: Path, fake_wandb) -> None:
    tracker = trackers.WandB(tmp_path, "project", None, {})
    tracker.pictures(1, [Image.new("RGB", (2, 2))])
    assert [name for name, _ in fake_wandb] == ["Settings", "init"]


def test_speed_counts_from_the_end_of_the_first_step() -> None:
    """10 images a step; 2 s a step of which half a second is data: 5 images/s, a quarter waiting, MFU 5 x 0.01."""
    now = [0.0]
    speed = Speed(10, 0.01, clock=lambda: now[0])

    def fetch(seconds: float) -> str:
        now[0] += seconds
        return "batch"

    assert speed.waiting(fetch, 30.0) == "batch" and speed.after_step() == {} and speed.summary() == ""
    for _ in range(3):
        speed.waiting(fetch, 0.5)
        now[0] += 1.5
        figures = speed.after_step()
    assert figures == pytest.approx({"images_per_second": 5.0, "data_wait_share": 0.25, "mfu": 0.05})
    assert (
        "speed: 5 images/s of all processes" in speed.summary()
        and "WARNING: more than 10 % of the time waits for data" in speed.summary()
    )
    assert "MFU 5.0%" in speed.summary()


def test_no_mfu_is_shown_where_the_peak_is_not_known() -> None:
    speed = Speed(1, 0.0)
    speed.after_step()
    assert "mfu" not in speed.after_step() and "MFU" not in speed.summary()
