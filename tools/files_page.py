"""Writes docs/files.md from the table of files: python -m tools.files_page. A test keeps the page up to date."""

from pathlib import Path

from library.file_table import PLACES, Place, Row

PAGE = Path(__file__).parent.parent / "docs" / "files.md"
INTRODUCTION = """# What is written, who may read it, what may be shared

Generated from `library/file_table.py` by `python -m tools.files_page`; do not edit. A test trains, audits,
publishes and compares, and fails on a file that stands in no row or has another mode.

**The rule.** Whatever a door writes is its owner's alone (files 0600, folders 0700), but for the LoRA files: they
are made to be shared and get the ordinary mode (`umask`). Stamping leaves a LoRA file's mode as it is. `output_dir`
itself is an ordinary folder. While a file is being written it has a dot in front of its name and ends in `.part`; a
killed run may leave one (of a state: a folder with a dot in front). What the Hugging Face libraries fetch lies in
their own cache.

`<name>` stands for your `output_name` with number or stage, `<hash>` for a fingerprint, `<any>` for any one name,
`*` for any part of a name, `**` for everything below."""
PUBLISHING = """## What `--publishable` leaves out, and why

`bash audit.sh DIR --publishable OUT` writes what may be published of an audit, and nothing else. Whoever has the
LoRA file, the base and a picture can compute most scores of that picture again, to the last digit: the attacks'
noise depends on the picture alone. So:

* **No score stands beside a side.** A list of scores with "member" beside them names the members to everybody who
  has the pictures; without the sides it still tells which pictures were under audit. Ranks and exact ROC curves are
  such lists too: with all pictures at hand, one sorts them and reads the sides off. A hashed or salted name of the
  row does not help, for the score itself is the name. Thresholds are scores of single pictures, and are left out.
* **`scores.csv`** therefore has one line per tested picture with a number of chance (drawn for this call, stored
  nowhere), the side, and which *fifth* of the tested non-members its score lies in: by the main attack alone, whose
  scores cannot be computed without knowing the aux sides. Lines are in an order of chance. All lines of one side
  and fifth are alike: the file is a table of 2 x 5 counts, enough for a coarse ROC and for intervals of one's own.
  It cannot be joined across attacks, across LoRAs or with `audit/scores.csv`.
* **Two digits.** A mean over all members to 17 digits is a fingerprint of the set: who knows all but one finds the
  last.
* **No histogram, no exact ROC, no exposed groups, no rank agreement, no AUC by timestep** on the page: the first
  four are made of single pictures, the last has no interval.
* **No names**: LoRAs are called by their number, not by their folder; no group, file or caption; no bit of the
  split's hash. The options that stand on the page are those that the LoRA's own metadata states.
* **What it does tell**: the sizes of the two *test* sides, since a figure without its n is worth nothing. They are
  a part of your members and non-members. The aux sides' sizes are not told, and `--stamp` writes no count at all.

Many figures about few pictures add up. With a few dozen test pictures, all of them in somebody's hands, even
rounded figures of twenty attacks narrow down who was a member; publish those audits with care."""


def page() -> str:
    """The whole page as Markdown."""
    return "\n\n".join([INTRODUCTION, *(_section(place) for place in PLACES), PUBLISHING]) + "\n"


def _section(place: Place) -> str:
    heads = "| file | mode | written by | what it may hold | share it? |\n|---|---|---|---|---|"
    return f"## {place.title}\n\n{place.text}\n\n" + "\n".join([heads, *(_line(row) for row in place.rows)])


def _line(row: Row) -> str:
    mode = ("0700" if row.pattern.endswith("/") else "0600") if row.private else "umask"
    return f"| `{row.pattern}` | {mode} | {row.writer} | {row.holds} | {row.share} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
