"""Pictures painted with one LoRA under audit, without a corpus: the class prompt, and along the fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.reconstruction.one_lora import (
    AUC,
    FEW,
    RANK,
    SHUFFLED,
    OneRow,
    TestPictures,
    decoy_sets,
    judged,
    shuffled,
)
from library.audit.reconstruction.pictures.attribution import BASE as BASE_ROW
from library.audit.reconstruction.pictures.attribution import CLASS
from library.audit.reconstruction.pictures.picture_rows import WEIGHTS, PictureSettings, Studio, guided_name
from library.audit.reconstruction.retrieval import CEILING, NOTHING, OTHERS, direction_scores
from library.audit.reconstruction.stacked_lora import Factors, StackedModel
from library.audit.reconstruction.weight_attacks import BASE, PublicKnowledge
from library.audit.reconstruction.weight_attacks import WEIGHTS as FILE


@dataclass(frozen=True)
class Painted:
    """Rows for the table, and the pictures behind those of the LoRA itself and of the base."""

    rows: list[OneRow]
    outputs: Mapping[str, Tensor]  # [S, C, h, w] latents by name of the row


def painted_rows(
    model: StackedModel,
    target: Factors,
    known: PublicKnowledge,
    pictures: TestPictures,
    settings: PictureSettings,
    seed: int,
) -> Painted:
    """What the class prompt and guided sampling show of the private pictures (W1, W3), each beside its controls.

    A picture's score is its cosine with the nearest output, in the public space; of a set the mean over its pictures.
    Guided rows must also beat the class prompt, which needs no attack.

    Args:
        target: one LoRA, K = 1.
    """
    channels, height, width = pictures.latents.shape[1:]
    studio = Studio(model, settings, (channels, height, width))
    prompt = known.probes.context[None]
    sets = decoy_sets(pictures, seed) if len(pictures.rows(True)) <= FEW else None
    coefficients = known.space.coefficients(pictures.latents.flatten(1)) - known.centre  # [n, C]
    weights: dict[str, Factors | None] = {"": target, NOTHING: None, SHUFFLED: shuffled(target, seed)}
    if known.shadows is not None:
        weights[OTHERS] = known.shadows.rows([0])

    def figure(directions: Tensor) -> tuple[float, float, float, float]:
        nearest = direction_scores(directions, coefficients).amax(0)  # [n]
        scores = nearest if sets is None else torch.stack([nearest[rows].mean() for rows in sets])
        return judged(scores, pictures, sets, seed)

    def found(outputs: Tensor) -> tuple[float, float, float, float]:
        return figure(known.space.coefficients(outputs.flatten(1)) - known.centre)

    ceiling = figure(coefficients[pictures.rows(True)].mean(0, keepdim=True))[0]
    plain = studio.paint(None, prompt)[0]
    kept, rows = {BASE_ROW: plain}, []
    extra: dict[str, float] = {}
    for weight in (None, *WEIGHTS):
        name = CLASS if weight is None else guided_name(weight)
        made = {
            label: plain if factors is None else studio.paint(factors, prompt, weight)[0]
            for label, factors in weights.items()
        }
        value, low, high, p = found(made[""])
        controls = {label: found(made[label])[0] for label in weights if label} | extra | {CEILING: ceiling}
        members = len(pictures.rows(True))
        kind, others = (AUC, len(pictures.rows(False))) if sets is None else (RANK, len(sets))
        title = f"pictures: {name}"
        rows.append(
            OneRow(f"painted {name}", title, (FILE, BASE), 0, kind, value, low, high, p, members, others, controls)
        )
        kept[name] = made[""]
        extra = extra or {CLASS: value}
    return Painted(rows, kept)
