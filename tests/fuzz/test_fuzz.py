"""A few damaged files at every way in; ``python -m tests.fuzz`` runs thousands."""

import signal
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import sound
from tests.fuzz.damage import Damage, apply, damages
from tests.fuzz.outcome import outcome_of
from tests.fuzz.way_in import WayIn
from tests.fuzz.ways_in import WAYS

CASES = 8  # of each way
LONGEST_WAIT = 60  # seconds of a case
SLOW = ("config in a dry run", "vae")  # a model is opened in every case
MARKED = [pytest.param(way, marks=pytest.mark.slow) if way.name in SLOW else way for way in WAYS]
QUICK = settings(
    max_examples=CASES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def too_long(number: int, frame: FrameType | None) -> None:
    """What the alarm does."""
    raise TimeoutError(f"no answer within {LONGEST_WAIT} s")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", MARKED, ids=lambda way: way.name)
def test_a_damaged_file_is_read_as_documented_or_refused_in_one_clear_error(way: WayIn) -> None:
    @QUICK
    @given(damages(way.form))
    def cases(damage: Damage) -> None:
        signal.alarm(LONGEST_WAIT)
        try:
            outcome = outcome_of(way, damage)
        finally:
            signal.alarm(0)
        assert not outcome.is_fault, f"{outcome.kind}: {outcome.message}"

    before = signal.signal(signal.SIGALRM, too_long)
    try:
        cases()
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [way for way in WAYS if way.name not in SLOW], ids=lambda way: way.name)
def test_the_sound_files_of_a_way_are_read(way: WayIn) -> None:
    """Else every damage would be refused for another reason."""
    folder = sound.fresh_case()
    way.prepare(folder)
    (folder / way.writes).mkdir(exist_ok=True)
    way.read(folder)
    assert (folder / way.file).is_file()


def test_a_damage_changes_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1, "b": [2, 3]}')
    apply(Damage("value", 0.99, "10^40"), file, "json")
    assert file.read_text() == '{"a": 1, "b": [2, ' + "1" + "0" * 40 + "]}"
    apply(Damage("lost", 0.0), file, "json")
    assert file.read_text() == '{"b": [2, ' + "1" + "0" * 40 + "]}"
    apply(Damage("deep"), file, "json")
    assert file.read_text().startswith('{"a":{"a":') and len(file.read_text()) == 500_000
