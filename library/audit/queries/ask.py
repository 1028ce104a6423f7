"""Asks the model every question of a plan once per picture and state, and keeps statistics."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch
from torch import Tensor

from library.audit.queries.answer_cache import AnswerCache, pooled_map
from library.audit.queries.audited_model import AuditedModel, moved_along, noised
from library.audit.queries.error_statistics import difference_statistics, noise_for, residual_statistics
from library.audit.queries.query_plan import QueryPlan
from library.audit.targets.candidate_table import Picture
from library.diffusion.conditioning import Conditioning, joined
from networks.per_sample_gradients import GradientReader


def clipped_caption(caption: str, share: float) -> str:
    """The first words of a caption, at least one."""
    words = caption.split()
    return " ".join(words[: max(1, round(share * len(words)))])


def batches(pictures: Sequence[Picture], positions: Sequence[int], size: int) -> Iterator[list[Picture]]:
    """Pictures whose latents share a shape, ``size`` at a time."""
    shapes: dict[tuple[int, ...], list[Picture]] = {}
    for position in positions:
        shapes.setdefault(tuple(pictures[position].latent.shape), []).append(pictures[position])
    for same in shapes.values():
        yield from (same[start : start + size] for start in range(0, len(same), size))


def fill_cache(
    store: AnswerCache,
    pictures: Sequence[Picture],
    ask: Callable[[list[Picture]], dict[str, Tensor]],
    batch_size: int,
    progress: Callable[[int], object],
    workers: int = 1,
) -> None:
    """Ask about the pictures that the store does not know yet, one shard per batch.

    Args:
        workers: threads that ask at the same time. On a CPU, one per core with one torch thread each keeps its pace
            on a busy machine, where torch's own threads fall to a tenth of it; on a GPU, 1.

    Raises:
        FloatingPointError: when the model answers with NaN or infinity.
    """
    missing = store.missing([picture.key for picture in pictures])
    progress(len(pictures) - len(missing))
    pool = ThreadPoolExecutor(workers)
    asked = {pool.submit(ask, batch): batch for batch in batches(pictures, missing, batch_size)}
    try:
        for answer in as_completed(asked):
            for name, values in answer.result().items():
                if not torch.isfinite(values).all():
                    raise FloatingPointError(f"the model answers with NaN or infinity ({name})")
            store.add([picture.key for picture in asked[answer]], answer.result())
            progress(len(asked.pop(answer)))
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)  # a batch may take minutes, and its answers are not missed
        raise
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def conditions_of(audited: AuditedModel, batch: Sequence[Picture], captions: Sequence[str]) -> Conditioning:
    """Captions for a batch, each with the framing of its picture."""
    return audited.encode_text(captions).framed(torch.stack([picture.framing for picture in batch]))


class Asker:
    """Asks an audited model the questions of one plan about one batch of pictures."""

    def __init__(self, audited: AuditedModel, plan: QueryPlan, map_side: int) -> None:
        self.audited, self.plan, self.map_side = audited, plan, map_side

    def predict(self, latents: Tensor, timestep: int, states: Conditioning) -> Tensor:
        """[B, 4, h, w] fp32 noise prediction at one timestep."""
        timesteps = torch.full((len(latents),), timestep, dtype=torch.int64, device=latents.device)
        return self.audited.predict_noise(latents, timesteps, states).float()

    def noise(self, batch: list[Picture], timestep: int, draw: int) -> Tensor:
        """[B, 4, h, w] each picture's own noise."""
        shape = tuple(batch[0].latent.shape)
        drawn = [noise_for(picture.identity, timestep, draw, shape) for picture in batch]
        return torch.stack(drawn).to(self.audited.device)

    def conditions(self, batch: list[Picture], captions: list[str]) -> Conditioning:
        """See ``conditions_of``."""
        return conditions_of(self.audited, batch, captions)

    @torch.no_grad()
    def passes(self, batch: list[Picture]) -> dict[str, Tensor]:
        """All questions that need no gradient, in the model's present state."""
        latents = torch.stack([picture.latent for picture in batch]).float().to(self.audited.device)
        states = self.conditions(batch, [picture.caption for picture in batch])
        empty = self.conditions(batch, [""] * len(batch))
        records = self._noise_grid(batch, latents, states, empty)
        records |= self._chain(latents, states)
        if self.plan.crop_timesteps:
            records["crop"] = self._crops(batch, states)
        if self.plan.clipped_shares:
            records["clipped"] = self._clipped(batch, latents)
        return {name: value.cpu() for name, value in records.items()}

    def _noise_grid(
        self, batch: list[Picture], latents: Tensor, states: Conditioning, empty: Conditioning
    ) -> dict[str, Tensor]:
        """noise [B, T, K, 2, S] for caption and empty caption; pair [B, T, K, 2]; map_loss [B, 4, s, s]."""
        grid, pairs, kept = [], [], {}
        for timestep in self.plan.noise_timesteps:
            for draw in range(self.plan.noise_draws):
                noise = self.noise(batch, timestep, draw)
                asked = noised(latents, noise, self.audited.alpha_bar(timestep))
                both = self.predict(torch.cat([asked, asked]), timestep, joined([states, empty]))
                with_caption, without = both.chunk(2)
                grid += [residual_statistics(with_caption, noise), residual_statistics(without, noise)]
                residuals = (with_caption - noise).flatten(1), (without - noise).flatten(1)
                apart = (with_caption - without).flatten(1).square().mean(1)
                pairs.append(torch.stack([apart, (residuals[0] * residuals[1]).mean(1)], dim=1))
                if timestep == self.plan.map_timestep and draw == 0:
                    kept["map_loss"] = pooled_map((with_caption - noise).square(), self.map_side)
        shape = (len(batch), len(self.plan.noise_timesteps), self.plan.noise_draws)
        return kept | {
            "noise": torch.stack(grid, dim=1).reshape(*shape, 2, -1),
            "pair": torch.stack(pairs, dim=1).reshape(*shape, -1),
        }

    def _chain(self, latents: Tensor, states: Conditioning) -> dict[str, Tensor]:
        """edges [B, N-1, S] of the DDIM inversion; pia, pian, sima [B, J, S]; map_chain [B, 4, s, s]."""
        plan, alpha_bar = self.plan, self.audited.alpha_bar
        here, edges, records = latents, [], {}
        before = first = self.predict(latents, plan.chain_nodes[0], states)
        alpha = 1.0  # node 0 is the clean latent itself
        for start, end in zip(plan.chain_nodes, plan.chain_nodes[1:], strict=False):
            here = moved_along(here, before, alpha, alpha_bar(end))
            after = self.predict(here, end, states)
            edges.append(difference_statistics(after - before))
            if (start, end) == plan.secmi_edge:
                records["map_chain"] = pooled_map((after - before).abs(), self.map_side)
            before, alpha = after, alpha_bar(end)
        jumps = [self._jump(latents, first, timestep, states) for timestep in plan.pia_timesteps]
        unit = (2 / torch.pi) ** 0.5 * first / first.abs().mean((1, 2, 3), keepdim=True)  # unit variance (PIAN)
        records["edges"] = torch.stack(edges, dim=1)
        records["pia"] = torch.stack(jumps, dim=1)
        records["pian"] = self._jump(latents, unit, plan.pian_timestep, states)[:, None]
        sima = [difference_statistics(self.predict(latents, timestep, states)) for timestep in plan.sima_timesteps]
        records["sima"] = torch.stack(sima, dim=1)
        return records

    def _jump(self, latents: Tensor, prediction: Tensor, timestep: int, states: Conditioning) -> Tensor:
        """Statistics of eps0 - eps(z_t built from eps0, t): PIA, arXiv 2305.18355."""
        asked = noised(latents, prediction, self.audited.alpha_bar(timestep))
        return difference_statistics(prediction - self.predict(asked, timestep, states))

    def _crops(self, batch: list[Picture], states: Conditioning) -> Tensor:
        """[B, T, S] loss of the centre crop under the noise of draw 0."""
        crops = [picture.cropped for picture in batch]
        latents = torch.stack([crop for crop in crops if crop is not None]).float().to(self.audited.device)
        states = states.framed(torch.stack([picture.cropped_framing for picture in batch]))
        answers = []
        for timestep in self.plan.crop_timesteps:
            noise = self.noise(batch, timestep, 0)
            asked = noised(latents, noise, self.audited.alpha_bar(timestep))
            answers.append(residual_statistics(self.predict(asked, timestep, states), noise))
        return torch.stack(answers, dim=1)

    def _clipped(self, batch: list[Picture], latents: Tensor) -> Tensor:
        """[B, captions, T, K, S] loss under clipped captions, same noise as the full caption."""
        answers = []
        for share in self.plan.clipped_shares:
            states = self.conditions(batch, [clipped_caption(picture.caption, share) for picture in batch])
            for timestep in self.plan.clipped_timesteps:
                for draw in range(self.plan.clipped_draws):
                    noise = self.noise(batch, timestep, draw)
                    asked = noised(latents, noise, self.audited.alpha_bar(timestep))
                    answers.append(residual_statistics(self.predict(asked, timestep, states), noise))
        shape = (len(batch), len(self.plan.clipped_shares), len(self.plan.clipped_timesteps), self.plan.clipped_draws)
        return torch.stack(answers, dim=1).reshape(*shape, -1)

    def gradients(self, batch: list[Picture]) -> dict[str, Tensor]:
        """gradient_norms [B, T, F]; gradient_of_mean [B, F]."""
        latents = torch.stack([picture.latent for picture in batch]).float().to(self.audited.device)
        norms, total = [], None
        with GradientReader(self.audited.layers) as reader, torch.enable_grad():
            for timestep in self.plan.gradient_timesteps:
                states = self.conditions(batch, [picture.caption for picture in batch])
                noise = self.noise(batch, timestep, 0)
                asked = noised(latents, noise, self.audited.alpha_bar(timestep))
                losses = (self.predict(asked, timestep, states) - noise).square().mean((1, 2, 3))
                taken = reader.taken(losses.sum(), len(batch))
                norms.append(torch.stack([one.flatten(1).norm(dim=1) for one in taken], dim=1))
                total = taken if total is None else [old + new for old, new in zip(total, taken, strict=False)]
        assert total is not None
        mean = [one / len(norms) for one in total]
        records = {
            "gradient_norms": torch.stack(norms, dim=1),
            "gradient_of_mean": torch.stack([one.flatten(1).norm(dim=1) for one in mean], dim=1),
        }
        return {name: value.detach().cpu() for name, value in records.items()}
