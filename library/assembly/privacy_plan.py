"""What a differentially private run promises, settled before its first step; None of it for the other trainers."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from library.assembly.privacy_units import PrivacyUnits, privacy_units
from library.data.training_set import TrainingSet
from library.errors import InputError
from library.privacy.dp.accounting import (
    Accountant,
    Spending,
    calibrated_noise,
    default_delta,
    epsilon_rdp,
    require_delta,
)
from library.seeding import StreamKey
from library.training.training_plan import TrainingPlan

# Options that name what a run's fingerprints recognise wherever it lies
FINGERPRINTED = ("train_data_dir", "nonmember_data_dir", "in_json", "dataset_config", "group_by", "split_file",
                 "pretrained_model_name_or_path", "vae")  # fmt: skip


@dataclass(frozen=True)
class PrivacyRules:
    """How much a run may spend, and how; the fields are options."""

    dp_target_epsilon: float | None
    dp_noise_multiplier: float | None
    dp_delta: float | None
    dp_max_grad_norm: float
    dp_batch_size: int  # units of a step on average
    dp_draws: int  # (timestep, noise) pairs of a picture in a step
    train_batch_size: int  # pictures of a pass


@dataclass(frozen=True)
class PrivacyPlan:
    """The mechanism of a run and its accountant."""

    rules: PrivacyRules
    units: PrivacyUnits
    accountant: Accountant

    def spending(self) -> Spending:
        """One step."""
        return self.accountant.spending

    def noise_deviation(self) -> float:
        """Standard deviation of the noise on each number of the summed gradient."""
        return self.spending().noise_multiplier * self.rules.dp_max_grad_norm

    def images_per_step(self) -> float:
        """UNet passes over one image in a step, on average."""
        return self.rules.dp_batch_size * self.units.mean_size() * self.rules.dp_draws

    def key(self, key: StreamKey, options: Mapping[str, Any], inputs: Mapping[str, str], start: str) -> StreamKey:
        """The key of sampling and noise: of the split's secret and of all that makes this run another than its next.

        The same noise under two runs that differ in a picture, or in an option, would cancel out of their difference.

        Args:
            inputs: fingerprints of pictures, captions and model, in place of the folders where they lie.
            start: fingerprint of the network before its first step.
        """
        rest = {name: value for name, value in options.items() if name not in FINGERPRINTED}
        told = json.dumps(
            [rest, inputs, start, self.spending().facts(), [list(unit) for unit in self.units.indices]], sort_keys=True
        )
        return StreamKey(key.derived("differential privacy", hashlib.sha256(told.encode()).hexdigest()), key.seed)

    def summary(self, plan: TrainingPlan, done: int, numbers: int) -> str:
        """What a step is, and what the run will have spent at its end.

        Args:
            numbers: trained.
        """
        rules, spending, count, total = self.rules, self.spending(), len(self.units.indices), plan.total_steps
        noise = self.noise_deviation() * math.sqrt(numbers) / rules.dp_batch_size
        lines = [
            f"plan: {total} optimizer steps of {rules.dp_batch_size} units on average, each of {count} by a coin of "
            f"its own (rate {spending.sampling_rate:.3g}); an epoch is {plan.steps_per_epoch} steps; "
            f"{self.units.mean_size():.3g} pictures a unit x {rules.dp_draws} draws, {rules.train_batch_size} pictures "
            "a pass",
            f"privacy: {self.stated(total)}, unit: one {self.units.kind} added or removed; noise multiplier "
            f"{spending.noise_multiplier:.4g}, clipping norm {rules.dp_max_grad_norm:g} "
            f"(accountant by Renyi DP: epsilon {epsilon_rdp(spending, total):.4g})",
            f"noise on the mean gradient of a step: norm {noise:.3g} over {numbers} trained numbers, where the part of "
            f"all units together is at most {rules.dp_max_grad_norm:g}",
        ]
        if done:
            lines.append(f"spent so far: {self.stated(done)}")
        return "\n".join(lines)

    def stated(self, done: int) -> str:
        """Epsilon and delta after ``done`` steps, in words."""
        return f"epsilon {rounded_up(self.accountant.epsilon(done), 3)} at delta {self.spending().delta:g}"

    def metadata(self, done: int) -> dict[str, str]:
        """What a LoRA file states, each number so that it promises no more than holds, and to one digit.

        Exact figures would give the sampling rate, and with the size of a step the number of members. A target is a
        number that the person chose: it is stated as it is.
        """
        target, epsilon = self.rules.dp_target_epsilon, self.accountant.epsilon(done)
        told = target if target is not None and epsilon <= target else rounded_up(epsilon, 1)
        chosen, noise = self.rules.dp_noise_multiplier, self.spending().noise_multiplier
        return {
            "dp_epsilon": f"{told:g}" if isinstance(told, float) else told,
            "dp_delta": f"{self.spending().delta:g}",
            "dp_unit": self.units.kind,
            "dp_noise_multiplier": f"{noise:g}" if chosen is not None else rounded_down(noise),
            "dp_max_grad_norm": f"{self.rules.dp_max_grad_norm:g}",
        }

    def verdict(self, done: int) -> str:
        """What the end of a run says."""
        spending = self.spending()
        return (
            f"differentially private: {self.stated(done)} after {done} steps (privacy loss distribution; by Renyi DP "
            f"{epsilon_rdp(spending, done):.3g}), for one {self.units.kind} added or removed.\n"
            "  This holds for the LoRA files and the previews, and not for the figures of log.jsonl and of the terminal"
        )


def rounded_up(value: float, digits: int) -> str:
    """A number with so many digits, never below it."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return f"{math.ceil(value / step - 1e-9) * step:.{digits}g}"


def rounded_down(value: float) -> str:
    """A number with one digit, never above it."""
    if value == 0:
        return "0"
    step = 10.0 ** math.floor(math.log10(value))
    return f"{math.floor(value / step + 1e-9) * step:.1g}"


def units_of(training_set: TrainingSet, rules: PrivacyRules) -> PrivacyUnits:
    """The units of privacy. Raises: InputError where steps, passes or delta do not fit them."""
    units = privacy_units(training_set)
    units.require_rate(rules.dp_batch_size)
    units.require_passes(rules.train_batch_size)
    if rules.dp_delta is not None:
        require_delta(rules.dp_delta, len(units.indices))
    return units


def steps_of_an_epoch(units: PrivacyUnits, batch_size: int) -> int:
    """Steps in which each unit is used once on average; at least one."""
    return max(1, round(len(units.indices) / batch_size))


def plan_privacy(rules: PrivacyRules, units: PrivacyUnits, plan: TrainingPlan) -> PrivacyPlan:
    """The noise that a target asks for, or the one that was given. Raises: InputError for a target out of reach."""
    count, rate = len(units.indices), units.require_rate(rules.dp_batch_size)
    delta = default_delta(count) if rules.dp_delta is None else rules.dp_delta
    noise = rules.dp_noise_multiplier
    if noise is None:
        assert rules.dp_target_epsilon is not None
        noise = calibrated_noise(rules.dp_target_epsilon, rate, delta, plan.total_steps)
    return PrivacyPlan(rules, units, Accountant(Spending(noise, rate, delta), plan.total_steps))


def require_spending(place: str | None, resumed: Mapping[str, Any], plan: PrivacyPlan) -> None:
    """Raises: InputError where the state that is resumed was trained with another mechanism."""
    if place is None:
        return
    saved, now = resumed.get("spending"), plan.spending().facts()
    if saved is None:
        raise InputError(f"--resume '{place}' states no privacy spending, so it cannot be accounted; train anew")
    for name, value in now.items():
        if saved.get(name) != value:
            raise InputError(
                f"--resume '{place}': {name} was {saved.get(name)!r} and would be {value!r} now, and the accounting "
                "holds for one mechanism; resume with the run's own config.toml (a target epsilon belongs to its "
                "number of steps: to train longer, give dp_noise_multiplier)"
            )
