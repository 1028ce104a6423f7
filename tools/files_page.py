"""Writes docs/files.md from the table of files: python -m tools.files_page. A test keeps the page up to date."""

from pathlib import Path

from library.file_table import PLACES, Place, Row

PAGE = Path(__file__).parent.parent / "docs" / "files.md"
INTRODUCTION = """# What is written, who may read it, what may be shared

Generated from `library/file_table.py` by `python -m tools.files_page`; do not edit. A test trains, audits,
publishes and compares, and fails on a file that is not listed here or has another mode.

**The rule.** Only the owner can read what a door writes (files 0600, folders 0700), except for the LoRA files: they
are made to be shared and get the ordinary mode (`umask`). Stamping does not change a LoRA file's mode. `output_dir`
itself is an ordinary folder. Files that the Hugging Face libraries fetch are in their own cache.

**Leftovers.** While a file is written, its name is `.<file>.<8 letters>.part`; a state is such a folder until it is
whole. A run that is killed may leave one. It holds what the file would hold and has mode 0600 (0700), a LoRA's too:
never share it. The next training in the same `output_dir` removes those there (but for `audit/`); the next training
or audit with the same `cache_dir`, the next audit of the same LoRA and the next comparison in the same folder remove
those of more than an hour there, since another run may be writing the newer ones. No other file is touched.

`<name>` stands for your `output_name` with number or stage, `<hash>` for a fingerprint, `<any>` for any one name,
`*` for any part of a name, `**` for everything below."""
PUBLISHING = """## What `--publishable` leaves out, and why

`bash audit.sh DIR --publishable OUT` writes the part of an audit that may be published, and nothing else. Anyone
who has the LoRA file, the base model and a picture can compute most scores of that picture again, to the last digit,
because the attacks' noise depends only on the picture. Therefore:

* **No score is shown with its side.** A list of scores with "member" beside them reveals the members to anyone who
  has the pictures; without the sides it still reveals which pictures were audited. Ranks and exact ROC curves are
  such lists too: with all pictures at hand, one can sort them and read off the sides. Hashed or salted names do not
  help, because the score itself identifies the picture. Thresholds are scores of single pictures, so they are left
  out as well.
* **`scores.csv`** therefore has one line per tested picture with a random number (drawn for this call and stored
  nowhere), the side, and the *fifth* of the tested non-members that contains its score. It covers only the main
  attack, whose scores cannot be computed without the aux sides. The lines are in random order, and all lines of one
  side and fifth are the same: the file is a table of 2 x 5 counts, enough for a coarse ROC and for your own
  intervals. It cannot be joined across attacks, across LoRAs or with `audit/scores.csv`.
* **Two digits.** A mean over all members to 17 digits is a fingerprint of the set: anyone who knows all members but
  one can find the last.
* **No histogram, no exact ROC, no exposed groups, no rank agreement, no AUC by timestep** on the page: the first
  four consist of single pictures, the last has no interval.
* **No names**: LoRAs have a number instead of their folder's name; there is no group, file or caption, and no bit of
  the split's hash. The page shows only options that the LoRA's own metadata states.
* **What it reveals**: the sizes of the two *test* sides, because a figure without its n is worth nothing. They are
  a part of your members and non-members. The sizes of the aux sides are not stated, and `--stamp` writes no counts.

Many figures about few pictures add up. With a few dozen test pictures that somebody has completely, even rounded
figures of twenty attacks narrow down the members; publish such audits with care."""


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
