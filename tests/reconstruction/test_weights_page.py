"""The page on pictures from the weights says what the findings say, whatever that is."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from library.audit.reconstruction.retrieval import direction_scores, row_json, row_of
from library.audit.report.sections.weights_page import (
    answers,
    attack_table,
    defence_figure,
    defence_table,
    unknown_recipe_table,
)
from library.errors import InputError
from library.seeding import stream
from tools import leak_of_weights
from tools.does_it_hold import filled

DOCS = Path(__file__).parents[2] / "docs"


def row(title: str, noise: float, target: str = "private set") -> dict:
    """An attack whose predictions are the truth plus noise."""
    sets = torch.randn(20, 6, generator=stream(0, "sets"))
    others = direction_scores(torch.randn(20, 6, generator=stream(0, "others")), sets)
    found = sets + noise * torch.randn(20, 6, generator=stream(0, "noise", title))
    return row_json(row_of(
        attack=title, title=title, knows=("weights", "base"), target=target, shadows=7,
        scores=direction_scores(found, sets), true=range(20), nothing=torch.zeros(20, 20), others=others,
        ceiling=direction_scores(sets, sets),
    ))  # fmt: skip


def defence(use: float, naive: float, adaptive: float) -> dict:
    """Findings on one defence."""
    utility = {
        name: {"value": use, "low": use - 0.01, "high": use + 0.01, "n": 9}
        for name in ("own pictures", "held-out pictures", "strangers' pictures")
    }
    kinds = {"naive": naive, "adaptive": adaptive}
    return {"utility": utility, **{kind: [row("kernel", value)] for kind, value in kinds.items()}}


def findings(**defences: dict) -> dict:
    """A finished measurement."""
    facts = {"victims": 20, "shadows": 7, "others": 3, "pictures": 4, "rank": 4, "steps": 60, "learning_rate": 3e-3,
             "batch": 2, "layers": 28}  # fmt: skip
    return {"facts": facts, "undefended": {}, "defences": {"none": defence(0.2, 0.1, 0.1), **defences}}


def test_a_leak_is_said_with_its_share_interval_and_chance() -> None:
    text = answers(findings())
    assert "**The weights give the private set away**: kernel ranks it first for 100 % [83, 100] of 20 victims" in text
    assert "(chance 5.0 %)" in text and "Held-out pictures of the same person are not found" in text


def test_no_leak_is_said_as_plainly() -> None:
    silent = findings()
    silent["defences"]["none"] = defence(0.2, 100.0, 100.0)
    assert "**No attack reads the weights**" in answers(silent)


def test_an_attacker_who_does_not_know_the_recipe_has_a_line_for_each_rank_and_attack() -> None:
    made = findings()
    assert unknown_recipe_table(made) == "Not measured.\n"
    made["undefended"]["unknown recipe"] = [{"rank": rank, **row("kernel", 0.1)} for rank in (1, 16)]
    lines = unknown_recipe_table(made).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| 1 | kernel | 7 | private set | 100 % [83, 100] |")


def test_a_defence_holds_only_where_the_adaptive_attacker_fails_and_half_of_the_use_is_kept() -> None:
    made = findings(
        good=defence(0.11, 100.0, 100.0), blind=defence(0.2, 100.0, 0.1), useless=defence(0.01, 100.0, 100.0)
    )
    text = answers(made)
    assert "keeps half of the use**: good (55% of the held-out use)." in text
    assert "blind" not in text.split("\n* Of those")[0] and "useless (5%)" in text
    assert "the least is left to read by good (55%)" in text
    assert "**No defence here takes every attack" in answers(findings(blind=defence(0.2, 100.0, 0.1)))


def test_the_tables_have_a_line_for_every_row_with_all_controls() -> None:
    made = findings(noisy=defence(0.1, 1.0, 0.5))
    made["undefended"]["gallery"] = [row("gallery", 0.5, "held-out pictures of the same person")]
    lines = attack_table(made).splitlines()
    assert len(lines) == 4 and all(line.count("|") == 14 for line in lines)
    assert "AUC, permuted pairing" in lines[0] and "AUC, true set mean" in lines[0]
    made["defences"] |= {"stopped": defence(0.15, 1.0, 1.0)}
    titles = [line.split(" |")[0] for line in defence_table(made).splitlines()[2:]]
    assert titles == ["| none", "| stopped", "| noisy"], "by what is left of the use"
    assert "It is the person, not only the pictures" in answers(made)
    assert "noisy: 10 %" in defence_figure(made)


def test_the_tool_fills_the_shipped_page_and_leaves_the_words_around(tmp_path: Path) -> None:
    page = shutil.copy(DOCS / "pictures_from_weights.md", tmp_path)
    file = tmp_path / "findings.json"
    file.write_text(json.dumps(findings()))
    assert leak_of_weights.main([str(file)], tmp_path) == 0
    text, before = Path(page).read_text(), (DOCS / "pictures_from_weights.md").read_text()
    assert "20 victims (private persons of the demo), 7 shadow LoRAs" in text and "kernel ranks it first" in text
    for name in leak_of_weights.BLOCKS:
        assert f"<!-- {name} -->" in before
        text, before = filled(text, name, ""), filled(before, name, "")
    assert text == before
    assert (tmp_path / "pictures_from_weights.svg").read_text().startswith('<svg style="background:#ffffff"')


def test_a_file_without_a_measurement_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="holds no undefended LoRAs"):
        leak_of_weights.main([str(tmp_path / "x.json")], tmp_path)
    with pytest.raises(InputError, match="nothing else"):
        leak_of_weights.main([])
