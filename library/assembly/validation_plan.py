"""When validation passes come and how many pictures they show, so that they cost a small share of the training."""

from dataclasses import dataclass

from library.assembly.game import GameRules
from library.diffusion.flops import CHECKPOINTED_STEP, STEP
from library.training.training_plan import TrainingPlan

LEAST = 32  # pictures of a side: below, a pass says nothing
DECIDING_SHARE = 1 / 3  # at least, of passes that decide when the run stops


@dataclass(frozen=True)
class ValidationRules:
    """How often validation runs; the fields are options."""

    aux_loss_every_n_epochs: int | None  # epochs; with this or the next one every picture is looked at
    aux_loss_every_n_steps: int | None  # optimizer steps
    aux_loss_share: float  # of the training's UNet passes, where neither is given
    target_auc: float | None  # then the passes decide when the run stops, and may cost more


@dataclass(frozen=True)
class ValidationPlan:
    """The passes of a run: one at the start, one at the end, and those between them."""

    plan: TrainingPlan
    every_epochs: int | None
    every_steps: int | None
    members: int  # aux pictures that a pass looks at
    non_members: int
    draws: int  # UNet passes for a picture
    training_cost: float  # of the whole run, in UNet passes forward
    one_exposure: int = 1  # steps; a pass up to there is what later ones may be compared with
    has_first: bool = False  # a further pass comes after one exposure, for a target

    def is_due(self, done: int) -> bool:
        """Whether validation runs after ``done`` steps."""
        return (self.has_first and done == self.one_exposure) or self.plan.validation_is_due(
            done, self.every_epochs, self.every_steps
        )

    def share(self) -> float:
        """What all passes cost beside the training."""
        passes = 1 + sum(map(self.is_due, range(1, self.plan.total_steps + 1)))
        return passes * self.draws * (self.members + self.non_members) / self.training_cost

    def summary(self) -> str:
        """What was chosen, in one line."""
        epochs = [f"every {self.every_epochs} epochs"] if self.every_epochs else []
        steps = [f"every {self.every_steps} steps"] if self.every_steps else []
        first = ["after one exposure"] if self.has_first else []
        when = ", ".join(["at the start", *first, *epochs, *steps])
        return (
            f"validation: {when} and at the end, on {self.members} members-aux + {self.non_members} non-members-aux x "
            f"{self.draws} draws: {100 * self.share():.2g} % of the training's UNet passes"
        )


def step_cost(images: float, rules: GameRules, *, gradient_checkpointing: bool) -> float:
    """UNet passes forward that one optimizer step of one process is worth; a backward pass counts as in ``flops``.

    Args:
        images: of the LoRA step, on average.
    """
    trained, asked = rules.passes(images)
    return trained * (CHECKPOINTED_STEP if gradient_checkpointing else STEP) + asked


def plan_validation(
    plan: TrainingPlan,
    rules: ValidationRules,
    *,
    sides: tuple[int, int],
    draws: int,
    cost: float,
    one_exposure: int,
) -> ValidationPlan:
    """Passes as they were asked for; else as many as fit into the share, spread evenly over the epochs.

    Where not even the first and the last pass fit, these two look at fewer pictures, at least ``LEAST`` of each side.

    Args:
        sides: members-aux and non-members-aux.
        draws: UNet passes for a picture in one validation pass.
        cost: of an optimizer step, see ``step_cost``.
        one_exposure: steps in which each member is used once, on average; before that little is learnt by heart.
    """
    epochs, steps, total = rules.aux_loss_every_n_epochs, rules.aux_loss_every_n_steps, plan.total_steps * cost
    if epochs is None and steps is None:
        share = rules.aux_loss_share if rules.target_auc is None else max(rules.aux_loss_share, DECIDING_SHARE)
        budget, one_pass = share * total, draws * sum(sides)
        between = int(budget / one_pass) - (2 if rules.target_auc is None else 3)
        if between < 0:
            part = budget / (2 * one_pass)
            sides = (_fewer(sides[0], part), _fewer(sides[1], part))
        elif between > 0:
            epochs = int(plan.epochs(plan.total_steps - 1)) // (between + 1) + 1
    return ValidationPlan(plan, epochs, steps, *sides, draws, total, one_exposure, rules.target_auc is not None)


def _fewer(pictures: int, part: float) -> int:
    """A part of a side, at least LEAST where it has so many."""
    return min(pictures, max(LEAST, int(part * pictures)))
