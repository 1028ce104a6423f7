"""docs/options.md is what the declarations say, and every flag of kohya's has a place in it."""

import re

from library.options.declarations import Config
from library.options.docs_page import PAGE, SECTIONS, page
from library.options.kohya import REFUSED, REFUSED_VALUES, RENAMED, STAND_FOR, WITHOUT_EFFECT
from tests.helpers.kohya_flags import CHOICES, FLAGS

FIELDS = Config.__dataclass_fields__
OWN_SECTIONS = {section for section, title in SECTIONS.items() if title.endswith("(not in kohya)")}
SAME = (None, "", [])  # ways to say unset


def test_the_page_is_up_to_date() -> None:
    """Otherwise: python -m library.options.docs_page."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_flag_of_kohya_is_declared_refused_renamed_or_without_effect() -> None:
    answers = [*FIELDS, *REFUSED, *WITHOUT_EFFECT, *RENAMED, *STAND_FOR]
    assert len(answers) == len(set(answers)), "one answer each"
    assert not [flag for flag in FLAGS if flag not in answers]
    assert len(FLAGS) == 195


def test_every_default_that_differs_from_kohyas_carries_its_reason() -> None:
    for name, kohya in FLAGS.items():
        if name in FIELDS:
            ours, reason = getattr(Config(), name), FIELDS[name].metadata["kohya"]
            assert ours == kohya or (ours in SAME and kohya in SAME) or reason.startswith("kohya: "), name
            assert not reason.startswith("not in kohya"), name


def test_every_option_that_kohya_does_not_have_says_so() -> None:
    for name, field in FIELDS.items():
        if name not in FLAGS:
            assert field.metadata["kohya"].startswith("not in kohya") or field.metadata["section"] in OWN_SECTIONS, name


def test_every_choice_of_kohya_is_taken_or_refused_with_a_reason() -> None:
    for name, choices in CHOICES.items():
        answered = {*FIELDS[name].metadata["choices"], *REFUSED_VALUES.get(name, {})}
        assert not set(choices) - answered, name


def test_the_page_names_every_option_once_and_every_refusal_with_its_reason() -> None:
    text = page()
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted([*FIELDS, *rows_of_short_tables(text)])
    assert all(f"`{name}`" in text and reason in text for name, reason in REFUSED.items())
    assert {field.metadata["section"] for field in FIELDS.values()} == set(SECTIONS)


def rows_of_short_tables(text: str) -> list[str]:
    """First names of the tables behind the options."""
    return re.findall(r"^\| `(\w+)` \|", text[text.index("## Refused") :], re.MULTILINE)
