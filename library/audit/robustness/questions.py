"""What is asked of each picture: its code attacked once, then each variant of the model attacked on its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.queries.ask import conditions_of
from library.audit.queries.audited_model import AuditedModel
from library.audit.robustness.damage import Redrawing, moved, redrawing_noise
from library.audit.robustness.objectives import (
    FRESH,
    KNOWN,
    CodeDistance,
    DenoisingLoss,
    LossOfPixels,
    LossOfText,
    noises_of,
)
from library.audit.robustness.perturbation import Ascent, Ball, PixelBall, Strongest, TextBall, Values, strongest
from library.audit.targets.candidate_table import Picture
from library.diffusion.conditioning import joined
from library.seeding import stream

VERSION = 1  # raise when the meaning of a stored number changes
DAMAGES = ("by_loss", "by_code", "by_noise")  # columns of "damage"


@dataclass(frozen=True)
class RobustnessRules:
    """How hard is tried, as the options say it."""

    robustness_steps: int
    robustness_restarts: int
    generation_steps: int  # DDIM steps of a whole drawing
    audit_seed: int


@dataclass(frozen=True)
class Questions:
    """The questions of one audit; every number of chance is the picture's own, so that all variants meet the same."""

    audited: AuditedModel
    encode: Callable[[Tensor], Tensor]  # pixels in 0..1 -> scaled codes, with a gradient
    decode: Callable[[Tensor], Tensor]  # scaled codes -> pixels in 0..1
    pixels: Mapping[str, Tensor]  # [3, H, W] in 0..1 by the picture's key
    sizes: Sequence[float]
    rules: RobustnessRules

    def name(self) -> str:
        """For cache keys."""
        return f"robustness {VERSION} {self.sizes} {self.rules}"

    def of_code(self, batch: list[Picture]) -> dict[str, Tensor]:
        """The VAE's code attacked; the UNet and so the LoRA play no part.

        Returns:
            change [B, E, 3, H, W]; code, code_one_step, code_noise [B, E] relative distances.
        """
        clean = self._clean(batch)
        with torch.no_grad():
            target = CodeDistance(self.encode, self.encode(clean))
        rows: dict[str, list[Tensor]] = {"change": [], "code": [], "code_one_step": [], "code_noise": []}
        for size in self.sizes:
            ball = PixelBall(clean, size)
            found = self._strongest(target.ascent, target.values, ball, batch, "code")
            rows["change"].append((found.points - clean).half())
            rows["code"].append(found.values)
            rows["code_one_step"].append(found.one_step)
            rows["code_noise"].append(target.values(self._noise(ball, batch)))
        return {name: torch.stack(parts, dim=1).cpu() for name, parts in rows.items()}

    def of_variant(
        self, batch: list[Picture], by_code: Mapping[str, Tensor], of_base: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """One variant attacked by its own gradients.

        Args:
            by_code: [E, 3, H, W] changes against the VAE's code, by key.
            of_base: changes that were found on the base, by key; None while the base itself is asked.

        Returns:
            clean [B, 2] losses under the known and under fresh noise; of the change of pixels and of the text states
            [B, E] each: loss, loss_fresh, loss_one_step, loss_noise, transfer and text, text_fresh, text_one_step,
            text_noise; damage [B, E, 3] in the order of ``DAMAGES``; change [B, E, 3, H, W] where ``of_base`` is None.
        """
        clean, device = self._clean(batch), self.audited.device
        with torch.no_grad():
            asked, empty = (
                conditions_of(self.audited, batch, captions)
                for captions in ([one.caption for one in batch], [""] * len(batch))
            )
            codes = self.encode(clean)
        known, fresh = (DenoisingLoss(self.audited, noises_of(batch, draw, device)) for draw in (KNOWN, FRESH))
        of_pixels, of_text = LossOfPixels(self.encode, known, asked), LossOfText(known, codes, asked)
        fresh_pixels, fresh_text = LossOfPixels(self.encode, fresh, asked), LossOfText(fresh, codes, asked)
        redraw = Redrawing(
            self.audited,
            self.encode,
            self.decode,
            redrawing_noise(batch, device),
            joined([asked, empty]),
            self.rules.generation_steps,
        )
        unchanged = redraw.of(clean)
        rows: dict[str, list[Tensor]] = {}
        for place, size in enumerate(self.sizes):
            ball, texts = PixelBall(clean, size), TextBall(asked.states, size)
            found = self._strongest(of_pixels.ascent, of_pixels.values, ball, batch, "loss")
            said = self._strongest(of_text.ascent, of_text.values, texts, batch, "text")
            noise, coded = self._noise(ball, batch), self._changed(clean, by_code, batch, place, size)
            drawn = [moved(redraw.of(points), unchanged) for points in (found.points, coded, noise)]
            moved_most = found.points if of_base is None else self._changed(clean, of_base, batch, place, size)
            one = {
                "loss": found.values,
                "loss_fresh": fresh_pixels.values(found.points),
                "loss_one_step": found.one_step,
                "loss_noise": of_pixels.values(noise),
                "text": said.values,
                "text_fresh": fresh_text.values(said.points),
                "text_one_step": said.one_step,
                "text_noise": of_text.values(self._noise(texts, batch)),
                "damage": torch.stack(drawn, dim=1),
                "transfer": found.values if of_base is None else of_pixels.values(moved_most),
            }
            if of_base is None:
                one["change"] = (found.points - clean).half()
            for name, value in one.items():
                rows.setdefault(name, []).append(value)
        answers = {name: torch.stack(parts, dim=1).cpu() for name, parts in rows.items()}
        return answers | {"clean": torch.stack([of_pixels.values(clean), fresh_pixels.values(clean)], dim=1).cpu()}

    def _strongest(
        self, ascent: Ascent, values: Values, ball: Ball, batch: Sequence[Picture], purpose: str
    ) -> Strongest:
        starts = [
            ball.drawn([self._stream(one, purpose, ball.radius, number) for one in batch])
            for number in range(self.rules.robustness_restarts)
        ]
        return strongest(ascent, values, ball, starts, self.rules.robustness_steps)

    def _noise(self, ball: Ball, batch: Sequence[Picture]) -> Tensor:
        """The control: a change of the same size without an aim."""
        return ball.at_the_rim([self._stream(one, "noise", ball.radius, 0) for one in batch])

    def _stream(self, picture: Picture, purpose: str, size: float, number: int) -> torch.Generator:
        return stream(self.rules.audit_seed, "robustness", purpose, picture.identity, f"{size:.9g}", number)

    def _clean(self, batch: Sequence[Picture]) -> Tensor:
        return torch.stack([self.pixels[one.key] for one in batch]).to(self.audited.device)

    def _changed(
        self, clean: Tensor, changes: Mapping[str, Tensor], batch: Sequence[Picture], place: int, size: float
    ) -> Tensor:
        """Pictures with changes that were kept, back in their ball: half precision may have left it."""
        kept = torch.stack([changes[one.key][place] for one in batch]).to(clean)
        return PixelBall(clean, size).projected(clean + kept)
