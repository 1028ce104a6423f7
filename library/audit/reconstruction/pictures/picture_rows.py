"""The pictures of every attack and of its controls, made from the same starting noise and kept on disk."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from library.audit.reconstruction.pictures.attribution import BASE, CLASS, MEAN_CODE, ON_BASE, OTHERS, PERMUTED, TRIGGER
from library.audit.reconstruction.pictures.samplers import (
    Course,
    NoisePrediction,
    edited,
    guided,
    sampled,
    shared_noise,
)
from library.audit.reconstruction.stacked_lora import Factors, StackedModel
from library.errors import InputError
from library.progress import counted
from library.tensor_files import not_finite, private_folder, read_tensors, state_fingerprint, write_tensors

CODE = "encoder"  # W2
EDIT = "edit of the kernel's guess"  # W7
WEIGHTS = (3.0, 5.0, 10.0)  # of guided sampling (W3)
EDIT_WEIGHT = 4.0


@dataclass(frozen=True)
class PictureSettings:
    """How pictures are painted; the same for every row."""

    course: Course
    edit: Course  # from the timestep that a guess is noised to
    samples: int  # for each victim and row
    together: int  # victims at once
    seed: int


@dataclass(frozen=True)
class Sitters:
    """The LoRAs that pictures are painted with, and the prompt embeddings for it."""

    factors: Factors  # of V victims
    class_prompt: Tensor  # [T, D] text states that anybody can write
    true_prompts: Tensor  # [V, T, D] what the victims were trained with: the oracle row alone samples with it
    codes: Tensor | None = None  # [V, T', D] of the encoder
    others: Factors | None = None  # LoRAs of public persons who are no victims
    other_codes: Tensor | None = None  # [O, T', D]
    guesses: Tensor | None = None  # [V, C, h, w] latents that the kernel predicts


Painter = Callable[[], Tensor]  # -> [V, S, C, h, w]


class Studio:
    """Paints with a base and stacks of LoRAs, some victims at a time."""

    def __init__(self, model: StackedModel, settings: PictureSettings, latent_shape: tuple[int, int, int]) -> None:
        self.model, self.settings = model, settings
        self.noise = shared_noise(settings.samples, latent_shape, settings.seed).to(model.device)

    def predictor(self, factors: Factors | None) -> NoisePrediction:
        """The base, or the LoRAs of some victims, whose rows come victim by victim."""
        here = None if factors is None else factors.changed(lambda value: value.to(self.model.device))

        def predict(noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
            return self.model.predict(here, noisy, timesteps, context)

        return predict

    def paint(
        self, factors: Factors | None, prompts: Tensor, weight: float | None = None, guesses: Tensor | None = None
    ) -> Tensor:
        """[V, S, C, h, w] on the CPU.

        Args:
            factors: of V victims; None: the base.
            prompts: [V, T, D].
            weight: of guided sampling; None: the model as it is.
            guesses: [V, C, h, w] where pictures start from one.
        """
        found = []
        for first in range(0, len(prompts), self.settings.together):
            rows = list(range(first, min(first + self.settings.together, len(prompts))))
            tuned = self.predictor(None if factors is None else factors.rows(rows))
            predict = tuned if weight is None else guided(self.predictor(None), tuned, weight)
            context = prompts[rows].to(self.model.device)
            if guesses is None:
                made = sampled(predict, context, self.noise, self.settings.course)
            else:
                start = guesses[rows].to(self.model.device)
                made = edited(predict, start, context, self.noise, self.settings.edit)
            found.append(made.cpu())
        return torch.cat(found)


def painters(studio: Studio, sitters: Sitters) -> dict[str, Painter]:
    """What each row is painted with: attacks that can be run, and every control that they need."""
    factors, count = sitters.factors, sitters.factors.count
    plain = sitters.class_prompt.expand(count, -1, -1)
    rows: dict[str, Painter] = {
        BASE: lambda: studio.paint(None, plain[:1]).expand(count, -1, -1, -1, -1),  # the same for everybody
        CLASS: lambda: studio.paint(factors, plain),
        TRIGGER: lambda: studio.paint(factors, sitters.true_prompts),
    }
    for weight in WEIGHTS:
        rows[guided_name(weight)] = lambda weight=weight: studio.paint(factors, plain, weight)  # type: ignore[misc]
    if sitters.guesses is not None:
        rows[EDIT] = lambda: studio.paint(factors, plain, EDIT_WEIGHT, sitters.guesses)
    if sitters.codes is not None:
        rows |= code_painters(studio, sitters, sitters.codes)
    return rows


def guided_name(weight: float) -> str:
    """Of a row of W3."""
    return f"guided, w {weight:g}"


def code_painters(studio: Studio, sitters: Sitters, codes: Tensor) -> dict[str, Painter]:
    """The encoder's row and the controls that only a code has."""
    factors, others, other_codes = sitters.factors, sitters.others, sitters.other_codes
    if others is None or other_codes is None:
        raise InputError("an encoder's row needs LoRAs of other persons as a control; give their factors and codes")
    mean = codes.mean(0, keepdim=True).expand_as(codes)
    return {
        CODE: lambda: studio.paint(factors, codes),
        ON_BASE: lambda: studio.paint(None, codes),
        MEAN_CODE: lambda: studio.paint(factors, mean),
        PERMUTED: lambda: studio.paint(factors, codes.roll(-1, 0)),
        OTHERS: lambda: repeated(studio.paint(others, other_codes), factors.count),
    }


def repeated(outputs: Tensor, count: int) -> Tensor:
    """[count, ...]: the rows again from the first one on, where there are fewer."""
    return outputs[torch.arange(count) % len(outputs)]


def paint_rows(
    studio: Studio, sitters: Sitters, folder: Path, names: Mapping[str, Painter] | None = None
) -> dict[str, Tensor]:
    """[V, S, C, h, w] of every row; what ``folder`` has under the same facts is read, the rest painted and kept.

    Files are 0600 in a 0700 folder; their names and metadata tell nothing of a person.

    Raises:
        InputError: a model that paints NaN.
    """
    place, facts = private_folder(folder), facts_of(studio, sitters)
    wanted = painters(studio, sitters) if names is None else names
    found: dict[str, Tensor] = {}
    with counted(len(wanted), "pictures", "rows") as bar:
        for name, paint in wanted.items():
            file = place / f"{hashlib.sha256(f'{facts}{name}'.encode()).hexdigest()[:24]}.safetensors"
            if not file.is_file():
                outputs = paint().contiguous()
                if not_finite({name: outputs}):
                    raise InputError(f"row '{name}' holds NaN: the LoRA or the embedding makes the model overflow")
                write_tensors(file, {"outputs": outputs}, {"row": name})
            found[name] = read_tensors(file)[0]["outputs"]
            bar.update()
    return found


def facts_of(studio: Studio, sitters: Sitters) -> str:
    """A fingerprint of all that the pictures depend on."""
    settings = studio.settings
    tensors = {"noise": studio.noise, "class": sitters.class_prompt, "true": sitters.true_prompts}
    tensors |= sitters.factors.state()
    for name, one in (("codes", sitters.codes), ("other codes", sitters.other_codes), ("guesses", sitters.guesses)):
        if one is not None:
            tensors[name] = one
    courses = [[one.steps, one.first, one.limit] for one in (settings.course, settings.edit)]
    return json.dumps([studio.model.fingerprint, courses, state_fingerprint(tensors)])
