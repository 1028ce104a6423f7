"""The robustness audit as a user runs it: what it writes, what it keeps to itself, what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

import audit
from library import file_table
from library.assembly.beside.measures import MEASURES
from library.audit.robustness import pictures
from library.audit.robustness.questions import Questions
from library.audit.robustness.sizes import read_ranks, read_sizes
from library.audit.targets.candidate_table import Candidates
from library.errors import Faults, InputError
from library.options.declarations import AUDITED
from library.options.resolve import read_config
from tests.helpers import audit_run
from tests.helpers.json_schema import complaints
from tests.helpers.places import check_place
from tools import findings_page, rank_and_robustness

ROOT = Path(__file__).parent.parent.parent
FEW = ("--robustness_steps", 3, "--robustness_restarts", 1, "--robustness_pictures", 4, "--generation_steps", 4,
       "--robustness_eps", "8/255", "0.2")  # fmt: skip


@pytest.fixture(scope="module")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of a LoRA of rank 8, audited for membership and robustness in one call."""
    out = audit_run.train(model_folder, tmp_path_factory.mktemp("trained"))
    assert audit.main([str(out), *audit_run.options(out, "--attacks", "membership", "robustness", *FEW)]) == 0
    return out


@pytest.fixture(scope="module")
def found(trained: Path) -> dict:
    """What programs read of it."""
    return json.loads((trained / "audit" / "robustness.json").read_text())


@pytest.mark.slow
def test_every_variant_attack_size_and_side_has_its_figures(found: dict) -> None:
    variants = ["base", "full", "rank 4", "rank 2", "rank 1", "half strength"]
    assert [one["name"] for one in found["variants"]] == variants
    kept = [one["kept_energy"] for one in found["variants"]]
    assert kept[0] == 0 and kept[1] == 1 and kept[2] > kept[3] > kept[4] > 0
    keys = {(one["variant"], one["attack"], one["size"], one["side"]) for one in found["findings"]}
    assert len(keys) == len(found["findings"]) == 6 * 7 * 2 * 3
    for one in found["findings"]:
        assert one["value"]["low"] <= one["value"]["value"] <= one["value"]["high"]
        assert (one["against_full"] is None) == (one["variant"] == "full")
    assert [one["variant"] for one in found["leaks"]] == variants
    assert {(one["members"], one["non_members"]) for one in found["leaks"]} == {(20, 20)}
    assert found["pictures"] == {"members-test": 4, "non-members-test": 4}


@pytest.mark.slow
def test_what_programs_read_fits_the_published_schema_in_its_order(found: dict) -> None:
    wanted = json.loads(findings_page.ROBUSTNESS.read_text())
    assert complaints(found, wanted) == [] and list(found) == list(wanted["properties"])
    assert complaints({**found, "extra": 1, "groups": "5"}, wanted) == ["file.groups: '5' is no integer",
                                                                        "file: extra is unknown"]  # fmt: skip
    spoiled = {**found["findings"][0], "attack": "damage", "value": None}
    assert complaints({**found, "findings": [spoiled]}, wanted) == [
        "file.findings[0].attack: 'damage'", "file.findings[0].value: None is no object"
    ]  # fmt: skip


@pytest.mark.slow
def test_the_attack_is_stronger_than_noise_and_grows_with_its_size(found: dict) -> None:
    assert {one["beats_noise"] for one in found["checks"] if one["attack"] == "loss"} == {1.0}
    assert all(one["grows_with_size"] > 0.8 for one in found["checks"])
    assert all(one["beats_noise"] == 1.0 for one in found["code"])


@pytest.mark.slow
def test_the_report_has_the_section_and_no_file_tells_a_caption_or_is_open_to_others(trained: Path) -> None:
    folder = trained / "audit"
    assert "Robustness at several ranks" in (folder / "report.html").read_text()
    for name in ("robustness.json", "robustness.html"):
        text = (folder / name).read_text()
        assert not any(word in text for word in ("walrus", "ocelot", "quokka", "zebrafolder", str(trained.parent)))
    check_place(folder, file_table.AUDIT_DIR)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files and all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert all(place.stat().st_mode & 0o777 == 0o700 for place in folder.rglob("*") if place.is_dir())


@pytest.mark.slow
def test_an_audit_that_was_stopped_asks_only_what_is_missing(trained: Path, found: dict, monkeypatch) -> None:
    monkeypatch.setattr(Questions, "of_variant", lambda *words, **more: pytest.fail("asked again"))
    page, report = (trained / "audit" / name for name in ("robustness.html", "report.html"))
    page.unlink()
    before = report.read_bytes()
    assert audit.main([str(trained), *audit_run.options(trained, "--attacks", "robustness", *FEW)]) == 0
    assert json.loads((trained / "audit" / "robustness.json").read_text()) == found
    assert page.is_file() and report.read_bytes() == before


@pytest.mark.slow
def test_the_page_is_filled_from_the_audits_of_the_folder(trained: Path, found: dict, tmp_path: Path) -> None:
    folder, docs = tmp_path / "out", tmp_path / "docs"
    shutil.copytree(trained / "audit", folder / "audit")
    shutil.copytree(trained / "audit", folder / "rank4-audit")  # stands for the audit of the cut
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "rank_and_robustness.md", docs)
    assert rank_and_robustness.main([str(folder)], docs) == 0
    page = (docs / "rank_and_robustness.md").read_text()
    assert "(+0.000 [+0.000, +0.000])." in page and page.count("not audited") == 4
    assert "4 of members-test and 4 of non-members-test" in page
    assert (docs / "rank_and_robustness.svg").read_text().startswith("<svg ")
    with pytest.raises(InputError, match="--attacks membership robustness"):
        rank_and_robustness.main([str(tmp_path / "empty")], docs)


@pytest.mark.slow
def test_a_rank_that_cuts_nothing_is_refused_before_the_model_is_asked(trained: Path, tmp_path: Path) -> None:
    out = shutil.copytree(trained, tmp_path / "out", ignore=shutil.ignore_patterns("audit"))
    flags = audit_run.options(trained, "--attacks", "robustness", "--robustness_ranks", 2, 8)
    with pytest.raises(InputError, match="robustness_ranks must be below 8, the rank of the LoRA, got 8"):
        audit.main([str(out), *flags])
    assert not (out / "audit").exists()


def message(*words: object) -> str:
    """What the person reads."""
    with pytest.raises(InputError) as caught:
        read_config("audit", ["--outputs", "somewhere", *map(str, words)])
    return str(caught.value)


def test_every_word_of_attacks_has_its_measurement() -> None:
    assert ("membership", *MEASURES) == AUDITED
    assert read_config("audit", ["--outputs", "somewhere"]).attacks == ["membership"]


def test_an_unknown_word_is_refused_with_the_known_ones() -> None:
    text = message("--attacks", "membership", "robustnes")
    assert f"attacks must be words out of {', '.join(AUDITED)}, got" in text and "did you mean 'robustness'?" in text


@pytest.mark.parametrize("word", ["0", "-1/255", "256/255", "1.01", "nan", "inf", "2/0", "x", "1e999"])
def test_a_size_that_no_change_can_have_is_refused(word: str) -> None:
    assert f"robustness_eps must be above 0 and at most 1, such as 8/255 or 0.03, got '{word}'" in message(
        f"--robustness_eps={word}"
    )


def test_sizes_and_ranks_are_read_in_order_and_once() -> None:
    faults = Faults()
    assert read_sizes(["8/255", "0.5", "2/255", "16/510", "1"], faults) == [2 / 255, 8 / 255, 0.5, 1.0]
    assert read_ranks(["1", "8", "4", "8"], faults) == [8, 4, 1] and faults.messages == []


def test_all_other_bad_words_are_told_at_once() -> None:
    text = message("--attacks", "robustness", "--robustness_steps", 0, "--robustness_restarts", 0,
                   "--robustness_ranks", 0, "two", "--stamp", "--fail_above", 0.6)  # fmt: skip
    for line in ("robustness_steps must be at least 1, got 0", "robustness_restarts must be at least 1, got 0",
                 "robustness_ranks must be whole numbers of at least 1, got '0'", "at least 1, got 'two'",
                 "stamp and fail_above: of the membership audit alone"):  # fmt: skip
        assert line in text
    assert "robustness_steps: of the robustness audit alone" in message("--robustness_steps", 5)
    assert "attacks is empty" in message("--attacks")
    assert "scores_only asks no model" in message("--attacks", "membership", "robustness", "--scores_only")


def candidates(**of_sides: list[str]) -> Candidates:
    """Groups by side."""
    sides = [side.replace("_", "-") for side, groups in of_sides.items() for _ in groups]
    groups = [group for groups in of_sides.values() for group in groups]
    return Candidates([f"{number:03d}" for number in range(len(sides))], sides, groups)


def test_at_most_two_pictures_of_a_group_are_changed_and_none_of_the_aux_sides() -> None:
    everybody = candidates(
        members_aux=["a"], members_test=["b", "b", "b", "c", "d"], non_members_aux=["e"], non_members_test=["f", "g"]
    )
    rows = pictures.chosen_rows(everybody, 3)
    facts = pictures.facts_of(everybody, rows)
    assert facts.groups == ["b", "b", "c", "f", "g"] and facts.sides == ["members-test"] * 3 + ["non-members-test"] * 2


def test_a_split_without_held_out_pictures_is_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match=r"^non-members-test has 0 groups of pictures; attacks robustness needs 2"):
        pictures.chosen_rows(candidates(members_test=["a", "b"], members_aux=["c"]), 4)
