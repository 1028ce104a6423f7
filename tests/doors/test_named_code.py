"""Code that a config names: installed packages alone, found without an import, and nothing unlisted in --dry_run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import PLoRA
from library import named_code
from library.errors import InputError
from library.training.optimization import lr_schedulers, optimizers
from library.training.optimization.literals import literal_arguments
from networks import lycoris_args, protocol

ROOT = Path(__file__).parent.parent.parent
ATTRIBUTE = {"network_module": "", "optimizer_type": ".Evil", "lr_scheduler_type": ".Evil"}
OPTIONS = list(ATTRIBUTE)
NAME = "stranger_module"  # of no package


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """No test's module is there for the next one."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
        del sys.modules[name]


def evil(place: Path, marker: Path, rest: str = "") -> Path:
    """A module file that leaves a mark when it is imported."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"open({str(marker)!r}, 'w').close()\n{rest}")
    return place


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("where", ["pictures", "out", "work"])
def test_a_module_among_the_pictures_is_refused_by_name_and_not_run(
    where: str, option: str, dry_run: bool, flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = evil(tmp_path / where / f"{NAME}.py", tmp_path / "ran")
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.chdir(file.parent)
    more = {option: NAME + ATTRIBUTE[option], "dry_run": dry_run or None, "overwrite": True}
    with pytest.raises(InputError) as caught:
        PLoRA.main(flags(**more))
    assert f"{option} '{NAME}{ATTRIBUTE[option]}' is not imported" in str(caught.value)
    assert f"lies in '{file}'" in str(caught.value) and "installed packages alone" in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_door_of_its_own_process_ends_with_status_2_and_runs_nothing(flags, pictures: Path, tmp_path: Path) -> None:
    """The module is reached through PYTHONPATH, and as a folder without a package below the working folder."""
    evil(pictures / f"{NAME}.py", tmp_path / "ran")
    for name, path in ((NAME, str(pictures)), (f"{pictures.name}.{NAME}", str(tmp_path))):
        command = [sys.executable, str(ROOT / "PLoRA.py"), *flags(network_module=name, dry_run=True)]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 2 and f"network_module '{name}' is not imported" in done.stderr
        assert str(pictures) in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def look_up(name: str, dry_run: bool = False):
    """As network_module is looked up."""
    return named_code.imported(named_code.Wanted("network_module", name, name, dry_run))


def installed_at(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as a place of installed packages."""
    place.mkdir()
    monkeypatch.setattr(named_code, "installed_places", lambda: [place])
    monkeypatch.syspath_prepend(place)
    return place


def test_an_installed_module_is_imported_in_a_run_and_left_alone_in_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    evil(installed_at(tmp_path / "site", monkeypatch) / f"{NAME}.py", tmp_path / "ran")
    assert look_up(NAME, dry_run=True) is None and not (tmp_path / "ran").exists()
    assert f"network_module '{NAME}' is not imported in --dry_run" in caplog.text
    assert look_up(NAME) is not None and (tmp_path / "ran").exists()


@pytest.mark.parametrize("link", ["module", "package", "parent"])
def test_a_link_among_the_installed_packages_is_followed(
    link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, away = installed_at(tmp_path / "site", monkeypatch), tmp_path / "pictures"
    evil(away / f"{NAME}.py", tmp_path / "ran")
    evil(away / NAME / "__init__.py", tmp_path / "ran")
    ending = {"module": f"{NAME}.py", "package": NAME, "parent": NAME}[link]
    if link == "parent":
        evil(site / NAME / "__init__.py", tmp_path / "fine")
        (site / NAME / "inner.py").symlink_to(away / f"{NAME}.py")
    else:
        (site / ending).symlink_to(away / ending)
    with pytest.raises(InputError, match="is not imported: the module"):
        look_up(f"{NAME}.inner" if link == "parent" else NAME)
    assert not (tmp_path / "ran").exists()


def test_a_part_that_an_installed_package_finds_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pkgutil's way of packages in several places reaches a folder of the package's name anywhere on the path."""
    site = installed_at(tmp_path / "site", monkeypatch)
    (site / NAME).mkdir()
    (site / NAME / "__init__.py").write_text("__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n")
    evil(tmp_path / "pictures" / NAME / "part.py", tmp_path / "ran")
    (tmp_path / "pictures" / NAME / "__init__.py").write_text("")
    sys.path.append(str(tmp_path / "pictures"))
    monkeypatch.setattr(sys, "path", sys.path)
    try:
        with pytest.raises(InputError, match=f"the module {NAME}.part lies in"):
            look_up(f"{NAME}.part")
    finally:
        sys.path.remove(str(tmp_path / "pictures"))
    assert not (tmp_path / "ran").exists()


def test_a_folder_called_site_packages_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil(tmp_path / "lib" / "site-packages" / f"{NAME}.py", tmp_path / "ran")
    monkeypatch.syspath_prepend(tmp_path / "lib" / "site-packages")
    with pytest.raises(InputError, match="is not imported"):
        look_up(NAME)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["os", "antigravity", "networks.protocol", "tests.helpers.tiny", "builtins", "a/../b", "", "."]
)
def test_python_itself_and_the_suite_itself_hold_no_networks(name: str) -> None:
    assert "antigravity" not in sys.modules
    with pytest.raises(InputError, match="network_module '"):
        look_up(name)
    assert "antigravity" not in sys.modules


def test_a_listed_name_in_a_strange_place_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file named like an optimizer's package, in front of everything else on the path."""
    evil(tmp_path / "pictures" / "prodigyopt.py", tmp_path / "ran")
    for name in [name for name in sys.modules if name.split(".")[0] == "prodigyopt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "pictures")
    rules = optimizers.OptimizerRules("Prodigy", [], 1.0, False)
    with pytest.raises(InputError, match="needs the package prodigyopt .*pictures/prodigyopt.py"):
        optimizers.check_optimizer(rules)
    assert not (tmp_path / "ran").exists()


def test_every_listed_module_is_one_that_the_suite_uses() -> None:
    paths = {known.path.rpartition(".")[0] for known in optimizers.KNOWN.values()}
    assert paths <= set(named_code.LISTED) and protocol.OWN in named_code.OWN
    assert lycoris_args.MODULE in named_code.LISTED


def test_a_dry_run_goes_on_with_a_stand_in_for_what_it_does_not_import(
    flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evil(installed_at(tmp_path / "site", monkeypatch) / f"{NAME}.py", tmp_path / "ran")
    named = {option: NAME + end for option, end in ATTRIBUTE.items()}
    assert PLoRA.main([*flags(dry_run=True, **named), "--network_args", "depth=3", "--optimizer_args", "k=5"]) == 0
    said = capsys.readouterr()
    for option, value in named.items():
        assert f"{option} '{value}' is not imported in --dry_run" in said.err and f'{option} = "{value}"' in said.out
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_what_is_named_is_checked_before_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"def Evil(*words, **more):\n    open({str(tmp_path / 'called')!r}, 'w').close()\n"
    evil(installed_at(tmp_path / "site", monkeypatch) / f"{NAME}.py", tmp_path / "ran", body)
    with pytest.raises(InputError, match="is not a subclass of torch.optim.Optimizer"):
        optimizers.check_optimizer(optimizers.OptimizerRules(f"{NAME}.Evil", [], 1.0, False))
    plain_sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    rules = lr_schedulers.ScheduleRules("constant", 0, 0, 1, 1, None, None, f"{NAME}.Evil", [], False)
    with pytest.raises(InputError, match="is not a subclass of torch.optim.lr_scheduler"):
        lr_schedulers.build_schedule(plain_sgd, rules, 10)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("text", ["__import__('os').system('x')", "open('x')", "(" * 9000, "{}.__class__", "-" * 9000])
def test_arguments_are_literals_and_run_nothing(text: str) -> None:
    with pytest.raises(InputError, match="not key=value with a Python literal"):
        literal_arguments([f"value={text}"], "optimizer_args")
