"""An audit announces what it does: numbered stages, and the time that the passes will take."""

import dataclasses
from pathlib import Path

import torch

from library.audit.queries.answer_cache import AnswerCache
from library.audit.queries.query_plan import LITE
from library.audit.queries.run_queries import TIMED, Effort, QueryRunner, Shelf, Stages
from library.options.resolve import read_config
from tests.helpers.audit_toy import toy_model, toy_pictures


def test_stages_are_numbered_as_they_begin() -> None:
    stages = Stages(4)
    assert [stages.begin("passes, LoRA off"), stages.begin("gradients")] == [
        "[1 of 4] passes, LoRA off", "[2 of 4] gradients"]  # fmt: skip


def test_the_forecast_counts_what_is_not_cached_and_times_a_few_passes(tmp_path: Path, monkeypatch) -> None:
    """3 pictures x 26 passes x 2 states, 12 of them gradients; one picture is known of the base already."""
    pictures, audited, asked = toy_pictures(3), toy_model(), []
    counting = dataclasses.replace(
        audited, predict_noise=lambda *words: asked.append(len(words[0])) or audited.predict_noise(*words)
    )
    monkeypatch.setattr(QueryRunner, "_seconds_per_pass", lambda self, model: 2.0)
    queries = QueryRunner(pictures, LITE, Effort(2, 2), Shelf(tmp_path / "shared", "s"), "b", "p", "cpu", Stages(4))
    stores = queries.stores(tmp_path / "records", "adapter", "shape")
    AnswerCache(Path(stores.off)).add([pictures[0].key], {"square": torch.zeros(1, 1)})
    wanted = 3 * 26 * 2 - 14
    assert queries.forecast(counting, stores) == f"asking the model: {wanted} passes for 3 images, about 5 minutes"
    for folder in dataclasses.astuple(stores):
        AnswerCache(Path(folder)).add([one.key for one in pictures], {"square": torch.zeros(3, 1)})
    assert queries.forecast(counting, stores) == "" and not asked
    monkeypatch.undo()
    for folder in dataclasses.astuple(stores):
        for file in Path(folder).iterdir():
            file.unlink()
    assert "passes for 3 images, about" in queries.forecast(counting, stores)
    assert asked == [2] * (2 + 2 * TIMED)  # a batch of two for each of two threads, after one each that warms up


def test_verbose_is_the_audits_own_switch() -> None:
    assert read_config("audit", ["--verbose"]).verbose and not read_config("audit", []).verbose
