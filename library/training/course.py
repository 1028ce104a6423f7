"""How long a run is, which epoch a step belongs to, and when something that happens every so often is due."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Course:
    """Steps are counted from 0 while they run; ``done`` is how many have run."""

    steps_per_epoch: int
    total_steps: int

    def epoch_of(self, step: int) -> int:
        """Epoch of a step, counted from 1."""
        return step // self.steps_per_epoch + 1

    def ends_epoch(self, done: int) -> bool:
        """Whether an epoch (or the run) is complete after ``done`` steps."""
        return done % self.steps_per_epoch == 0 or done == self.total_steps

    def epochs(self, done: int) -> float:
        """Epochs that ``done`` steps make."""
        return done / self.steps_per_epoch

    def is_due(self, done: int, every_epochs: int | None, every_steps: int | None) -> bool:
        """Whether something is due after ``done`` steps; epochs win over steps where both are given."""
        if every_epochs is not None:
            return done % self.steps_per_epoch == 0 and (done // self.steps_per_epoch) % every_epochs == 0
        return every_steps is not None and done % every_steps == 0


    def stage(self, done: int, every_epochs: int | None) -> str:
        """Name of the previews after ``done`` steps: by epoch where they come by epoch, else by step."""
        return f"e{done // self.steps_per_epoch:06d}" if every_epochs is not None else f"step{done:08d}"


def plan_course(steps_per_epoch: int, max_train_steps: int, max_train_epochs: int | None) -> Course:
    """The length of a run; epochs beat steps."""
    total = max_train_epochs * steps_per_epoch if max_train_epochs is not None else max_train_steps
    return Course(steps_per_epoch, total)


def course_in_words(course: Course, repeats: int, members: int) -> str:
    """The plan in numbers, so that nobody is surprised when the run ends.

    Args:
        repeats: member images of an epoch, repeats counted.
        members: member images.
    """
    epochs = course.total_steps / course.steps_per_epoch
    return (f"course: {course.total_steps} optimizer steps = {epochs:.4g} epochs of {course.steps_per_epoch} steps; "
            f"{repeats} images an epoch, each member seen {epochs * repeats / members:.4g} times in all")
