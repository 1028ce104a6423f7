"""The attacks: one function each, from answers to scores; higher = more likely a member."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from library.audit.attacks.classifiers import best_logistic, boosted_trees, cross_fitted, robust_scaled
from library.audit.attacks.error_map_networks import network_attack
from library.audit.queries.answers import Answers, filtered
from library.audit.queries.error_statistics import FOURTH, SQUARE
from library.audit.targets.candidate_table import AuxView, FloatArray

Scored = tuple[FloatArray, str]  # [n] scores, and what was chosen on the aux sides
FILTER_WEIGHTS = (0.2, 0.0, 0.5)


def best_of(choices: Mapping[str, FloatArray], aux: AuxView) -> Scored:
    """The choice with the best aux AUC in the direction that theory gives; ties go to the first."""
    name = max(choices, key=lambda one: round(aux.auc(choices[one]), 3))
    return choices[name], name


def over_timesteps(profile: FloatArray, timesteps: tuple[int, ...]) -> dict[str, FloatArray]:
    """The mean of [n, T] scores over all timesteps, then each alone."""
    return {"all t": profile.mean(1)} | {f"t={step}": profile[:, place] for place, step in enumerate(timesteps)}


def loss(answers: Answers, aux: AuxView) -> Scored:
    """-L_t(c), Monte-Carlo over the grid (arXiv 2302.03262)."""
    return best_of(over_timesteps(-answers.losses("on"), answers.plan.noise_timesteps), aux)


def calibrated(answers: Answers, far_weight: float, *, caption: bool = True) -> FloatArray:
    """[n, T] (L_off - L_on) / L_off under the same noise."""
    off = answers.losses("off", caption=caption, far_weight=far_weight)
    return (off - answers.losses("on", caption=caption, far_weight=far_weight)) / off


def calibrated_loss(answers: Answers, aux: AuxView) -> Scored:
    """How much the adapter lowered the base's loss on this picture: the base is a free matched reference."""
    return best_of(over_timesteps(calibrated(answers, 1.0), answers.plan.noise_timesteps), aux)


def filtered_loss(answers: Answers, aux: AuxView) -> Scored:
    """The loss with fine frequencies damped (arXiv 2505.20955)."""
    choices: dict[str, FloatArray] = {}
    for weight in FILTER_WEIGHTS:
        profile = -answers.losses("on", far_weight=weight)
        named = over_timesteps(profile, answers.plan.noise_timesteps)
        choices |= {f"{name}, far weight {weight:g}": scores for name, scores in named.items()}
    return best_of(choices, aux)


def filtered_calibrated_loss(answers: Answers, aux: AuxView) -> Scored:
    """The calibrated loss with fine frequencies damped."""
    choices: dict[str, FloatArray] = {}
    for weight in FILTER_WEIGHTS:
        named = over_timesteps(calibrated(answers, weight), answers.plan.noise_timesteps)
        choices |= {f"{name}, far weight {weight:g}": scores for name, scores in named.items()}
    return best_of(choices, aux)


def secmi(answers: Answers, aux: AuxView) -> Scored:
    """-|e2 - e1|^2 of consecutive nodes of the DDIM inversion (arXiv 2302.01316); which edge is chosen on aux."""
    edges = answers.on["edges"].astype(np.float64)
    nodes = answers.plan.chain_nodes
    later = [place for place, node in enumerate(nodes[:-1]) if node > 0]  # edge 0 is PIA
    order = sorted(later, key=lambda place: (nodes[place], nodes[place + 1]) != answers.plan.secmi_edge)
    return best_of({f"t={nodes[place]}": -edges[:, place, SQUARE] for place in order}, aux)


def secmi_filtered(answers: Answers, aux: AuxView) -> Scored:
    """SecMI with fine frequencies damped."""
    edges, nodes = answers.on["edges"].astype(np.float64), answers.plan.chain_nodes
    places = [place for place, node in enumerate(nodes[:-1]) if node > 0]
    return best_of(
        {
            f"t={nodes[place]}, far weight {weight:g}": -filtered(edges[:, place], weight)
            for weight in FILTER_WEIGHTS
            for place in places
        },
        aux,
    )


def secmi_network(answers: Answers, aux: AuxView) -> Scored:
    """A small residual network on the chain's error map."""
    epoch_counts = (5, 15) if answers.plan.name == "lite" else (5, 15, 30)
    return network_attack("convolution", answers.on["map_chain"], aux, (3e-3,), epoch_counts)


def pia(answers: Answers, aux: AuxView) -> Scored:
    """-|e0 - e(z_t built from e0)|_4 (arXiv 2305.18355)."""
    jumps = answers.on["pia"].astype(np.float64)
    return best_of(
        {f"t={step}": -(jumps[:, place, FOURTH] ** 0.25) for place, step in enumerate(answers.plan.pia_timesteps)}, aux
    )


def pian(answers: Answers, aux: AuxView) -> Scored:
    """PIA with e0 brought to unit variance."""
    return -(answers.on["pian"][:, 0, FOURTH].astype(np.float64) ** 0.25), f"t={answers.plan.pian_timestep}"


def sima(answers: Answers, aux: AuxView) -> Scored:
    """-|e(z, t)|_4 on the clean latent (arXiv 2509.25003)."""
    values = answers.on["sima"].astype(np.float64)
    return best_of(
        {f"t={step}": -(values[:, place, FOURTH] ** 0.25) for place, step in enumerate(answers.plan.sima_timesteps)},
        aux,
    )


def crop_rise(answers: Answers, state: str) -> FloatArray:
    """[n] mean relative rise of the loss from the picture to its centre crop, same noise."""
    records = answers.on if state == "on" else answers.off
    places = [answers.plan.noise_timesteps.index(step) for step in answers.plan.crop_timesteps]
    whole = records["noise"][:, places][:, :, 0, 0, SQUARE].astype(np.float64)
    return ((records["crop"][..., SQUARE] - whole) / whole).mean(1)


def pfami(answers: Answers, aux: AuxView) -> Scored:
    """Members sit at local maxima of the likelihood (arXiv 2308.12143); the same under the base is taken away."""
    return crop_rise(answers, "on") - crop_rise(answers, "off"), "minus base"


def caption_gains(answers: Answers, state: str) -> FloatArray:
    """[n, t] L(empty caption) - L(caption), same noise, at CLiD's timesteps."""
    places = [answers.plan.noise_timesteps.index(step) for step in answers.plan.clid_timesteps]
    return (answers.losses(state, caption=False) - answers.losses(state))[:, places]


def clipped_gains(answers: Answers, state: str) -> FloatArray:
    """[n, captions] L(clipped caption) - L(caption), mean over CLiD's timesteps and draws."""
    records = answers.on if state == "on" else answers.off
    places = [answers.plan.noise_timesteps.index(step) for step in answers.plan.clipped_timesteps]
    draws = answers.plan.clipped_draws
    whole = records["noise"][:, places][:, :, :draws, 0, SQUARE].astype(np.float64).mean((1, 2))
    return records["clipped"][..., SQUARE].astype(np.float64).mean((2, 3)) - whole[:, None]


def clid_null(answers: Answers, aux: AuxView) -> Scored:
    """What the caption is worth to the model: L(empty) - L(caption) (arXiv 2405.14800)."""
    return best_of(over_timesteps(caption_gains(answers, "on"), answers.plan.clid_timesteps), aux)


def clid_features(answers: Answers) -> FloatArray:
    """[n, captions + 1] conditional discrepancies and -loss."""
    gains = [caption_gains(answers, "on").mean(1, keepdims=True)]
    if answers.plan.clipped_shares:
        gains.append(clipped_gains(answers, "on"))
    places = [answers.plan.noise_timesteps.index(step) for step in answers.plan.clid_timesteps]
    return np.concatenate([*gains, -answers.losses("on")[:, places].mean(1, keepdims=True)], axis=1)


def clid_threshold(answers: Answers, aux: AuxView) -> Scored:
    """alpha S(discrepancy) + (1 - alpha) S(-loss), robust scaling and alpha from the aux sides."""
    features = clid_features(answers)
    gain, fit = robust_scaled(features[:, :-1].mean(1), aux), robust_scaled(features[:, -1], aux)
    return best_of({f"alpha {share:.1f}": share * gain + (1 - share) * fit for share in np.linspace(1, 0, 11)}, aux)


def clid_vector(answers: Answers, aux: AuxView) -> Scored:
    """Twenty boosted trees on the discrepancies and the loss."""
    return cross_fitted(clid_features(answers), aux, boosted_trees(20, aux.seed)), "20 trees"


def logarithms(values: NDArray[np.floating]) -> FloatArray:
    """Log of norms; those that are zero (no gradient) stay constant."""
    return np.log(np.maximum(values.astype(np.float64), 1e-20))


def against_untrained(answers: Answers, norms: str) -> FloatArray:
    """[n, F / 2] log norms of the up factors, minus those of an untrained adapter on the same base and picture."""
    on, fresh = (_mean_over_timesteps(records[norms]) for records in (answers.on, answers.off))
    return logarithms(on)[:, 1::2] - logarithms(fresh)[:, 1::2]


def _mean_over_timesteps(norms: NDArray[np.floating]) -> NDArray[np.floating]:
    return norms.mean(1) if norms.ndim == 3 else norms


def best_gradient_classifier(answers: Answers, norms: str, aux: AuxView) -> Scored:
    """Logistic regression or 200 boosted trees on log norms, or logistic against an untrained adapter: best on aux."""
    features = logarithms(_mean_over_timesteps(answers.on[norms]))
    linear, named = best_logistic(features, aux)
    calibrated_linear, calibrated_named = best_logistic(against_untrained(answers, norms), aux)
    trees = cross_fitted(features, aux, boosted_trees(200, aux.seed))
    return best_of({named: linear, "200 trees": trees, f"untrained, {calibrated_named}": calibrated_linear}, aux)


def gsa1(answers: Answers, aux: AuxView) -> Scored:
    """Norms per factor of the gradient of the mean loss over timesteps (arXiv 2308.06405)."""
    return best_gradient_classifier(answers, "gradient_of_mean", aux)


def gsa2(answers: Answers, aux: AuxView) -> Scored:
    """Norms per factor of the gradient at each timestep, averaged."""
    return best_gradient_classifier(answers, "gradient_norms", aux)


def map_mlp(answers: Answers, aux: AuxView) -> Scored:
    """The released method's own attacker, trained from scratch on this LoRA's loss maps (arXiv 2402.11989)."""
    lite = answers.plan.name == "lite"
    rates = (3e-4,) if lite else (1e-5, 1e-4, 1e-3)
    return network_attack("perceptron", answers.on["map_loss"], aux, rates, (10, 40) if lite else (20, 50, 100))


def fusion_features(answers: Answers) -> FloatArray:
    """[n, F] every profile that the other attacks read, adapter on and against the base."""
    parts = [logarithms(answers.losses("on")), calibrated(answers, 1.0), calibrated(answers, 0.2)]
    parts += [logarithms(answers.losses("on", caption=False)), calibrated(answers, 1.0, caption=False)]
    parts += [caption_gains(answers, "on"), caption_gains(answers, "on") - caption_gains(answers, "off")]
    for name, column in (("edges", SQUARE), ("pia", FOURTH), ("pian", FOURTH), ("sima", FOURTH)):
        on, off = (logarithms(records[name][..., column]) for records in (answers.on, answers.off))
        parts += [on, on - off]
    apart = [logarithms(records["pair"][..., 0].mean(2)) for records in (answers.on, answers.off)]
    parts += [apart[0], apart[0] - apart[1]]
    if answers.plan.crop_timesteps:
        parts.append((crop_rise(answers, "on") - crop_rise(answers, "off"))[:, None])
    if answers.plan.clipped_shares:
        parts.append(clipped_gains(answers, "on") - clipped_gains(answers, "off"))
    means = [logarithms(answers.on["gradient_of_mean"])[:, first::2].mean(1, keepdims=True) for first in (0, 1)]
    fresh = logarithms(answers.off["gradient_of_mean"])[:, 1::2].mean(1, keepdims=True)
    return np.concatenate([*parts, *means, means[1] - fresh], axis=1)


def fusion(answers: Answers, aux: AuxView) -> Scored:
    """All profiles in one linear classifier with the held-out scores of the gradient attacks (arXiv 2411.07449)."""
    learned = [
        best_logistic(against_untrained(answers, norms), aux)[0] for norms in ("gradient_of_mean", "gradient_norms")
    ]
    return best_logistic(np.column_stack([fusion_features(answers), *learned]), aux)
