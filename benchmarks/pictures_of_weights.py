"""What pictures come out of LoRA files of single persons: the encoder of arXiv 2409.08482, guided sampling, controls.

python -m benchmarks.pictures_of_weights WORK --public DIR --held_out DIR --out DIR [--persons 60 ...]

WORK, --public and --held_out are those of benchmarks/leak_of_weights.py, whose victims are painted here, and whose
others serve as "LoRA of other persons". Stages, kept in --out and resumed: ``capacity`` (what a prompt embedding can
say on the base at best), ``encoder``, ``paint``, ``score`` (pictures.json), ``sheet``. What a stage would have made and
was never asked for is left out of the tables.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.leak_experiment import CLASS_PROMPT, ROOT, opened
from benchmarks.leak_experiment import parsed as parsed_for_leaks
from library.audit.images import perceptual
from library.audit.reconstruction.encoder.base_capacity import inverted_embeddings
from library.audit.reconstruction.encoder.encoder_training import (
    EncoderRecipe,
    codes_of,
    train_encoder,
    train_on_kept,
)
from library.audit.reconstruction.encoder.matrix_encoder import matrix_shapes
from library.audit.reconstruction.encoder.network_encoder import NetworkEncoder, demo_size
from library.audit.reconstruction.kernel import fit_kernel
from library.audit.reconstruction.persons import PersonSet
from library.audit.reconstruction.pictures.attribution import BASE, HELD_OUT, PRIVATE, Likeness
from library.audit.reconstruction.pictures.identity_scores import fit_space
from library.audit.reconstruction.pictures.picture_rows import (
    CODE,
    EDIT,
    WEIGHTS,
    PictureSettings,
    Sitters,
    Studio,
    guided_name,
    paint_rows,
)
from library.audit.reconstruction.pictures.picture_table import (
    CEILING,
    Sets,
    View,
    decoded_features,
    figures_of,
    flat_latents,
    likenesses,
    table,
)
from library.audit.reconstruction.pictures.samplers import EDIT_FROM, Course
from library.audit.reconstruction.retrieval import public_space
from library.audit.reconstruction.shadow_corpus import untrained
from library.diffusion.vae import decoder_of
from library.seeding import permutation
from library.tensor_files import private_folder, read_tensors, state_fingerprint, write_tensors, write_whole

ENCODER = "encoder.safetensors"
TAUGHT_FURTHER = "encoder-kept.safetensors"
LIMIT = 6.0  # of the demo's latents: the largest public one
ORACLE = "embedding fitted to the person (oracle)"
WORDS = "true words of hair and skin (oracle)"  # what the base's own text can say of a person
STAGES = ("capacity", "encoder", "paint", "score", "sheet")
SHOWN = 5  # victims on the sheet, drawn by chance
ATTACKS = (CODE, *(guided_name(weight) for weight in WEIGHTS), EDIT)


def parsed(arguments: list[str]) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Own arguments, and those of the experiment on leaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    parser.add_argument("--persons", type=int, default=60, help="public persons whose LoRAs teach the encoder")
    parser.add_argument("--encoder_together", type=int, default=10)
    parser.add_argument("--kept_steps", type=int, default=0, help="further encoder steps, on the shadows' kept moments")
    parser.add_argument("--encoder_learning_rate", type=float, default=2e-3)
    parser.add_argument("--kl_weight", type=float, default=0.0)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--sampler_steps", type=int, default=12)
    parser.add_argument("--capacity_persons", type=int, default=24)
    parser.add_argument("--capacity_steps", type=int, default=110)
    parser.add_argument("--edit", action="store_true", help="also from the kernel's guess; needs the shadows of WORK")
    parser.add_argument("--bf16", action="store_true", help="train the encoder and its LoRAs in bf16 autocast")
    own, rest = parser.parse_known_args(arguments)
    return own, parsed_for_leaks(__doc__, rest)


class Pictures:
    """The experiment's parts and where they lie."""

    def __init__(self, own: argparse.Namespace, given: argparse.Namespace) -> None:
        self.own, self.run = own, opened(given)
        self.out = private_folder(own.out)
        stack = self.run.base.stack
        course = Course(stack.alphas_cumprod, own.sampler_steps, 980, LIMIT)
        edit = course.started_at(EDIT_FROM, max(2, own.sampler_steps // 2))
        settings = PictureSettings(course, edit, own.samples, together=10, seed=1)
        self.studio = Studio(stack, settings, tuple(self.run.victims.latents.shape[2:]))
        self.class_prompt = self.run.base.encode_text([CLASS_PROMPT])[0]  # [T, D]
        self.with_encoder = "encoder" in own.stages or (self.out / ENCODER).is_file()
        self.with_capacity = "capacity" in own.stages or (self.out / "fitted.safetensors").is_file()
        self.victims = list(range(len(self.run.victims)))

    def kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A tensor of ``out``, made where it is not there."""
        file = self.out / f"{name}.safetensors"
        if not file.is_file():
            write_tensors(file, {name: make()}, {})
        return read_tensors(file)[0][name]

    def encoder(self) -> NetworkEncoder:
        """Untrained, of the demo's size."""
        shapes = matrix_shapes(untrained(self.run.base.stack, self.run.victims.some([0]), self.run.recipe))
        torch.manual_seed(0)  # the start of the weights alone
        return NetworkEncoder(shapes, demo_size(self.class_prompt.shape[1]))


def fitted(parts: Pictures) -> Tensor:
    """[P, T, D] embeddings of the first victims: the oracle of what z can say."""
    run = parts.run

    def make() -> Tensor:
        return inverted_embeddings(
            parts.studio.predictor(None), run.victims.latents[: parts.own.capacity_persons], parts.class_prompt[:8],
            run.base.stack.alphas_cumprod, steps=parts.own.capacity_steps, learning_rate=0.006, seed=1,
        )  # fmt: skip

    return parts.kept("fitted", make)


def worded(parts: Pictures) -> Tensor:
    """[P, T, D] text states of the class prompt with the words that the demo's captions have for hair and skin."""
    prompts = []
    for name in parts.run.victims.names[: parts.own.capacity_persons]:
        caption = (ROOT / "demo" / "images" / "1_folk" / f"{name}_0.txt").read_text(encoding="utf-8").strip()
        prompts.append(", ".join([CLASS_PROMPT, *caption.split(", ")[1:3]]))
    return parts.run.base.encode_text(prompts)


def trained(parts: Pictures) -> tuple[NetworkEncoder, list[float]]:
    """The encoder after Algorithm 2 on public persons and, if asked, on shadows that are there; its losses."""
    own, run = parts.own, parts.run
    rules = EncoderRecipe(own.encoder_learning_rate, 5e-4, own.kl_weight, own.encoder_together, passes=1, seed=2)
    people = run.shadows.some(range(own.persons))
    with torch.autocast("cpu", torch.bfloat16, enabled=own.bf16):
        course = train_encoder(
            parts.encoder(), run.base.stack, run.base.encode_text, people, run.recipe, rules,
            parts.out / ENCODER,
        )  # fmt: skip
        if not own.kept_steps:
            return course.encoder, course.losses
        shadows = run.corpus(run.shadows, "shadows: LoRAs")
        further = train_on_kept(
            course.encoder, run.base.stack, shadows, rules, own.kept_steps, parts.out / TAUGHT_FURTHER
        )
    return further.encoder, course.losses + further.losses


def sitters_of(parts: Pictures) -> Sitters:
    """The victims' LoRAs with everything that pictures are painted from."""
    run = parts.run
    factors = run.corpus(run.victims, "victims: LoRAs").last
    strangers = run.corpus(run.others, "others: LoRAs").last
    codes, other_codes = None, None
    if parts.with_encoder:
        encoder, _ = trained(parts)
        codes, other_codes = (codes_of(encoder, some, run.recipe.steps) for some in (factors, strangers))
    return Sitters(
        factors=factors,
        class_prompt=parts.class_prompt,
        true_prompts=run.contexts(run.victims),
        codes=codes,
        others=strangers,
        other_codes=other_codes,
        guesses=guesses_of(parts) if parts.own.edit else None,
    )


def guesses_of(parts: Pictures) -> Tensor:
    """[V, C, h, w] mean latents that the kernel predicts from the weights, fitted on shadows alone."""
    run = parts.run
    shadows = run.corpus(run.shadows, "shadows: LoRAs").last
    space = public_space(run.shadows.latents.flatten(0, 1))
    ridge = fit_kernel(shadows, space.coefficients(run.shadows.means()))
    victims = run.corpus(run.victims, "victims: LoRAs").last
    flat = ridge.predict(victims) @ space.basis.T + space.mean
    return flat.unflatten(1, run.victims.latents.shape[2:])


def views_of(parts: Pictures) -> dict[str, View]:
    """The VAE's space plain and whitened, and the perceptual encoder's where it is installed."""
    run = parts.run
    public = run.shadows
    latents = public.latents.flatten(0, 1)
    names = [name for name in public.names for _ in range(public.latents.shape[1])]
    views = {
        name: View(fit_space(name, latents.flatten(1), names, whitened=whitened), flat_latents)
        for name, whitened in (("VAE, PCA-32", False), ("VAE, PCA-32, whitened", True))
    }
    if perceptual.is_installed():
        _, features = perceptual.open_perceptual(torch.device("cpu"))
        seen = decoded_features(decoder_of(run.base.model.vae), features)
        count = min(len(latents), 400)
        known = parts.kept("public_features", lambda: seen(latents[:count]))
        name = f"{perceptual.NAME}, PCA-32, whitened"
        views[name] = View(fit_space(name, known, names[:count], whitened=True), remembered(parts, seen))
    return views


def remembered(parts: Pictures, seen: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Features that are kept by what the latents are."""

    def features(latents: Tensor) -> Tensor:
        return parts.kept(f"features-{state_fingerprint({'': latents})[:24]}", lambda: seen(latents))

    return features


def sets_of(persons: PersonSet, chosen: list[int]) -> Sets:
    """Some persons' pictures as candidate sets."""
    latents = persons.latents[chosen]
    return Sets(latents.flatten(0, 1), torch.arange(len(chosen)).repeat_interleave(latents.shape[1]))


def sides_of(parts: Pictures) -> dict[str, Sets]:
    """The private pictures, and held-out ones of the same persons."""
    return {
        PRIVATE: sets_of(parts.run.victims, parts.victims),
        HELD_OUT: sets_of(parts.run.held_out, parts.victims),
    }


def ceilings(parts: Pictures) -> dict[str, Tensor]:
    """Real pictures in place of outputs: what the space itself can tell of a person, by the side they stand for."""
    count = parts.own.samples
    return {
        PRIVATE: parts.run.held_out.latents[parts.victims, :count],
        HELD_OUT: parts.run.victims.latents[parts.victims, :count],
    }


def scored(parts: Pictures, outputs: dict[str, Tensor]) -> list[dict[str, object]]:
    """The table of every view."""
    lines: list[dict[str, object]] = []
    real = ceilings(parts)
    for name, view in views_of(parts).items():
        by_side: dict[str, dict[str, Likeness]] = {}
        for side, sets in sides_of(parts).items():
            by_side[side] = likenesses(outputs | {CEILING: real[side]}, view, sets, parts.victims, 1)
        lines += table(by_side, name)
        print(f"scored: {name}", flush=True)
    return lines


def capacity_lines(parts: Pictures, base: Tensor) -> list[dict[str, object]]:
    """Embeddings fitted to persons, on the base, against chance: the fair trial's condition."""
    some = list(range(parts.own.capacity_persons))
    outputs = {
        ORACLE: parts.kept("fitted_pictures", lambda: parts.studio.paint(None, fitted(parts))),
        WORDS: parts.kept("worded_pictures", lambda: parts.studio.paint(None, worded(parts))),
        BASE: base[some],
    }
    real = ceilings(parts)
    lines: list[dict[str, object]] = []
    for name, view in views_of(parts).items():
        for side, sets in sides_of(parts).items():
            found = likenesses(outputs | {CEILING: real[side][some]}, view, sets, some, 1)
            lines += [{"row": row, "space": name, "side": side} | figures_of(one) for row, one in found.items()]
    return lines


def write_sheet(parts: Pictures, outputs: dict[str, Tensor]) -> None:
    """sheet.safetensors: a blind draw of victims, what was private, what attacks made, what the controls made."""
    chosen = permutation(len(parts.victims), 1, "sheet")[:SHOWN]
    decode = decoder_of(parts.run.base.model.vae)

    def shown(latents: Tensor) -> Tensor:
        pixels = decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        return (pixels * 255).round().to(torch.uint8)

    private, held_out = (one.latents[chosen, : parts.own.samples] for one in (parts.run.victims, parts.run.held_out))
    attacks = [name for name in ATTACKS if name in outputs]
    rows = {"private pictures": private} | {name: outputs[name][chosen] for name in attacks}
    controls = {name: made[chosen] for name, made in outputs.items() if name not in ATTACKS}
    controls["held-out pictures of the person"] = held_out
    parted = ["#what was private", "private pictures", "#attacks: made of the weights alone", *attacks, "#controls"]
    names = [*parted, *controls]
    pictures = {name: shown(latents) for name, latents in (rows | controls).items()}
    tensors = {name: pictures.get(name, torch.zeros(1, dtype=torch.uint8)) for name in names}
    title = f"{SHOWN} of {len(parts.victims)} victims, drawn by chance; all rows start from the same noise"
    write_tensors(parts.out / "sheet.safetensors", tensors, {"rows": "\n".join(names), "title": title})


def main(arguments: list[str]) -> None:
    """The stages that were asked for, in their order."""
    own, given = parsed(arguments)
    torch.set_num_threads(1)
    parts = Pictures(own, given)
    if "capacity" in own.stages:
        fitted(parts)
    if "encoder" in own.stages:
        trained(parts)
    if not {"paint", "score", "sheet"} & set(own.stages):
        return
    outputs = paint_rows(parts.studio, sitters_of(parts), parts.out / "pictures")
    if "sheet" in own.stages:
        write_sheet(parts, outputs)
    if "score" in own.stages:
        losses = trained(parts)[1] if parts.with_encoder else []
        result = {
            "arguments": {name: str(value) for name, value in vars(own).items() if name != "out"},
            "victims": len(parts.victims), "encoder_steps": len(losses),
            "encoder_losses": [float(part.mean()) for part in torch.tensor(losses).split(30) if len(part)],
            "capacity": capacity_lines(parts, outputs[BASE]) if parts.with_capacity else [],
            "table": scored(parts, outputs),
        }  # fmt: skip
        write_whole(parts.out / "pictures.json", json.dumps(result, indent=1, default=float) + "\n")
        print(f"written: {parts.out / 'pictures.json'}")


if __name__ == "__main__":
    main(sys.argv[1:])
