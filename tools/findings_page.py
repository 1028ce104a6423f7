"""Writes docs/findings.md and the JSON schemas beside it: python -m tools.findings_page. Tests keep them up to date."""

import json
from pathlib import Path
from typing import Any

from library.audit.attacks.registry import ATTACKS
from library.audit.report.findings_schema import schema
from library.audit.report.sections import robustness_schema
from library.audit.report.wording import TITLES

DOCS = Path(__file__).parent.parent / "docs"
PAGE, SCHEMA, ROBUSTNESS = (DOCS / name for name in ("findings.md", "findings.schema.json", "robustness.schema.json"))
INTRODUCTION = """# What programs read of an audit

Generated from `library/audit/report/findings_schema.py` by `python -m tools.findings_page`; do not edit.

## Refuse a file that leaks

```bash
bash audit.sh OUTPUT_DIR --fail_above 0.60 || exit 1
```

`--fail_above` is an AUC. The audit ends with

| status | when |
|---|---|
| 0 | the upper end of the main attack's 95 % interval is at most that AUC (and without `--fail_above`, always) |
| 2 | an option or a file cannot be used; the message says which |
| 3 | that upper end is above it; where the verdict is *leak*, that of the strongest attack counts too |
| 4 | the audit is *invalid*, so that nothing is known |
| 1, 130 | the audit broke off, or Ctrl-C ended it |

An AUC below 0.5 counts as its mirror image, so the lower end of such an interval is turned round. Of several LoRAs
the worst counts, 3 before 4; the one of `--undefended` and earlier checkpoints do not count. The upper end is meant:
with few test pictures it is far from the AUC, and a small audit cannot pass.

The same from `findings.json`, which lies beside the report:

```python
import json, sys

found = json.load(open("OUTPUT_DIR/audit/findings.json"))
main = next(one for one in found["findings"] if one["name"] == found["primary"])
low, high = main["auc_interval"]
sys.exit(found["verdict"]["word"] != "no evidence" or max(high, 1 - low) > 0.60)
```

## findings.json

One object. [findings.schema.json](findings.schema.json) is its JSON schema (draft 2020-12), and a test holds it against
real output. It names no picture, group, folder or caption; `--publishable` writes the same keys to two digits, without
`auc_by_timestep` and `most_shown`. Keys and settings come in a fixed order, so that two files can be compared line by
line; `date`, and the seconds in `facts`, differ between two runs of one audit."""
SCORES = """## scores.csv

One line for each picture of the split, by side and hash. The file is private.

| column | holds |
|---|---|
| `pixels` | SHA-256 of the decoded pixels, as in `split.json` |
| `side` | members-aux, members-test, non-members-aux or non-members-test |
| `group` | number of the picture's group; pictures of one group have one number |
| `NAME` | score of the attack NAME with the LoRA on; higher = more likely a member |
| `NAME_off` | score of the same attack with the base model alone |

Scores of aux pictures are held out: where an attack is fitted, each is scored by a fit that did not see it. AUC and
rates of `findings.json` are those of the rows whose side ends in `-test`. The names:

| NAME | attack |
|---|---|"""

OF_ROBUSTNESS = """## robustness.json

What `--attacks robustness` writes beside it: one object, aggregate figures alone. It names no picture, group, folder or
caption. [robustness.schema.json](robustness.schema.json) is its JSON schema, held by a test against real output."""


def page() -> str:
    """The whole page as Markdown."""
    content = schema()
    parts = [INTRODUCTION, _table("key", content["properties"])]
    for key, title in (("verdict", "`verdict`"), ("findings", "Each of `findings` and `findings_with_a_shadow`")):
        parts += [f"### {title}", _table("key", _fields(content["properties"][key]))]
    finding = _fields(content["properties"]["findings"])
    transfer = next(one for one in finding["transfer"]["anyOf"] if one.get("type") == "object")
    parts += ["### Each of `low_rates`", _table("key", _fields(finding["low_rates"]))]
    parts += ["### `transfer`", _table("key", transfer["properties"])]
    for key in ("paired_differences", "controls", "epsilon_lower_bounds"):
        parts += [f"### Each of `{key}`", _table("key", _fields(content["properties"][key]))]
    rows = [f"| `{attack.name}` | {attack.title} |" for attack in ATTACKS]
    rows.append(f"| `lira` | {TITLES['lira']}, with `--shadow_loras` |")
    return "\n\n".join([*parts, "\n".join([SCORES, *rows]), *_robustness_parts()]) + "\n"


def _robustness_parts() -> list[str]:
    """The section on robustness.json."""
    content = robustness_schema.schema()["properties"]
    parts = [OF_ROBUSTNESS, _table("key", content), "### `settings`", _table("key", content["settings"]["properties"])]
    for key in ("variants", "findings", "checks", "code", "leaks"):
        parts += [f"### Each of `{key}` in robustness.json", _table("key", _fields(content[key]))]
    value = _fields(content["findings"])["value"]["properties"]
    return [*parts, "### Each mean with its interval", _table("key", value)]


def _fields(part: dict[str, Any]) -> dict[str, Any]:
    """The keys of an object, or of each object in a list."""
    return (part["items"] if part["type"] == "array" else part)["properties"]


def _table(head: str, properties: dict[str, Any]) -> str:
    lines = [f"| {head} | type | holds |", "|---|---|---|"]
    lines += [f"| `{name}` | {_kind(part)} | {part['description']} |" for name, part in properties.items()]
    return "\n".join(lines)


def _kind(part: dict[str, Any]) -> str:
    """A type in words."""
    if "const" in part:
        return str(part["const"])
    if "enum" in part:
        return "string"
    if "anyOf" in part:
        return " or ".join(_kind(one) for one in part["anyOf"])
    if isinstance(part["type"], list):
        return " or ".join(part["type"])
    if part["type"] == "array":
        return f"list of {part['minItems']} numbers" if "minItems" in part else "list"
    return part["type"]


def schema_text(content: dict[str, Any]) -> str:
    """A schema as a file."""
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema_text(schema()), encoding="utf-8")
    ROBUSTNESS.write_text(schema_text(robustness_schema.schema()), encoding="utf-8")
