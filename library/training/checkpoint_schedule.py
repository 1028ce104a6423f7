"""When LoRA files and states are written, with which numbers, and which old ones are removed."""

import math
from dataclasses import dataclass

from library.tensor_files import remove_folder
from library.training.output_folder import OutputFolder, epoch_number, step_number
from library.training.training_plan import TrainingPlan


@dataclass(frozen=True)
class KeepRule:
    """How often files are saved and how many are kept, as in kohya; the fields are options."""

    save_every_n_epochs: int | None  # epochs between files
    save_every_n_steps: int | None  # optimizer steps between files
    save_n_epoch_ratio: int | None  # files of the whole run; overrides save_every_n_epochs
    save_last_n_epochs: int | None  # numbered epoch files kept
    save_last_n_steps: int | None  # optimizer steps back that are kept
    save_last_n_epochs_state: int | None  # the same for states; unset: as for files
    save_last_n_steps_state: int | None

    def every_epochs(self, plan: TrainingPlan) -> int | None:
        """Epochs between files; a ratio means epochs of the run / ratio, rounded down, at least 1, as in kohya."""
        if self.save_n_epoch_ratio is None:
            return self.save_every_n_epochs
        return max(1, math.ceil(plan.epochs(plan.total_steps)) // self.save_n_epoch_ratio)


def numbers_due(plan: TrainingPlan, rule: KeepRule, done: int) -> list[str]:
    """Numbers of the files to write after ``done`` steps; the last epoch has none, its file is the final one."""
    numbers = []
    every_epochs = rule.every_epochs(plan)
    if every_epochs and plan.is_due(done, every_epochs, None):
        numbers.append(epoch_number(done // plan.steps_per_epoch))
    if rule.save_every_n_steps and plan.is_due(done, None, rule.save_every_n_steps):
        numbers.append(step_number(done))
    return numbers


def remove_old(plan: TrainingPlan, rule: KeepRule, folder: OutputFolder, done: int) -> None:
    """Remove the numbered files and states that are too old after ``done`` steps."""
    for number in _fallen_out(plan, rule, done, rule.save_last_n_epochs, rule.save_last_n_steps):
        folder.lora(number).unlink(missing_ok=True)
    last_epochs = rule.save_last_n_epochs_state or rule.save_last_n_epochs
    last_steps = rule.save_last_n_steps_state or rule.save_last_n_steps
    for number in _fallen_out(plan, rule, done, last_epochs, last_steps):
        remove_folder(folder.state(number))


def _fallen_out(
    plan: TrainingPlan, rule: KeepRule, done: int, last_epochs: int | None, last_steps: int | None
) -> list[str]:
    """Number of the oldest file by epochs and by steps, once it is too old."""
    numbers = []
    every_epochs, every_steps = rule.every_epochs(plan), rule.save_every_n_steps
    if every_epochs and last_epochs and plan.is_due(done, every_epochs, None):
        oldest = done // plan.steps_per_epoch - every_epochs * last_epochs
        numbers += [epoch_number(oldest)] if oldest > 0 else []
    if every_steps and last_steps and plan.is_due(done, None, every_steps):
        oldest = (done - last_steps) // every_steps * every_steps
        numbers += [step_number(oldest)] if oldest > 0 else []
    return numbers
