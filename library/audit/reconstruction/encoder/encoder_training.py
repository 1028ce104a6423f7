"""Training of the network encoder while shadow LoRAs are trained: every step of every LoRA is one example of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from library.audit.reconstruction.encoder.matrix_encoder import matrices_of
from library.audit.reconstruction.encoder.network_encoder import NetworkEncoder
from library.audit.reconstruction.persons import PersonSet
from library.audit.reconstruction.shadow_corpus import (
    Corpus,
    CorpusRecipe,
    corpus_facts,
    fingerprint_of,
    untrained,
)
from library.audit.reconstruction.stacked_lora import Factors, StackedModel, joined
from library.audit.reconstruction.stacked_training import Batch, train_stack
from library.errors import InputError
from library.progress import counted
from library.seeding import permutation, stream
from library.tensor_files import not_finite, private_folder, read_tensors, write_tensors

KEPT_EVERY = 50  # steps on a kept corpus between two states
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


@dataclass(frozen=True)
class EncoderRecipe:
    """How the encoder is trained; the release has AdamW 5e-3, weight decay 5e-4, one LoRA at a time, no KL."""

    learning_rate: float
    weight_decay: float
    kl_weight: float  # of the divergence to the standard normal; 0 as released
    together: int  # LoRAs that are trained at once, each an example of every encoder step
    passes: int  # over the public persons
    seed: int


def encoder_loss(
    encoder: NetworkEncoder,
    model: StackedModel,
    factors: Factors,
    steps: Tensor,
    latents: Tensor,
    kl_weight: float,
    chance: torch.Generator,
) -> Tensor:
    """[] |eps - UNet_{theta_r}(x_t, t, z)|^2 with z drawn from the encoder's answer on theta_r, plus weighted KL.

    Algorithm 2 of arXiv 2409.08482 as released: a picture of the person, a fresh timestep, fresh noise. The LoRA is
    the decoder and is never trained here.

    Args:
        factors: K LoRAs as they are after ``steps`` steps; no gradient reaches them.
        steps: [K].
        latents: [K, n, C, h, w] each person's pictures, of which one is drawn.
    """
    device, count = model.device, len(latents)
    fixed = factors.changed(lambda value: value.detach().to(device))
    picture = torch.randint(latents.shape[1], (count,), generator=chance)
    timesteps = torch.randint(len(model.alphas_cumprod), (count,), generator=chance).to(device)
    clean = latents[torch.arange(count), picture].to(device)
    noise = torch.randn(clean.shape, generator=chance).to(device)
    code = encoder(matrices_of(fixed, encoder.shapes), steps.to(device))
    drawn = code.drawn(torch.randn(code.mean.shape, generator=chance).to(device))  # [K, T, D]
    answer = model.predict(fixed, model.noised(clean, noise, timesteps), timesteps, drawn)
    loss = (answer - noise).square().mean()
    return loss + kl_weight * code.divergence() if kl_weight else loss


class EncoderCourse:
    """An encoder in training: its optimizer, what it has seen, and its state on disk."""

    def __init__(
        self, encoder: NetworkEncoder, model: StackedModel, rules: EncoderRecipe, facts: dict[str, object]
    ) -> None:
        self.encoder = encoder.to(model.device).train()
        self.model, self.rules = model, rules
        self.parameters = encoder.trained_parameters()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rules.learning_rate, weight_decay=rules.weight_decay)
        self.facts = json.dumps(facts | {"size": asdict(encoder.size), "rules": asdict(rules)}, sort_keys=True)
        self.done = 0  # stacks of LoRAs, or steps on a kept corpus
        self.losses: list[float] = []  # of every encoder step, before it

    def learn(self, factors: Factors, steps: Tensor, latents: Tensor, *purpose: str | int) -> None:
        """One step of the encoder; gradients are asked for its own parameters alone.

        Raises:
            InputError: a loss that is not finite.
        """
        chance = stream(self.rules.seed, "encoder", *purpose)
        loss = encoder_loss(self.encoder, self.model, factors, steps, latents, self.rules.kl_weight, chance)
        if not loss.isfinite():
            raise InputError(
                f"the encoder's loss is {loss.item()} after {len(self.losses)} steps; its learning rate "
                f"{self.rules.learning_rate:g} is too high. The last state is kept"
            )
        for value, gradient in zip(
            self.parameters, torch.autograd.grad(loss, self.parameters, allow_unused=True), strict=True
        ):
            value.grad = gradient
        self.optimizer.step()
        self.losses.append(float(loss.detach()))

    def save(self, file: Path) -> None:
        """Encoder, optimizer and place in the course, 0600 in a 0700 folder; no name of a person or picture."""
        private_folder(file.parent)
        tensors = {f"encoder/{name}": value for name, value in self.encoder.state_dict().items()}
        for place, value in enumerate(self.parameters):
            state = self.optimizer.state.get(value, {})
            tensors |= {f"optimizer/{place}/{name}": state[name] for name in (*MOMENTS, "step") if name in state}
        tensors["losses"] = torch.tensor(self.losses)
        write_tensors(file, tensors, {"facts": self.facts, "done": str(self.done)})

    def resume(self, file: Path) -> None:
        """Go on where a stopped course stood.

        Raises:
            InputError: a damaged file, or the encoder of another base, corpus, size or rules.
        """
        tensors, metadata = read_tensors(file)
        if metadata.get("facts") != self.facts:
            raise InputError(
                f"'{file}' is an encoder of another base, corpus, size or rules; nothing was changed. Move it away, or "
                "give what it was trained with"
            )
        self.encoder.load_state_dict(encoder_state(tensors, self.encoder, file))
        for place, value in enumerate(self.parameters):
            head = f"optimizer/{place}/"
            kept = {name.removeprefix(head): one for name, one in tensors.items() if name.startswith(head)}
            if kept:
                self.optimizer.state[value] = {
                    name: one if name == "step" else one.to(value.device) for name, one in kept.items()
                }
        self.losses, self.done = tensors["losses"].tolist(), int(metadata["done"])


def encoder_state(tensors: dict[str, Tensor], encoder: NetworkEncoder, file: Path) -> dict[str, Tensor]:
    """The encoder's tensors in a file of ``EncoderCourse.save``. Raises: InputError for others, or NaN."""
    state = {n.removeprefix("encoder/"): value for n, value in tensors.items() if n.startswith("encoder/")}
    wanted = {name: value.shape for name, value in encoder.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != wanted:
        raise InputError(
            f"'{file}' holds no encoder of {len(encoder.shapes)} matrices and width {encoder.size.hidden}; it was made "
            "for another layout, rank or size"
        )
    if bad := not_finite(state):
        raise InputError(f"'{file}' holds NaN or infinity in {len(bad)} tensors; remove it and train again")
    return state


def train_encoder(
    encoder: NetworkEncoder,
    model: StackedModel,
    encode_text: Callable[[Sequence[str]], Tensor],
    persons: PersonSet,
    recipe: CorpusRecipe,
    rules: EncoderRecipe,
    file: Path,
) -> EncoderCourse:
    """Algorithm 2: train fresh LoRAs of public persons and, after each of their steps, the encoder on what they are.

    Args:
        encode_text: captions -> text states [P, T, D]; used by the LoRAs alone, the encoder never sees a caption.
        persons: public ones.
        recipe: the victim's, as far as the attacker knows it.
        file: the state; a course that was stopped goes on after its last whole stack of LoRAs.
    """
    corpus = fingerprint_of(corpus_facts(model, recipe) | {"pictures": persons.fingerprint()})
    course = EncoderCourse(encoder, model, rules, {"base": model.fingerprint, "corpus": corpus})
    if file.is_file():
        course.resume(file)
    stacks = [one for number in range(rules.passes) for one in stacks_of(len(persons), rules, number)]
    with counted(sum(map(len, stacks)) * recipe.steps, "encoder", "LoRA steps") as bar:
        bar.update(sum(map(len, stacks[: course.done])) * recipe.steps)
        for number, rows in enumerate(stacks):
            if number < course.done:
                continue
            some = persons.some(rows)
            with torch.no_grad():
                contexts = encode_text([recipe.caption(name) for name in some.names])
            learn = partial(_learn_from, course, some.latents, number, bar)
            train_stack(
                model, untrained(model, some, recipe), some.latents, contexts, recipe.steps, recipe.step, some.names,
                seed=recipe.seed, on_step=learn,
            )  # fmt: skip
            course.done = number + 1
            course.save(file)
    return course


def stacks_of(persons: int, rules: EncoderRecipe, number: int) -> list[list[int]]:
    """The persons of one pass in an order of its own, ``together`` at a time."""
    order = permutation(persons, rules.seed, "encoder order", number)
    return [order[first : first + rules.together] for first in range(0, persons, rules.together)]


def _learn_from(
    course: EncoderCourse, latents: Tensor, stack: int, bar: object, step: int, factors: Factors, batch: Batch
) -> None:
    """What ``train_stack`` calls after each step."""
    count = factors.count
    course.learn(factors, torch.full((count,), step), latents, "stack", stack, step)
    bar.update(count)  # type: ignore[attr-defined]


def train_on_kept(
    encoder: NetworkEncoder,
    model: StackedModel,
    corpus: Corpus,
    rules: EncoderRecipe,
    steps: int,
    file: Path,
) -> EncoderCourse:
    """The same examples from a corpus that is there already: its snapshots stand for the steps, none is trained anew.

    Args:
        encoder: as it is: untrained, or after ``train_encoder``.
        steps: of the encoder, each on ``rules.together`` LoRAs; a kept course goes on to a larger number.
    """
    facts = {"base": model.fingerprint, "corpus": corpus.fingerprint, "kept": True}
    course = EncoderCourse(encoder, model, rules, facts)
    if file.is_file():
        course.resume(file)
    at = sorted(corpus.at)
    everything, people = joined([corpus.at[step] for step in at]), len(corpus.persons)
    with counted(steps, "encoder, kept LoRAs", "steps") as bar:
        bar.update(course.done)
        while course.done < steps:
            chance = stream(rules.seed, "encoder rows", course.done)
            rows = torch.randint(everything.count, (rules.together,), generator=chance)
            done = torch.tensor(at)[rows // people]
            latents = corpus.persons.latents[rows % people]
            course.learn(everything.rows(rows), done, latents, "kept", course.done)
            course.done += 1
            bar.update()
            if course.done % KEPT_EVERY == 0 or course.done == steps:
                course.save(file)
    return course


@torch.no_grad()
def codes_of(encoder: NetworkEncoder, factors: Factors, steps: int) -> Tensor:
    """[K, T, D] the mean embedding of every LoRA: what the attack samples with.

    Args:
        steps: that the victims' recipe has; the release gives the largest number.
    """
    device = next(encoder.parameters()).device
    matrices = matrices_of(factors.changed(lambda value: value.to(device)), encoder.shapes)
    return encoder.eval()(matrices, torch.full((factors.count,), steps, device=device)).mean
