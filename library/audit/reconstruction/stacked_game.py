"""The game of PLoRA and SPLoRA for K LoRAs at once: each plays with a proxy attacker of its own (arXiv 2402.11989).

The members are a LoRA's own pictures. The non-members are public pictures of other persons of the same law, shown under
the LoRA's own caption, so that the proxy must tell pictures apart and not captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from library.audit.reconstruction.stacked_lora import Factors, StackedModel
from library.audit.reconstruction.stacked_training import Batch, mean_losses, squared_errors
from library.errors import InputError
from library.privacy.attackers.build import AttackerRules, build_attacker, frozen
from library.privacy.attackers.calibrated import calibrated_evidence, log_errors
from library.privacy.attackers.losses import attacker_losses, member_cross_entropy, membership_margin
from library.privacy.objectives import ratio_objective, sum_objective
from library.seeding import stream, stream_seed

PLORA, SPLORA = "PLoRA", "SPLoRA"


@dataclass(frozen=True)
class GameRecipe:
    """What every LoRA minimises, and how its proxy learns."""

    objective: str  # PLORA: L - alpha * CE; SPLORA: L / (beta + alpha * CE)
    alpha: float
    beta: float  # of SPLORA
    gain_limit: float | None  # nats of one picture's CE
    turns: int  # steps of the proxy before every step of its LoRA
    batch: int  # pictures of each side in a turn
    attacker: AttackerRules

    def __post_init__(self) -> None:
        """Raises: InputError for an objective that is none, or a proxy with dropout."""
        if self.objective not in (PLORA, SPLORA):
            raise InputError(f"objective must be '{PLORA}' or '{SPLORA}', got '{self.objective}'")
        if self.attacker.attack_dropout:
            raise InputError(
                f"attack_dropout must be 0 in a stacked game, got {self.attacker.attack_dropout:g}: its draws would "
                "make a LoRA depend on those beside it"
            )


@dataclass(frozen=True)
class StackedGame:
    """K games; LoRA k and its proxy are the same whoever plays beside them."""

    model: StackedModel
    recipe: GameRecipe
    members: Tensor  # [K, n, 4, h, w] each LoRA's own pictures
    non_members: Tensor  # [M, 4, h, w] public, the same for all
    contexts: Tensor  # [K, T, D]
    keys: Sequence[str]  # [K]
    seed: int
    players: Sequence[tuple[nn.Module, torch.optim.Adam]]  # [K] proxies and what trains them
    accuracies: list[float] = field(default_factory=list)  # of each turn, before its step: mean over LoRAs

    def objective(self, step: int, factors: Factors, batch: Batch) -> Tensor:
        """[K] what each LoRA minimises on its batch, after its proxy's turns of this step.

        Args:
            factors: with gradient; the proxies' own steps do not reach them.
        """
        for turn in range(self.recipe.turns):
            self._attacker_turn(factors, step, turn)
        errors = squared_errors(self.model, factors, batch, self.contexts)
        adaptations = mean_losses(errors, factors.count)
        seen = self._seen(errors, batch).chunk(factors.count)
        losses = []
        for adaptation, own, (proxy, _) in zip(adaptations, seen, self.players, strict=True):
            with frozen(proxy, "eval") as adversary:
                attack_loss = member_cross_entropy(adversary, own, self.recipe.gain_limit)
            losses.append(self._objective_of(adaptation, attack_loss))
        return torch.stack(losses)

    def _objective_of(self, adaptation: Tensor, attack_loss: Tensor) -> Tensor:
        """[] of one LoRA."""
        if self.recipe.objective == PLORA:
            return sum_objective(adaptation, attack_loss, self.recipe.alpha)
        return ratio_objective(adaptation, attack_loss, self.recipe.alpha, self.recipe.beta)

    def _attacker_turn(self, factors: Factors, step: int, turn: int) -> None:
        """One Adam step of every proxy."""
        batch = self.attack_batch(step, turn)
        with torch.no_grad():
            seen = self._seen(squared_errors(self.model, factors, batch, self.contexts), batch)
        is_member = torch.arange(2 * self.recipe.batch) < self.recipe.batch
        right: list[float] = []
        for own, (proxy, optimizer) in zip(seen.chunk(len(self.players)), self.players, strict=True):
            margins = membership_margin(proxy, own).cpu()
            right.append(float(((margins > 0) == is_member).float().mean()))
            of_members, of_others = attacker_losses(proxy, [own], [is_member])
            optimizer.zero_grad(set_to_none=True)
            ((of_members + of_others) / 2).backward()
            optimizer.step()
        self.accuracies.append(sum(right) / len(right))

    def told_apart(self) -> float:
        """Balanced accuracy of the proxies in the later half of their turns, under noise that they had not seen."""
        later = self.accuracies[len(self.accuracies) // 2 :]
        return sum(later) / len(later)

    def attack_batch(self, step: int, turn: int) -> Batch:
        """LoRA by LoRA ``batch`` of its own pictures, then as many non-members, under noise of a stream of its own."""
        rows, noises, times = [], [], []
        for own, key in zip(self.members, self.keys, strict=True):
            chance = stream(self.seed, "shadow attack", key, step, turn)
            for side in (own, self.non_members):
                rows.append(side[torch.randperm(len(side), generator=chance)[: self.recipe.batch]])
            noises.append(torch.randn(2 * self.recipe.batch, *own.shape[1:], generator=chance))
            steps = len(self.model.alphas_cumprod)
            times.append(torch.randint(0, steps, (2 * self.recipe.batch,), generator=chance))
        owner = torch.arange(len(self.keys)).repeat_interleave(2 * self.recipe.batch)
        return Batch(owner, torch.cat(rows), torch.cat(noises), torch.cat(times))

    def _seen(self, errors: Tensor, batch: Batch) -> Tensor:
        """What proxies see of a batch, with the gradient of ``errors`` [M, 4, h, w]: these, or [M, 1, F] evidence."""
        if self.recipe.attacker.proxy_input == "error_map":
            return errors
        with torch.no_grad():
            off = log_errors(squared_errors(self.model, None, batch, self.contexts))
        return calibrated_evidence(log_errors(errors), off, batch.timesteps, len(self.model.alphas_cumprod))[:, None]


def open_game(  # noqa: PLR0913  all that a game is
    model: StackedModel,
    recipe: GameRecipe,
    members: Tensor,
    non_members: Tensor,
    contexts: Tensor,
    keys: Sequence[str],
    seed: int,
) -> StackedGame:
    """A game with untrained proxies; the first weights of proxy k depend on its name and the seed alone.

    Raises:
        InputError: a side with fewer pictures than a turn takes.
    """
    fewest = min(members.shape[1], len(non_members))
    if recipe.batch > fewest:
        raise InputError(f"a turn of the proxy takes {recipe.batch} pictures of each side, and one side has {fewest}")
    players = []
    for key in keys:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "shadow proxy", key))
            players.append(build_attacker(tuple(members.shape[2:]), recipe.attacker, pooled=False, device=model.device))
    return StackedGame(model, recipe, members, non_members, contexts, keys, seed, players)
