"""The section of a report about robustness: what a small change does to base, LoRA, and the LoRA cut to ranks."""

from collections.abc import Sequence

from library.audit.images.generated import GUIDANCE
from library.audit.report import html
from library.audit.report.beside import Beside
from library.audit.report.sections.robustness_figures import ratio_figure, rise_figure, size_text
from library.audit.robustness.damage import STRENGTH
from library.audit.robustness.objectives import TIMESTEPS
from library.audit.robustness.robustness_findings import Estimate, MaskingCheck
from library.audit.robustness.robustness_result import RobustnessResult

TITLE = "Robustness at several ranks"
ATTACKS = {
    "loss": "picture changed against the error",
    "after": "the same: the error after the attack itself",
    "transfer": "picture changed against the error of the base",
    "text": "text states changed against the error",
    "damage_by_loss": "drawing from the picture changed against the error",
    "damage_by_code": "drawing from the picture changed against the VAE's code",
    "damage_by_noise": "drawing from the picture under noise without an aim",
}
SIDES = {"members-test": "members", "non-members-test": "held out"}


def beside_of(result: RobustnessResult) -> Beside:
    """Line, section and page."""
    return Beside("robustness", TITLE, headline(result), section(result))


def headline(result: RobustnessResult) -> str:
    """One line for the terminal: the main size, the picture changed against the error; both halves of the answer."""
    size = result.main_size
    told = [f"{one.name} {rise_text(result.of(one.name, 'loss', size).value)}" for one in result.variants]
    below = {
        attack: [one.name for one in result.variants if _is_sturdier(result.of(one.name, attack, size).against_full)]
        for attack in ("loss", "after")
    }
    rise, after = (", ".join(names) or "none" for names in below.values())
    return (
        f"  robustness at {size_text(size)}, rise of the error: {'; '.join(told)}; below the whole LoRA in the "
        f"rise: {rise}; in the error after the attack: {after}"
    )


def _is_sturdier(against: Estimate | None) -> bool:
    return against is not None and against.high < 1


def starts_text(count: int) -> str:
    """How many starts an ascent had."""
    return "1 start" if count == 1 else f"{count} starts"


def rise_text(found: Estimate) -> str:
    """A relative rise with its interval, in percent."""
    digits = 0 if abs(found.value) >= 0.1 else 1
    value, low, high = (f"{100 * part:+.{digits}f}" for part in (found.value, found.low, found.high))
    return f"{value} % [{low}, {high}]"


def learnt_text(found: Estimate) -> str:
    """A held-out gain in percent."""
    return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def pixels_text(found: Estimate) -> str:
    """A root mean square of pixels, in 255ths."""
    return f"{255 * found.value:.1f} [{255 * found.low:.1f}, {255 * found.high:.1f}]"


def ratio_text(found: Estimate | None) -> str:
    """A ratio, or an error itself, with its interval; no ratio stands beside the whole LoRA."""
    return "-" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def area_text(found: Estimate) -> str:
    """An AUC with its interval."""
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def difference_text(found: Estimate | None) -> str:
    """A difference to the whole LoRA, which has none to itself."""
    return "-" if found is None else f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


SAID = {  # how the figures of an attack are written, and what they are
    "after": (ratio_text, "mean squared error of the predicted noise"),
    "damage_by_loss": (pixels_text, "what moves in the drawing, in 255ths"),
    "damage_by_code": (pixels_text, "what moves in the drawing, in 255ths"),
    "damage_by_noise": (pixels_text, "what moves in the drawing, in 255ths"),
}


def section(result: RobustnessResult) -> list[str]:
    """What was done, figures, tables, and the checks of the attack."""
    rules = result.rules
    counted = ", ".join(f"{count} {SIDES[side]}" for side, count in result.pictures.items())
    intro = (
        f"Each picture (test sides: {counted}, of {result.groups} groups) is changed by projected gradient ascent, so "
        f"that the error of the predicted noise grows (timesteps {' and '.join(map(str, TIMESTEPS))} of 1000, fixed "
        f"noise): no pixel in 0..1 moves by more than the size. {rules.robustness_steps} steps, "
        f"{starts_text(rules.robustness_restarts)}, the best point of all counts. Every variant is attacked by its own "
        "gradients, with the same pictures, noise and starts. Text states move by at most the size as a share of their "
        f"own length. Drawings start from the picture (strength {STRENGTH:g}, {rules.generation_steps} DDIM steps for "
        f"a whole drawing, guidance {GUIDANCE:g}); the damage is the root mean square of what moves in them. Rises and "
        "errors are geometric means over pictures; intervals have 95 % confidence and count groups. Kept energy is the "
        "share of the squared norm of the LoRA's change. A rise is relative to the variant's own error, which a LoRA "
        "lowers: the error after the attack is the other half of the answer."
    )
    drawn = [
        html.figure(
            rise_figure(result, "loss"),
            "Rise of the error against the size of the change",
            "The picture is changed. Dashed: noise of the same size without an aim, on the whole LoRA.",
        ),
        html.figure(
            ratio_figure(result),
            "Against the whole LoRA",
            "Ratios to the whole LoRA on the same pictures, with 95 % intervals; below 1 is sturdier. Picture and "
            "text: error after the attack over the error before it. Error after: the error itself. Drawing: what moves "
            "in it. A variant with a smaller rise and a larger error after is worse to begin with, and not sturdier.",
        ),
    ]
    return [
        html.paragraph(intro, small=True),
        html.figures(drawn),
        *attack_tables(result),
        *leak_table(result),
        *sides_table(result),
        *code_table(result),
        *checks_table(result),
    ]


def attack_tables(result: RobustnessResult) -> list[str]:
    """A table for each attack: variants down, sizes across, and the ratio to the whole LoRA at the main size."""
    parts = []
    for attack, title in ATTACKS.items():
        text, unit = SAID.get(attack, (rise_text, "rise of the error"))
        heads = [
            "variant",
            "kept energy",
            "learnt (held out)",
            *(size_text(size) for size in result.sizes),
            "ratio to the whole LoRA",
        ]
        rows = [
            (
                one.name,
                f"{100 * one.kept_energy:.0f} %",
                learnt_text(result.leak_of(one.name).learnt),
                *(text(result.of(one.name, attack, size).value) for size in result.sizes),
                ratio_text(result.of(one.name, attack, result.main_size).against_full),
            )
            for one in result.variants
        ]
        note = f"{title[0].upper()}{title[1:]}: {unit}; the ratio at {size_text(result.main_size)}."
        parts += [html.paragraph(note), html.table(heads, rows, [one.name == "full" for one in result.variants])]
    return parts


def leak_table(result: RobustnessResult) -> list[str]:
    """What each variant tells of its members, and learnt of others."""
    heads = ("variant", "learnt (held out)", "AUC, loss against the base", "minus the whole LoRA's")
    rows = []
    for one in result.leaks:
        less = difference_text(None if one.variant == "base" else one.minus_full)  # the base is held against itself
        rows.append((one.variant, learnt_text(one.learnt), "-" if one.variant == "base" else area_text(one.auc), less))
    whole = result.leak_of("full")
    note = (
        f"Members against held-out pictures by their loss against the base, without labels or fits, on all pictures of "
        f"the test sides ({whole.members} and {whole.non_members}); the differences are paired:"
    )
    return [html.paragraph(note), html.table(heads, rows)]


def sides_table(result: RobustnessResult) -> list[str]:
    """Members and held-out pictures apart, at the main size."""
    size = result.main_size
    rows = [
        (one.name, *(rise_text(result.of(one.name, "loss", size, side).value) for side in SIDES))
        for one in result.variants
    ]
    note = f"Members and held-out pictures apart, picture changed against the error by {size_text(size)}:"
    return [html.paragraph(note), html.table(("variant", *SIDES.values()), rows)]


def code_table(result: RobustnessResult) -> list[str]:
    """The VAE's code, in which no LoRA is."""
    rows = [(size_text(one.size), area_text(one.distance), area_text(one.of_noise)) for one in result.code]
    note = "How far the VAE's code moves, relative to itself; no LoRA is in the VAE, so this is one for all variants:"
    return [html.paragraph(note), html.table(("size", "attacked", "by noise without an aim"), rows)]


def checks_table(result: RobustnessResult) -> list[str]:
    """Signs that gradients mislead, and their absence."""
    heads = (
        "variant, attack, many steps beat one, beats noise without an aim, grows with the size, "
        "beats the change found on the base, loss over that of the base's change"
    ).split(", ")
    rows = [_check_row(one) for one in result.checks]
    note = (
        "Checks of the attack (shares of pictures and sizes, which must be near 100 %). Where an attack by own "
        "gradients is weaker than fewer steps, than noise, or than a change that was found on another model, gradients "
        "mislead and sturdiness is not shown (arXiv 1802.00420)."
    )
    return [html.paragraph(note), html.table(heads, rows)]


def _check_row(one: MaskingCheck) -> Sequence[str]:
    transfer = "-" if one.beats_transfer is None else f"{100 * one.beats_transfer:.0f} %"
    shares = [f"{100 * share:.0f} %" for share in (one.beats_one_step, one.beats_noise, one.grows_with_size)]
    return (one.variant, one.attack, *shares, transfer, ratio_text(one.margin_over_transfer))
