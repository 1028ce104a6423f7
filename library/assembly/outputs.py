"""What a run writes while it trains: the log, LoRA files, states, previews; and how it ends."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from library import leftovers, tensor_files
from library.assembly.previews import Painter
from library.assembly.run import Run
from library.assembly.step_flops import mfu_of_one
from library.assembly.teachers import teach
from library.assembly.training import Training
from library.data.split_file import write_split
from library.diffusion.memory import AdviceRules, out_of_memory_explained
from library.diffusion.previews import PreviewRules
from library.errors import InputError, RunStopped
from library.file_table import CACHE_DIR
from library.lora_files import metadata
from library.options import write
from library.privacy import gap
from library.privacy.proxy_history import ProxyHistory
from library.rules import pick
from library.training import earlier_run, messages, sample_folder
from library.training.checkpoint_schedule import KeepRule
from library.training.checkpoint_writer import CheckpointWriter
from library.training.interruption import StopSignal
from library.training.output_folder import step_number
from library.training.run_log import Recorder
from library.training.trackers import LogRules
from library.training.training_curve import write_curve

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far the run is, for what is kept of one that cannot go on."""

    done: int  # whole optimizer steps
    is_between_steps: bool = True


@dataclass(frozen=True)
class Outputs:
    """The files of a run, written when they are due."""

    run: Run
    training: Training
    log: Recorder
    checkpoints: CheckpointWriter
    previews: Painter
    stop: StopSignal
    progress: Progress

    def timed(self, fetch: Callable[..., Result], *arguments: object) -> Result:
        """What ``fetch`` returns; its time counts as waiting for data."""
        return self.log.speed.waiting(fetch, *arguments)

    def start(self) -> None:
        """The teachers, where there are any; the validation pass and previews of the untouched base of a fresh run."""
        if self.training.game.teachers is not None and self.run.config.resume is None:
            self.checkpoints.write_state(step_number(0), 0)  # what a stop among the teachers goes on from
        teach(self.training, self.log, self.stop)
        if self.training.done == 0:
            if self.training.validation is not None:
                self.log.epoch(0, 0, self.training.validate(0, 0, self.log.announce))
            self.previews.show("base", 0, self.log, wanted=self.run.config.sample_at_first)
        self.progress.is_between_steps = False

    def after_step(self, done: int, figures: dict[str, float]) -> None:
        """Record a step, and whatever is due after it: validation, LoRA file, state, previews."""
        config, plan, end = self.run.config, self.run.plan, self.training.course().end
        self.progress.done, self.progress.is_between_steps = done, True
        epoch = plan.epoch_of(done - 1)
        self.log.step(done, epoch, figures)
        looks = self.training.validation
        if looks is not None and (done == end or looks.plan.is_due(done)):
            self.log.epoch(done, epoch, self.training.validate(done, epoch, self.log.announce))
            self.log.ends_after(self.training.course().end)
        self.keep_folder()
        self.checkpoints.after_step(done)
        stage = plan.stage(done, config.sample_every_n_epochs)
        is_due = plan.is_due(done, config.sample_every_n_epochs, config.sample_every_n_steps)
        self.previews.show(stage, done, self.log, wanted=is_due)

    def stopped(self, done: int, figures: dict[str, float]) -> int | None:
        """The exit status of a run that ends here, its state saved; None for a run that goes on."""
        guard, is_lost = self.training.guard, self.training.guard.is_lost()
        end = self.training.course().end
        if not is_lost and not (self.stop.asked(self.run.accelerator) and done < end):
            self.progress.is_between_steps = done == end
            return None
        self.draw()
        self.log.tell(guard.report(done, figures), self.checkpoints.stopped(self.run.door, done, lost=is_lost))
        return 1 if is_lost else 130

    def finish(self) -> int:
        """The final LoRA, state and previews; returns the exit status: 1 where a target of the AUC was never met."""
        done, kept = self.training.course().end, self.training.kept_after()
        self.keep_folder()
        self.checkpoints.finish(done, kept)
        self.previews.show("final", done if kept is None else kept, self.log)
        self.draw()
        self._dismiss_teachers()
        return 1 if kept is None else 0

    def _dismiss_teachers(self) -> None:
        """Remove the teachers, which hold what they learnt by heart, and the state before the first step."""
        run = self.run
        if self.training.game.teachers is None or not run.accelerator.is_main_process:
            return
        tensor_files.remove_folder(run.folder.state(step_number(0)))
        if not run.config.distill_keep_teachers:
            tensor_files.remove_folder(run.folder.teachers())

    def draw(self) -> None:
        """Loss and attacker so far, as a picture in the folder."""
        if self.run.accelerator.is_main_process:
            write_curve(self.run.folder.log(), self.run.folder.curve())

    def keep_folder(self) -> None:
        """Make the output folder again where somebody removed it: a LoRA without its split could not be audited.

        Raises:
            InputError: by now another run writes into it.
        """
        if not self.run.lock.renew():
            return
        write_head(self.run)
        self.log.file.restore()
        logger.warning(
            "output_dir '%s' or its lock was removed while the run writes into it; split.json, config.toml and "
            "log.jsonl are there again, LoRA files and states of before may be gone",
            self.run.folder.path,
        )

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """What is trained is written, whatever ends the run.

        Raises:
            RunStopped: a full disk, a picture that is gone, a further Ctrl-C; with what is kept and how to go on.
        """
        done, door, resumed = self.progress, self.run.door, self.run.config.resume
        try:
            yield
        except RunStopped as stopped:
            raise RunStopped(f"{stopped}\n{self.checkpoints.way_on(door, resumed)}") from None
        except KeyboardInterrupt:
            way_on = self.checkpoints.way_on(door, resumed)
            raise RunStopped(f"ended in the middle of things after step {done.done}, as asked\n{way_on}") from None
        except (OSError, InputError) as error:
            is_new = done.done > self.training.done
            if isinstance(error, InputError) and not is_new:
                raise
            reason = f"{error.strerror or error}" if isinstance(error, OSError) else str(error)
            place = f": '{error.filename}'" if isinstance(error, OSError) and error.filename else ""
            raise RunStopped(f"stopped after step {done.done}: {reason}{place}\n{self._rescued()}") from error
        except Exception:
            self.log.tell(self._rescued())
            raise

    def _rescued(self) -> str:
        """Write what can be written; returns what was."""
        door, resumed, progress = self.run.door, self.run.config.resume, self.progress
        if progress.done == self.training.done or self.training.guard.is_lost() or not self.checkpoints.active:
            return self.checkpoints.way_on(door, resumed)
        try:
            self.keep_folder()
        except (OSError, InputError) as error:
            return f"nothing was written: {error}"
        return self.checkpoints.rescue(door, progress.done, resumed, is_exact=progress.is_between_steps)

    def summary(self) -> str:
        """What was learnt, how fast, whether there was an opponent, and how the LoRA is used."""
        if not self.run.accelerator.is_main_process:
            return ""
        folder, history = self.run.folder, self.training.game.history
        privacy, done = self.run.privacy, self.progress.done
        validated = self.training.validation is not None
        lines = [self.log.summary(validated=validated), history.verdict() if privacy is None else privacy.verdict(done)]
        if self.training.stop_rules.target_auc is not None:
            lines.append(gap.verdict(self.training.stop_rules, history.gaps, self.run.plan.total_steps))
        if self.log.tensorboard:
            lines.append(messages.how_to_watch(self.log.tensorboard))
        if self.training.kept_after() is not None:
            lines.append(messages.how_to_use(folder, sample_folder.write_sheet(folder)))
        return "\n".join(lines)


@contextmanager
def open_outputs(run: Run, training: Training) -> Iterator[Outputs]:
    """Make the folder, write who is a member, and open the log; Ctrl-C then finishes the step that runs."""
    config, is_main = run.config, run.accelerator.is_main_process
    checkpoints = CheckpointWriter(
        folder=run.folder,
        plan=run.plan,
        rule=pick(config, KeepRule),
        training_state=training.state,
        save_precision=config.save_precision,
        with_state=config.save_state,
        state_at_end=config.save_state_on_train_end,
        options=dict(run.options),
        inputs=run.inputs(),
        metadata=lambda done: lora_metadata(run, training.game.history, done),
        checks=training.game.history.checks,
        gaps=training.game.history.gaps,
        spending=None if run.privacy is None else run.privacy.spending().facts(),
        chosen_by_target=config.target_auc is not None,
        active=is_main,
    )
    painter = Painter(run.accelerator, run.model, run.prompts, training.state, run.folder, pick(config, PreviewRules))
    with ExitStack() as stack:
        stack.callback(run.lock.release)
        if is_main:
            earlier_run.make_folder(run.folder, clear=config.overwrite and not config.resume)
            leftovers.sweep(Path(config.cache_dir), CACHE_DIR)
            write_head(run)
        stack.enter_context(out_of_memory_explained(pick(config, AdviceRules)))
        stop = stack.enter_context(StopSignal())
        log = stack.enter_context(
            Recorder(
                run.folder,
                pick(config, LogRules),
                total=training.course().end,
                done=training.done,
                images_per_step=training.images_per_step(),
                mfu_of_one=mfu_of_one(training.game, config.gradient_checkpointing),
                active=is_main,
            )
        )
        outputs = Outputs(run, training, log, checkpoints, painter, stop, Progress(training.done))
        with outputs.kept_on_failure():
            outputs.start()
            yield outputs


def write_head(run: Run) -> None:
    """Write who is a member, and the options."""
    write_split(run.split, run.folder.split())
    stated = f'\n[facts]\nsplit_hash = "{run.split.sealed_hash()}"\n'  # an audit compares it with split.json
    tensor_files.write_whole(run.folder.config(), write.resolved_toml(run.door, run.config) + stated, private=True)


def lora_metadata(run: Run, history: ProxyHistory, done: int) -> dict[str, str]:
    """What a LoRA file says of itself after ``done`` steps."""
    config, model, uses = run.config, run.model, run.uses()
    rules = pick(config, metadata.FileRules)
    if not model.family.reads_clip_skip:
        rules = replace(rules, clip_skip=1)
    network = metadata.network_facts(
        rules, run.stated, run.size, model.version(), model.scheduler.config.prediction_type, model.file_hashes
    )
    privacy = metadata.privacy_facts(
        run.door,
        run.options,
        exposures=run.plan.exposures(done, uses),
        verdict=history.word() if run.privacy is None else "differentially private",
        base_fingerprint=model.fingerprint,
        guarantee={} if run.privacy is None else run.privacy.metadata(done),
    )
    own_words = metadata.full_facts(rules, len(uses), run.plan.total_steps)
    full = config.metadata == "full"
    return metadata.written(network, privacy, own_words, no_metadata=config.no_metadata, full=full)
