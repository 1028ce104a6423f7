"""The length of a run, the epoch of a step, and when periodic events are due."""

from collections.abc import Sequence
from dataclasses import dataclass

KOHYAS_STEPS = 1600  # default of max_train_steps


@dataclass(frozen=True)
class BatchSize:
    """How many images an optimizer step uses."""

    per_device: int  # images of a pass; of the largest, if datasets differ
    accumulation: int  # passes of a step
    processes: int

    def images(self) -> int:
        """Images of a full optimizer step, all processes together."""
        return self.per_device * self.accumulation * self.processes

    def summary(self) -> str:
        """The product in one line."""
        return (
            f"global batch: {self.per_device} images x {self.accumulation} passes x {self.processes} processes = "
            f"{self.images()} images per step"
        )


@dataclass(frozen=True)
class Undivided:
    """The same steps in kohya, which trains on every picture."""

    pictures: int
    steps_per_epoch: int
    uses: float  # of a picture in an epoch, on average

    def exposures(self, steps: int) -> float:
        """How often kohya would use each picture in so many steps."""
        return steps / self.steps_per_epoch * self.uses


@dataclass(frozen=True)
class TrainingPlan:
    """Steps are counted from 0 while they run; ``done`` is how many have run."""

    steps_per_epoch: int
    total_steps: int

    def epoch_of(self, step: int) -> int:
        """Epoch of a step, counted from 1."""
        return step // self.steps_per_epoch + 1

    def starts_epoch(self, step: int) -> bool:
        """Whether a step is the first of its epoch."""
        return step % self.steps_per_epoch == 0

    def epochs(self, done: int) -> float:
        """Epochs that ``done`` steps make."""
        return done / self.steps_per_epoch

    def is_due(self, done: int, every_epochs: int | None, every_steps: int | None) -> bool:
        """Whether something is due after ``done`` steps, the end excepted; epochs win where both are given."""
        if done == self.total_steps:
            return False
        if every_epochs is not None:
            return done % self.steps_per_epoch == 0 and (done // self.steps_per_epoch) % every_epochs == 0
        return every_steps is not None and done % every_steps == 0

    def validation_is_due(self, done: int, every_epochs: int | None, every_steps: int | None) -> bool:
        """Whether validation runs after ``done`` steps: every so many epochs or steps, and at the end."""
        by_steps = every_steps is not None and done % every_steps == 0
        epochs, rest = divmod(done, self.steps_per_epoch)
        by_epochs = every_epochs is not None and rest == 0 and epochs % every_epochs == 0
        return by_steps or by_epochs or done == self.total_steps

    def exposures(self, done: int, repeats: Sequence[int]) -> float:
        """How often each member has been trained on after ``done`` steps, on average.

        Args:
            repeats: of each member.
        """
        return self.epochs(done) * sum(repeats) / len(repeats)

    def one_exposure(self, repeats: Sequence[int]) -> int:
        """Steps in which each member is trained on once, on average; at least one.

        Args:
            repeats: of each member.
        """
        return max(1, round(self.steps_per_epoch * len(repeats) / sum(repeats)))

    def summary(
        self,
        repeats: Sequence[int],
        size: BatchSize,
        max_train_epochs: int | None,
        undivided: Undivided | None = None,
        max_train_steps: int | None = None,
    ) -> str:
        """The plan in numbers, and what decided the length of the run.

        Args:
            repeats: of each member.
            undivided: what kohya would train on; None: not told.
            max_train_steps: as given; the run is shorter where exposures are kept.
        """
        epochs = self.epochs(self.total_steps)
        text = (
            f"plan: {self.total_steps} optimizer steps = {epochs:.4g} epochs of "
            f"{self.steps_per_epoch} steps; {sum(repeats)} images per epoch, each member is used "
            f"{self.exposures(self.total_steps, repeats):.4g} times in total\n{size.summary()}"
        )
        if max_train_epochs is None and self.total_steps == KOHYAS_STEPS:
            text += (
                f"\nno other length is set, so the run has kohya's default max_train_steps = {KOHYAS_STEPS}: "
                f"{KOHYAS_STEPS} steps x {size.images()} images / {sum(repeats)} images per epoch = about "
                f"{epochs:.4g} epochs; set max_train_epochs to give the length in epochs"
            )
        if undivided is not None and max_train_epochs is None:
            text += self._beside_kohya(repeats, undivided, max_train_steps or self.total_steps)
        return text

    def _beside_kohya(self, repeats: Sequence[int], undivided: Undivided, steps: int) -> str:
        """Exposures here and in kohya, where they differ or were made equal; else nothing."""
        there, here = undivided.exposures(steps), self.exposures(self.total_steps, repeats)
        start = (
            f"\nexposures: kohya would use each of {undivided.pictures} pictures {there:.4g} times in {steps} steps; "
            f"here {len(repeats)} of them are members"
        )
        if steps != self.total_steps:
            return f"{start}, each used {here:.4g} times in {self.total_steps} steps (keep_exposures)"
        if here < 1.1 * there:
            return ""
        return (
            f"{start}, each used {here:.4g} times, since the others are held out; --keep_exposures shortens the run to "
            f"{steps_for(there, self.steps_per_epoch, repeats)} steps"
        )

    def stage(self, done: int, every_epochs: int | None) -> str:
        """Name of the previews after ``done`` steps: the epoch if they are made every n epochs, else the step."""
        return f"e{done // self.steps_per_epoch:06d}" if every_epochs is not None else f"step{done:08d}"


def steps_for(exposures: float, steps_per_epoch: int, repeats: Sequence[int]) -> int:
    """Steps in which each member is used so often, on average; at least one.

    Args:
        repeats: of each member.
    """
    return max(1, round(exposures * steps_per_epoch * len(repeats) / sum(repeats)))


def plan_training(steps_per_epoch: int, max_train_steps: int, max_train_epochs: int | None) -> TrainingPlan:
    """The length of a run; epochs override steps."""
    total = max_train_epochs * steps_per_epoch if max_train_epochs is not None else max_train_steps
    return TrainingPlan(steps_per_epoch, total)
