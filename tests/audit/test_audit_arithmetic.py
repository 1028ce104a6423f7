"""PIA, PIAN, SimA and GSA against their authors' arithmetic, asked of a toy model one picture at a time."""

import dataclasses

import numpy as np
import pytest
import torch

from library.audit.attacks.score_attacks import pia, pian, sima
from library.audit.queries.answers import Answers
from library.audit.queries.ask import Asker
from library.audit.queries.audited_model import noised
from library.audit.queries.error_statistics import noise_for
from library.audit.queries.query_plan import LITE
from library.audit.targets.candidate_table import AuxView
from tests.helpers.audit_toy import toy_model, toy_pictures

PICTURES = toy_pictures(4)
AUX = AuxView(np.arange(4), np.array([True, False, True, False]), np.zeros(4, dtype=np.intp), 0)
PLAN = dataclasses.replace(LITE, gradient_timesteps=(300, 600))
PER_ELEMENT = 256**0.25  # a norm over a mean's root: our scores are means over the 4 x 8 x 8 elements


def asked(audited, latent, timestep, caption):
    """eps(z, t) of one picture, without gradient."""
    with torch.no_grad():
        return audited.predict_noise(latent[None], torch.tensor([timestep]), audited.encode_text([caption]))[0]


@pytest.fixture(scope="module")
def answers():
    asker = Asker(toy_model(), PLAN, 8)
    records = {name: values.numpy() for name, values in (asker.passes(PICTURES) | asker.gradients(PICTURES)).items()}
    return Answers(records, records, PLAN)


def jump(audited, picture, prediction):
    """|e - eps(sqrt(a) z + sqrt(1 - a) e, 200)|_4: PIA's proximal initialisation (arXiv 2305.18355, eq. 9)."""
    there = noised(picture.latent, prediction, audited.alpha_bar(200))
    difference = prediction - asked(audited, there, 200, picture.caption)
    return float(difference.abs().pow(4).sum() ** 0.25)


def test_pia_is_the_4_norm_between_the_noise_at_0_and_at_t(answers):
    audited, scores = toy_model(), pia(answers, AUX)[0]
    for row, picture in enumerate(PICTURES):
        first = asked(audited, picture.latent, 0, picture.caption)
        assert -scores[row] * PER_ELEMENT == pytest.approx(jump(audited, picture, first), rel=1e-4)


def test_pian_first_scales_that_noise_as_its_authors_code_does(answers):
    """eps / mean|eps| times sqrt(2 / pi), so that its variance is that of a unit Gaussian."""
    audited, scores = toy_model(), pian(answers, AUX)[0]
    for row, picture in enumerate(PICTURES):
        first = asked(audited, picture.latent, 0, picture.caption)
        scaled = first / first.abs().mean() * (2 / torch.pi) ** 0.5
        assert -scores[row] * PER_ELEMENT == pytest.approx(jump(audited, picture, scaled), rel=1e-4)


def test_sima_is_the_4_norm_of_the_noise_predicted_on_the_clean_latent(answers):
    audited, scores = toy_model(), sima(answers, AUX)[0]
    for row, picture in enumerate(PICTURES):
        norm = float(torch.linalg.vector_norm(asked(audited, picture.latent, 100, picture.caption), ord=4))
        assert -scores[row] * PER_ELEMENT == pytest.approx(norm, rel=1e-4)


def test_gsa_takes_norms_of_the_mean_losss_gradient_and_of_each_timesteps(answers):
    """GSA1: one backward of the mean over timesteps; GSA2: one at each; norms per factor (arXiv 2308.06405)."""
    audited = toy_model()
    factors = [value for layer in audited.layers for value in (layer.down.weight, layer.up.weight)]
    for row, picture in enumerate(PICTURES):
        losses = []
        for timestep in PLAN.gradient_timesteps:
            noise = noise_for(picture.identity, timestep, 0, (4, 8, 8))
            there = noised(picture.latent, noise, audited.alpha_bar(timestep))[None]
            states = audited.encode_text([picture.caption])
            losses.append((audited.predict_noise(there, torch.tensor([timestep]), states)[0] - noise).square().mean())
        for place, loss in enumerate(losses):
            norms = [float(one.norm()) for one in torch.autograd.grad(loss, factors, retain_graph=True)]
            np.testing.assert_allclose(answers.on["gradient_norms"][row, place], norms, rtol=1e-3, atol=1e-6)
        mean = [float(one.norm()) for one in torch.autograd.grad(torch.stack(losses).mean(), factors)]
        np.testing.assert_allclose(answers.on["gradient_of_mean"][row], mean, rtol=1e-3, atol=1e-6)
