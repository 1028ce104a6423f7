"""The report's words: names and sources of the attacks, who can make them, a glossary, and how figures are written."""

from dataclasses import dataclass

from library.audit.attacks.registry import ATTACKS
from library.audit.statistics.findings import Finding

TITLES = {attack.name: attack.title for attack in ATTACKS} | {
    "lira": "LiRA with shadow LoRAs",
    "drawings": "Drawings near the picture",
}
ACCESS = {attack.name: attack.access for attack in ATTACKS} | {"lira": "GB+base, shadow LoRAs", "drawings": "BB"}


@dataclass(frozen=True)
class Note:
    """What a person should know of one attack."""

    sentence: str
    reference: str  # authors, year, arXiv id


OWN = "this suite"
NOTES = {
    "loss": Note(
        "A picture that the model denoises unusually well is called a member.",
        "Matsumoto et al. 2023, arXiv 2302.03262",
    ),
    "loss_calibrated": Note(
        "It asks how much the LoRA lowered the base model's error on the picture, under the same noise.",
        f"{OWN}; difficulty calibration as in Watson et al. 2021, arXiv 2111.08440",
    ),
    "loss_filtered": Note(
        "The loss threshold, with fine detail counted less, because it is hard to predict for every picture.",
        "Lian et al. 2025, arXiv 2505.20955",
    ),
    "loss_filtered_calibrated": Note(
        "The loss against the base, with fine detail counted less.", f"{OWN}, after Lian et al. 2025, arXiv 2505.20955"
    ),
    "loss_empty_calibrated": Note("The loss against the base, asked without the caption. No label is used.", OWN),
    "caption_gain": Note(
        "It asks how much more the caption is worth to the LoRA than to the base, as a ratio. No label is used.",
        f"{OWN}, after Zhai et al. 2024, arXiv 2405.14800",
    ),
    "loss_residual": Note(
        "It asks how much the LoRA lowered the error beyond what the picture's difficulty for the base predicts. "
        "No label "
        "is used.",
        OWN,
    ),
    "label_free": Note("The sum of the two: loss without the caption, and gain of the caption. No label is used.", OWN),
    "secmi": Note(
        "It walks from the picture towards noise without chance and looks where two consecutive predictions disagree "
        "least.",
        "Duan et al. 2023, arXiv 2302.01316",
    ),
    "secmi_filtered": Note(
        "SecMI, with fine detail counted less.",
        "Duan et al. 2023, arXiv 2302.01316; Lian et al. 2025, arXiv 2505.20955",
    ),
    "secmi_network": Note(
        "A small residual network learns from known members what SecMI's error maps look like.",
        "Duan et al. 2023, arXiv 2302.01316, with a smaller network",
    ),
    "pia": Note(
        "It uses the model's own prediction at the clean picture as the noise and asks whether the model predicts it "
        "again.",
        "Kong et al. 2023, arXiv 2305.18355",
    ),
    "pian": Note("PIA, with that prediction brought to unit variance.", "Kong et al. 2023, arXiv 2305.18355"),
    "sima": Note(
        "One question at the clean picture: how much noise does the model see there?",
        "Rao et al. 2025, arXiv 2509.25003",
    ),
    "pfami": Note(
        "Members are easier than their own close-ups; the same difference under the base model is taken away.",
        "Fu et al. 2023, arXiv 2308.12143",
    ),
    "clid": Note(
        "It asks how much worse the picture is predicted without its caption.", "Zhai et al. 2024, arXiv 2405.14800"
    ),
    "clid_threshold": Note(
        "What the caption is worth, and the loss, added with a weight that fits known members best.",
        "Zhai et al. 2024, arXiv 2405.14800",
    ),
    "clid_vector": Note(
        "Boosted trees on what the caption is worth and on the loss.", "Zhai et al. 2024, arXiv 2405.14800"
    ),
    "gsa1": Note(
        "A classifier reads how strongly the picture would still change each part of the LoRA (one mean gradient).",
        "Pang et al. 2023, arXiv 2308.06405",
    ),
    "gsa2": Note("The same with one gradient for each noise level.", "Pang et al. 2023, arXiv 2308.06405"),
    "map_mlp": Note(
        "The attacker that the released method reports against, trained from scratch on this LoRA's error maps.",
        "Luo et al. 2024, arXiv 2402.11989",
    ),
    "fusion": Note(
        "One linear classifier on everything that the other attacks ask, fitted on known members.",
        f"{OWN}, after Floros et al. 2024, arXiv 2411.07449",
    ),
    "lira": Note(
        "It compares the loss with that under LoRAs which were trained with and without the picture.",
        "Carlini et al. 2021, arXiv 2112.03570",
    ),
    "drawings": Note(
        "It draws the caption and asks how near the drawings come to the picture; the file's weights stay unread.",
        "Pang and Wang 2023, arXiv 2312.08207",
    ),
}
ACCESS_WORDS = {
    "BB": "only looks at drawings",
    "GB": "asks the model",
    "GB+base": "asks the model and the public base",
    "GB+base, shadow LoRAs": "asks the model and the public base; trains LoRAs of its own",
    "WB": "reads weights and gradients",
}
GLOSSARY = (
    ("member, non-member", "A picture that the LoRA was trained on; a picture of the same source that it was not."),
    ("test side, held out", "Pictures that no attack learnt from. Every figure is measured on them, once."),
    ("aux side", "Members and non-members that the attacks know as such and learn from. A real attacker knows fewer."),
    ("AUC", "In how many of 100 pairs of one member and one non-member the attack gives the member the higher score, "
            "divided by 100. 0.50 is guessing, 1.00 is always right."),
    ("flipped", "An attack below 0.50 ranks members lower. Whoever notices turns it round, so 0.20 counts as 0.80."),
    ("interval, [low, high]", "Where the true figure lies with 95 % confidence; few test pictures make it wide."),
    ("p", "How often luck alone gives a figure as far from guessing as this one. Ten thousand deals of the labels are "
          "tried, so 0.0001 is the smallest that can be said."),
    ("TPR at FPR", "Share of members found (true-positive rate) where so many of the non-members are accused wrongly "
                   "(false-positive rate)."),
    ("LoRA off", "The same attack on the base model without the LoRA. It must be at 0.50: whatever it finds is not the "
                 "LoRA's doing."),
    ("control", "A test in which no leak can be. It must be at 0.50, or the two sides differ and nothing is shown."),
    ("learnt", "How far the LoRA lowers the denoising error of held-out pictures, in percent of the base model's "
               "(geometric mean over pictures and noise levels). It cannot come from the pictures themselves, so it is "
               "what the LoRA is useful for."),
    ("by heart", "How much farther the error of members falls than that of held-out pictures: what was learnt of these "
                 "pictures alone, and what attacks feed on."),
    ("exposure", "One use of a picture in training. Files state it to one digit, so that nobody can compute the number "
                 "of members from it."),
    ("epsilon", "The measure of differential privacy: 0 is perfect, and above 10 it promises little."),
)  # fmt: skip


def note_of(name: str) -> Note:
    """What the page says of one attack.

    Raises:
        KeyError: an attack of the registry without a note.
    """
    if name not in NOTES:
        raise KeyError(f"attack '{name}' has no note; add it to NOTES in library/audit/report/wording.py")
    return NOTES[name]


def interval(low_high: tuple[float, float], digits: int = 2) -> str:
    """[low, high]."""
    return f"[{low_high[0]:.{digits}f}, {low_high[1]:.{digits}f}]"


def area(one: Finding) -> str:
    """AUC with its interval."""
    return f"{one.auc:.2f} {interval(one.auc_interval)}"
