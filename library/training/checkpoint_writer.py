"""Writes a run's LoRA files, proxy and states when they are due."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from library.lora_files.format import write_lora
from library.tensor_files import write_tensors
from library.training.checkpoint_schedule import KeepRule, numbers_due, remove_old
from library.training.messages import how_to_resume
from library.training.output_folder import OutputFolder, newest_state, step_number
from library.training.state import TrainingState, save_state
from library.training.training_plan import TrainingPlan


@dataclass(frozen=True)
class CheckpointWriter:
    """Where, how often and in which precision files are written; ``metadata`` and ``checks`` change over the run."""

    folder: OutputFolder
    plan: TrainingPlan
    rule: KeepRule
    training_state: TrainingState
    save_precision: str
    with_state: bool  # beside every LoRA file
    state_at_end: bool
    options: dict[str, Any]  # those that shape the weights
    inputs: dict[str, str]  # fingerprints of split, captions and model
    metadata: Callable[[int], dict[str, str]]  # by optimizer steps done
    checks: list[Any]  # of the proxy, dataclasses; grows during the run
    gaps: list[Any]  # the same of the gap
    spending: Mapping[str, float] | None  # of a differentially private run
    chosen_by_target: bool  # which weights the final LoRA has is known at the end only
    active: bool  # only the main process writes

    def after_step(self, done: int) -> None:
        """Write what is due after ``done`` steps and remove what is too old."""
        if not self.active:
            return
        for number in numbers_due(self.plan, self.rule, done):
            self.write_lora(number, done)
            if self.with_state:
                self.write_state(number, done)
        remove_old(self.plan, self.rule, self.folder, done)

    def finish(self, done: int, kept: int | None) -> None:
        """Write the final LoRA, and the final state if states are saved.

        Args:
            kept: steps after which the weights of the final LoRA were kept; None: no LoRA is written.
        """
        if kept is not None:
            with self.training_state.shown_as_kept():
                self._write_shown("", kept)
        if self.with_state or self.state_at_end:
            self.write_state("", done)

    def stopped(self, door: str, done: int, *, lost: bool) -> str:
        """Save an unfinished run, and return the command that continues it.

        Args:
            lost: the losses are no longer finite; the state is kept for inspection, and no final LoRA is written.
        """
        if not lost and not self.chosen_by_target:
            self.write_lora("", done)
        return how_to_resume(door, self.folder, self.write_state("-stopped" if lost else step_number(done), done))

    def rescue(self, door: str, done: int, resumed: str | None, *, is_exact: bool) -> str:
        """Write what can still be written of a run that cannot go on; returns what is kept and how to continue.

        Args:
            resumed: the state that the run itself continued from.
            is_exact: the run stands between two steps, so that a state of it would go on as if nothing had happened.
        """
        said, lacks_lora = [], False
        try:
            if self.chosen_by_target:
                said.append("no final LoRA is written, since target_auc chooses its weights at the end")
            else:
                self.write_lora("", done)
                said.append(f"the LoRA of step {done} is in '{self.folder.lora()}'")
        except OSError as error:
            lacks_lora = error.filename != str(self.folder.proxy())  # which is written after the LoRA
            said.append(
                f"the LoRA of step {done} could not be written ({error.strerror})"
                if lacks_lora
                else f"the LoRA of step {done} is in '{self.folder.lora()}', without its proxy ({error.strerror})"
            )
        try:
            if is_exact:
                self.write_state(step_number(done), done)
        except OSError as error:
            said.append(f"nor a state ({error.strerror})" if lacks_lora else f"no state ({error.strerror})")
        return "; ".join([*said, self.way_on(door, resumed)])

    def way_on(self, door: str, resumed: str | None) -> str:
        """The command that continues from the newest state, or that there is none."""
        newest = newest_state(self.folder) or resumed
        return how_to_resume(door, self.folder, str(newest)) if newest else "no state was saved, so it starts anew"

    def write_lora(self, number: str, done: int) -> None:
        """Write the LoRA with this number ("" = the final name) and its proxy attacker."""
        with self.training_state.shown():
            self._write_shown(number, done)

    def _write_shown(self, number: str, done: int) -> None:
        if not self.active:
            return
        state = self.training_state.network.state_dict()
        write_lora(self.folder.lora(number), state, self.metadata(done), self.save_precision)
        write_tensors(self.folder.proxy(), self.training_state.proxy.state_dict(), {})

    def write_state(self, number: str, done: int) -> str:
        """Write a resumable state; returns its folder."""
        place = self.folder.state(number)
        if self.active:
            save_state(
                place,
                self.training_state,
                done=done,
                options=self.options,
                inputs=self.inputs,
                checks=[dataclasses.asdict(check) for check in self.checks],
                gaps=[dataclasses.asdict(gap) for gap in self.gaps],
                spending=self.spending,
            )
        return str(place)
