"""What looks at drawings: Inception, CLIP and DINOv2 with random weights, distances by hand, and a whole audit."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from scipy import linalg

import audit
from library.audit.images.feature_extractors import (
    ExtractorRules,
    local_folder,
    open_encoder,
    open_extractors,
    preparation,
)
from library.audit.images.inception import Inception, load_inception, resized_like_tensorflow
from library.audit.statistics.image_distances import frechet_distance, kernel_distance
from library.diffusion.model_files import load_model
from library.errors import InputError
from tests.helpers import audit_run, tiny

CPU = torch.device("cpu")
SIGHT = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5],
         "image_std": [0.25, 0.25, 0.25]}  # fmt: skip


def write_clip(folder: Path) -> Path:
    """A CLIP of two layers with random weights."""
    words = tiny.write_tokenizer(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    transformers.CLIPModel(transformers.CLIPConfig(
        text_config=small | text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=12,
    )).save_pretrained(folder)  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(SIGHT))
    return folder


def write_dino(folder: Path) -> Path:
    """A DINOv2 of two layers with random weights."""
    torch.manual_seed(1)
    transformers.Dinov2Model(transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )).save_pretrained(folder)  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(SIGHT))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random networks of every kind, as files."""
    place = tmp_path_factory.mktemp("weights")
    torch.manual_seed(2)
    state = Inception().state_dict() | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state, place / "inception.pth")
    return {
        "clip": write_clip(place / "clip"),
        "dino": write_dino(place / "dino"),
        "inception": place / "inception.pth",
    }


def test_inception_has_the_published_number_of_parameters_and_layers(weights):
    network = load_inception(weights["inception"], CPU)
    auxiliary, classifier = 3_326_696, 2_049_000  # of Inception v3's 27,161,264 parameters; neither is needed here
    assert sum(value.numel() for value in network.parameters()) == 27_161_264 - auxiliary - classifier
    seen = network(torch.randint(0, 256, (2, 3, 20, 24), generator=torch.Generator().manual_seed(0)))
    assert seen["768"].shape == (2, 768) and seen["2048"].shape == (2, 2048)


def test_pictures_are_enlarged_by_tensorflows_rule():
    row = torch.tensor([0.0, 10.0]).expand(1, 1, 1, 2)
    assert resized_like_tensorflow(row, 4)[0, 0, 0].tolist() == [0, 5, 10, 10]  # corners at i * in / out


@pytest.mark.parametrize("spoil", ["lacking", "foreign", "shape"])
def test_weights_of_another_network_are_refused(weights, tmp_path, spoil):
    state = torch.load(weights["inception"], weights_only=True)
    if spoil == "lacking":
        del state["Mixed_7c.branch1x1.conv.weight"]
    elif spoil == "foreign":
        state["AuxLogits.fc.weight"] = torch.zeros(1)
    else:
        state["Conv2d_1a_3x3.conv.weight"] = torch.zeros(16, 3, 3, 3)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(InputError, match="are not the FID Inception's"):
        load_inception(tmp_path / "other.pth", CPU)


def test_a_file_that_holds_more_than_tensors_is_not_unpickled(tmp_path):
    torch.save({"network": Path("x")}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="was not opened: its pickle holds more than tensors"):
        load_inception(tmp_path / "code.pth", CPU)


def test_the_frechet_distance_agrees_with_the_textbook_formula_and_needs_no_full_rank():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(400, 5)), 1 + 2 * generator.normal(size=(300, 5))
    spreads = [np.cov(rows, rowvar=False) for rows in (first, second)]
    root = np.real(linalg.sqrtm(spreads[0] @ spreads[1]))
    textbook = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(float(textbook), rel=1e-6)
    few = generator.normal(size=(6, 50))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few + 1) == pytest.approx(50)
    line = frechet_distance(np.array([[0.0], [2.0]]), np.array([[0.0], [6.0]]))
    assert line == pytest.approx((1 - 3) ** 2 + (math.sqrt(2) - math.sqrt(18)) ** 2)  # by hand: variances 2 and 18


def test_the_kernel_distance_agrees_with_its_slow_twin():
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(5, 3)), generator.normal(size=(4, 3))

    def kernel(left, right):
        return (float(left @ right) / 3 + 1) ** 3

    inside = [
        sum(kernel(one, other) for i, one in enumerate(rows) for j, other in enumerate(rows) if i != j)
        / (len(rows) * (len(rows) - 1))
        for rows in (first, second)
    ]
    across = sum(kernel(one, other) for one in first for other in second) / 20
    assert kernel_distance(first, second) == pytest.approx(sum(inside) - 2 * across)


def test_one_picture_has_no_distance():
    with pytest.raises(ValueError, match="needs two pictures"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="needs two pictures"):
        kernel_distance(np.zeros((3, 2)), np.zeros((1, 2)))


@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_an_encoder_gives_unit_vectors_and_knows_a_picture_from_another(weights, kind):
    encoder = open_encoder(str(weights[kind]), "image_encoder", CPU)
    pixels = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    seen = encoder.features(pixels)
    assert torch.allclose(seen.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(encoder.features(pixels[1:2])[0], seen[1], atol=1e-5)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert (encoder.agreement is None) == (kind == "dino")


def test_clips_agreement_is_the_cosine_that_transformers_computes(weights):
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder = open_encoder(str(weights["clip"]), "clip_model", CPU)
    captions = ["walrus", "a picture of an ocelot " * 40]  # longer than 77 tokens
    model = transformers.CLIPModel.from_pretrained(weights["clip"]).eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(weights["clip"])(
        captions, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        answer = model(pixel_values=(pixels - 0.5) / 0.25, **tokens)
    expected = (answer.image_embeds * answer.text_embeds).sum(1)
    assert torch.allclose(encoder.agreement(pixels, captions), expected, atol=1e-5)


def test_pictures_are_resized_by_their_shortest_side_and_cropped_in_the_centre():
    pixels = torch.zeros(1, 3, 32, 64)
    pixels[..., 16:48] = 1.0
    ready = preparation(SIGHT)(pixels)
    assert ready.shape == (1, 3, 32, 32) and torch.allclose(ready, torch.full_like(ready, 2.0))


def test_what_is_no_encoder_is_refused_with_the_way_out(weights, model_folder, tmp_path):
    with pytest.raises(InputError, match="is not a folder here and not in the hub's cache; fetch it first"):
        local_folder("nobody/nothing-here", "clip_model")
    with pytest.raises(InputError, match="needs config.json and preprocessor_config.json"):
        open_encoder(str(model_folder), "image_encoder", CPU)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SIGHT))
    with pytest.raises(InputError, match="is a 'bert'; use one of clip, dinov2"):
        open_encoder(str(tmp_path), "image_encoder", CPU)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="cannot be opened"):
        open_encoder(str(tmp_path), "image_encoder", CPU)
    with pytest.raises(InputError, match="is not a CLIP model; it must encode captions too"):
        open_extractors(load_model(str(model_folder)).vae, ExtractorRules(None, str(weights["dino"]), None))


@pytest.fixture(scope="module")
def drawn(weights, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """Findings and report of an audit with every network."""
    out = audit_run.train(model_folder, tmp_path_factory.mktemp("drawn"), max_train_epochs=1)
    extractors = ["--clip_model", weights["clip"], "--image_encoder", weights["dino"], "--inception_weights"]
    flags = [
        "--generated_images",
        2,
        "--generation_captions",
        4,
        "--generation_steps",
        2,
        *extractors,
        weights["inception"],
    ]
    assert audit.main([str(out), *audit_run.options(out, *flags)]) == 0
    return json.loads((out / "audit" / "findings.json").read_text()), (out / "audit" / "report.html").read_text()


@pytest.mark.slow
def test_with_weights_at_hand_the_figures_carry_their_proper_names(drawn):
    found, text = drawn
    utility = found["utility"]
    for name in ("fid_2048", "fid_768", "kid_2048", "kid_768", "clip_score", "vae_frechet_distance"):
        assert math.isfinite(utility[name]) and math.isfinite(utility[f"{name}_of_base"])
    assert utility["fid_2048"] >= 0 and -100 <= utility["clip_score_of_pictures"] <= 100
    assert utility["drawn_captions"] == 4 and utility["drawn_images"] == 8
    facts = found["facts"]
    assert "DDIM 2 steps, guidance 2" in facts["drawings"] and "4 captions of non-members-test" in facts["drawings"]
    assert "DINOv2" in facts["black box"] and "class token" in facts["black box"]
    assert "CLIP" in facts["prompt-image agreement"] and facts["image quality"].startswith("FID and KID with Inception")
    attack = next(one for one in found["findings"] if one["name"] == "drawings")
    assert "cosine by DINOv2" in attack["chosen"] and attack["members"] == 4
    as_sets = found["set_level_test"]
    assert (as_sets["drawings"], as_sets["members"], as_sets["non_members"]) == (16, 4, 4) and 0 < as_sets["p"] <= 1
    assert "16 drawings of captions of both sides, against 4 members and 4 pictures held out" in text
    assert "2048-d, last mean pool" in text and "768-d, mean over places of Mixed_6e" in text


@pytest.mark.slow
def test_the_nearest_drawing_stands_below_an_exposed_picture(drawn):
    assert '<span>nearest drawing</span><img alt="nearest drawing: quokka' in drawn[1]


def test_a_judge_without_drawings_and_odd_shadows_are_refused_at_once(weights, tmp_path):
    with pytest.raises(InputError) as caught:
        audit.main([str(tmp_path), "--clip_model", str(weights["clip"]), "--shadow_loras", "3", "--inception_weights",
                    str(tmp_path / "no.pth")])  # fmt: skip
    for needed in ("need generated images", "shadow_loras must be even", "no.pth' does not exist"):
        assert needed in str(caught.value)
