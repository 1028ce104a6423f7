"""When LoRA files and states are written, under which number, and which old ones are removed."""

import shutil
from dataclasses import dataclass

from library.training.course import Course
from library.training.output_folder import OutputFolder, epoch_number, step_number


@dataclass(frozen=True)
class KeepRule:
    """How often to save and how much to keep, in kohya's terms."""

    every_epochs: int | None  # epochs between files
    every_steps: int | None  # optimizer steps between files
    last_epochs: int | None  # numbered epoch files kept
    last_steps: int | None  # optimizer steps back that are kept
    last_epochs_state: int | None  # the same for states; unset: as for files
    last_steps_state: int | None


def numbers_due(course: Course, rule: KeepRule, done: int) -> list[str]:
    """Numbers of the files to write after ``done`` steps; the last epoch gets none, its file is the final one."""
    numbers = []
    if rule.every_epochs and course.is_due(done, rule.every_epochs, None):
        numbers.append(epoch_number(done // course.steps_per_epoch))
    if rule.every_steps and course.is_due(done, None, rule.every_steps):
        numbers.append(step_number(done))
    return numbers


def remove_old(course: Course, rule: KeepRule, folder: OutputFolder, done: int) -> None:
    """Remove the numbered files and states that fall out of the rule after ``done`` steps."""
    if rule.every_epochs and rule.last_epochs and course.is_due(done, rule.every_epochs, None):
        oldest = done // course.steps_per_epoch - rule.every_epochs * rule.last_epochs
        if oldest > 0:
            folder.lora(epoch_number(oldest)).unlink(missing_ok=True)
    if rule.every_steps and rule.last_steps and course.is_due(done, None, rule.every_steps):
        oldest = (done - rule.last_steps) // rule.every_steps * rule.every_steps
        if oldest > 0:
            folder.lora(step_number(oldest)).unlink(missing_ok=True)
    _remove_old_states(course, rule, folder, done)


def _remove_old_states(course: Course, rule: KeepRule, folder: OutputFolder, done: int) -> None:
    last_epochs = rule.last_epochs_state or rule.last_epochs
    last_steps = rule.last_steps_state or rule.last_steps
    if rule.every_epochs and last_epochs and course.is_due(done, rule.every_epochs, None):
        oldest = done // course.steps_per_epoch - rule.every_epochs * last_epochs
        if oldest > 0:
            shutil.rmtree(folder.state(epoch_number(oldest)), ignore_errors=True)
    if rule.every_steps and last_steps and course.is_due(done, None, rule.every_steps):
        oldest = (done - last_steps) // rule.every_steps * rule.every_steps
        if oldest > 0:
            shutil.rmtree(folder.state(step_number(oldest)), ignore_errors=True)
