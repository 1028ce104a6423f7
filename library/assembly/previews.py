"""Previews of one run: painted by the model as it stands, written to sample/, shown in TensorBoard."""

from dataclasses import dataclass
from functools import partial

from accelerate import Accelerator

from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.previews import PreviewRules, paint
from library.diffusion.prompt_files import Prompt
from library.training.output_folder import OutputFolder
from library.training.run_log import Recorder
from library.training.sample_folder import write_previews
from library.training.state import TrainingState


@dataclass(frozen=True)
class Painter:
    """Paints the same prompts with the same seeds at every stage of a run."""

    accelerator: Accelerator
    model: LatentDiffusion
    prompts: list[Prompt]
    training_state: TrainingState
    folder: OutputFolder
    rules: PreviewRules

    def show(self, stage: str, done: int, recorder: Recorder, wanted: bool = True) -> None:
        """Paint every prompt after ``done`` steps; nothing to do without prompts or beside the main process.

        The weights are those that a file of this stage holds: at the end those that were kept, where a target chose.

        Args:
            stage: "base", "e000001", "step00000050" or "final".
            wanted: False where the moment has not come.
        """
        if not wanted or not self.prompts or not self.accelerator.is_main_process:
            return
        shown = self.training_state.shown_as_kept if stage == "final" else self.training_state.shown
        with shown(), self.accelerator.autocast():
            images = paint(self.model, self.prompts, self.rules, partial(recorder.announce, "preview"))
        write_previews(self.folder.samples(), self.folder.output_name, stage, images)
        recorder.pictures(done, images)
