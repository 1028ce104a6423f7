"""The gap between what a LoRA learnt and what it learnt by heart, seen on the aux sides; and when to stop at it."""

from collections.abc import Sequence
from dataclasses import dataclass

from library.errors import InputError

PATIENCE = 3  # passes without a gain before the rate decays
LEAST_RISE = 0.002  # of what is learnt, that counts as a gain
PACE_IN_DECAY = 0.25  # of the AUC's rise while the rate falls to zero; 0 to .27 were seen on the demo
SURE = 1.645  # standard errors at chance by which a target must exceed 0.5
NOT_LUCK = 0.5  # of that error that is left without luck; the first pass explains .8 to .9 of the falls' variance


@dataclass(frozen=True)
class GapCheck:
    """One look at both aux sides under fixed noise, with the LoRA on and off."""

    done: int  # optimizer steps
    learnt: float  # 1 - held-out error with the LoRA on / off: relative fall, geometric mean over pictures and draws
    learnt_low: float  # its 95 % interval, over groups
    learnt_high: float
    by_heart: float  # the same of the members, minus ``learnt``
    auc: float  # of the calibrated loss log(off / on); ``auc_without_luck`` after a check within one exposure
    low: float  # 95 % interval of the AUC
    high: float
    members: int  # pictures
    non_members: int
    is_first: bool = False  # what later checks are compared with: its AUC includes the luck of the split

    def figures(self) -> dict[str, float]:
        """For the log."""
        return {
            "learnt": self.learnt,
            "learnt_low": self.learnt_low,
            "learnt_high": self.learnt_high,
            "learnt_by_heart": self.by_heart,
            "calibrated_auc": self.auc,
            "calibrated_auc_low": self.low,
            "calibrated_auc_high": self.high,
        }


@dataclass(frozen=True)
class StopRules:
    """When a run stops before it leaks; the fields are options."""

    target_auc: float | None  # None: the run has its planned length
    target_decay: float  # length of the final decay, as a share of the steps before it


@dataclass(frozen=True)
class Course:
    """The rest of a run as its checks so far have it."""

    decay_from: int  # optimizer steps done when the rate begins to fall
    end: int  # optimizer steps of the run

    def rate_factor(self, step: int) -> float:
        """Factor of the learning rate in a step, counted from 0: 1, then linear to nearly 0 in the last step."""
        if step < self.decay_from:
            return 1.0
        return (self.end - step) / (self.end - self.decay_from + 1)


def course_of(rules: StopRules, checks: Sequence[GapCheck], planned: int) -> Course:
    """When the rate falls and when the run ends; a function of the checks, so a resumed run has the same.

    The decay begins at the last check from which it is foreseen to end below the target, since decayed weights that
    meet it have learnt more than any before; or after ``PATIENCE`` checks without a gain; and early enough to end with
    the planned steps.
    """
    if rules.target_auc is None:
        return Course(planned, planned)
    begin = round(planned / (1 + rules.target_decay))
    for number, check in enumerate(checks):
        seen = checks[: number + 1]
        may_begin = 0 < check.done < begin and not check.is_first
        if may_begin and (_auc_from_next_check(rules, seen) >= rules.target_auc or _has_stalled(seen)):
            begin = check.done
            break
    return Course(begin, min(planned, begin + round(rules.target_decay * begin)))


def _auc_from_next_check(rules: StopRules, checks: Sequence[GapCheck]) -> float:
    """The AUC at the end of a decay that begins one check later: its rise since the start goes on until then.

    The rise between two checks is mostly noise: a pace taken from them ended a run of the demo after two exposures.
    """
    last = checks[-1]
    ahead = last.done - checks[-2].done if len(checks) > 1 else 0
    pace = max(0.0, last.auc - 0.5) / last.done
    return last.auc + pace * (ahead + PACE_IN_DECAY * rules.target_decay * (last.done + ahead))


def _has_stalled(checks: Sequence[GapCheck]) -> bool:
    """Whether the last checks brought nothing."""
    if len(checks) <= PATIENCE:
        return False
    before = max(check.learnt for check in checks[:-PATIENCE])
    return all(check.learnt < before + LEAST_RISE for check in checks[-PATIENCE:])


def kept_check(rules: StopRules, checks: Sequence[GapCheck]) -> GapCheck | None:
    """The check with the most learnt among those at or below the target; None where none has learnt anything."""
    assert rules.target_auc is not None
    fitting = [check for check in checks if check.done > 0 and check.auc <= rules.target_auc and check.learnt > 0]
    return max(fitting, key=lambda check: check.learnt, default=None)


def least_target(members: int, non_members: int) -> float:
    """Smallest target that so many groups of aux pictures tell from 0.5: 1.645 standard errors at chance above it.

    Pictures of one group gain alike, so a group counts once; most of what is left is luck that is taken out.
    """
    error = ((members + non_members + 1) / (12 * members * non_members)) ** 0.5  # of the AUC without a leak
    return 0.5 + SURE * NOT_LUCK * error


def require_visible(target_auc: float, members: int, non_members: int) -> None:
    """Raises: InputError for a target that the aux sides, of so many groups of pictures, are too small to see."""
    least = least_target(members, non_members)
    if target_auc < least:
        raise InputError(
            f"target_auc {target_auc:g} is nearer to 0.5 than {members} members-aux and {non_members} non-members-aux "
            f"(a group counts once) can tell from chance: the least is {least:.3f}; raise target_auc or aux_share, or "
            "give more pictures"
        )


def verdict(rules: StopRules, checks: Sequence[GapCheck], planned: int) -> str:
    """What was kept and why, for the end of a run."""
    kept, course = kept_check(rules, checks), course_of(rules, checks, planned)
    trained = [check for check in checks if check.done > 0]
    if kept is None:
        lowest = min(trained, key=lambda check: check.auc)
        return (
            f"target_auc {rules.target_auc:g} was met by none of {len(trained)} validation passes that had learnt "
            f"something (lowest AUC {lowest.auc:.3f} after {lowest.done} steps, learnt {lowest.learnt:.1%}), so no "
            "final LoRA is written. Raise target_auc, lower unet_lr, or look earlier (aux_loss_every_n_steps)"
        )
    if kept.done == course.end:
        which = "the last"
    else:
        which = "before the decay of the rate" if kept.done <= course.decay_from else "within the decay of the rate"
    return (
        f"kept: the weights after {kept.done} of {course.end} steps ({which}): learnt {kept.learnt:.1%} "
        f"[{kept.learnt_low:.1%}, {kept.learnt_high:.1%}] (held-out pictures), by heart {kept.by_heart:.1%}, AUC of "
        f"the calibrated loss {kept.auc:.3f} [{kept.low:.3f}, {kept.high:.3f}] on {kept.members} + {kept.non_members} "
        f"aux pictures, at or below target_auc {rules.target_auc:g}; the most learnt of {len(trained)} passes "
        "counts"
    )
