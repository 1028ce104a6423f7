"""Neural attackers on error maps: the released method's MLP and a small residual network in SecMI's manner."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from library.audit.attacks.classifiers import joined
from library.audit.targets.candidate_table import AuxView, FloatArray
from library.seeding import stream_seed


def map_perceptron(shape: tuple[int, ...]) -> nn.Module:
    """Flattened map -> 512 -> 256 -> 2 with dropout 0.5: the attacker of arXiv 2402.11989, appendix E."""
    inputs = int(np.prod(shape))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 256), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(256, 2),
    )  # fmt: skip


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one, half the side, group norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.straight = nn.Conv2d(inputs, outputs, 1, stride=2)
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, outputs), nn.GroupNorm(4, outputs)])

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D, h/2, w/2]."""
        hidden = torch.relu(self.norms[0](self.first(inputs)))
        return torch.relu(self.norms[1](self.second(hidden)) + self.straight(inputs))


def map_convolution(shape: tuple[int, ...]) -> nn.Module:
    """Two residual blocks of 16 and 32 channels, pooled: a narrow stand-in for SecMI's ResNet-18."""
    return nn.Sequential(
        ResidualBlock(shape[0], 16), ResidualBlock(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)
    )


BUILDERS = {"perceptron": map_perceptron, "convolution": map_convolution}


def trained_scores(
    kind: str, maps: Tensor, labels: Tensor, judged: Tensor, *, rate: float, epoch_counts: tuple[int, ...], seed: int
) -> Tensor:
    """[E, n] margins (logit member - logit non-member) on ``judged`` after each of the ``epoch_counts``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BUILDERS[kind](tuple(maps.shape[1:])).to(maps.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=1e-4)
        counts = torch.bincount(labels, minlength=2).clamp(min=1).float()
        balance = nn.CrossEntropyLoss(weight=(counts.sum() / (2 * counts)))
        answers = []
        for epoch in range(1, max(epoch_counts) + 1):
            network.train()
            for rows in torch.randperm(len(maps)).to(maps.device).split(64):
                optimizer.zero_grad(set_to_none=True)
                balance(network(maps[rows]), labels[rows]).backward()
                optimizer.step()
            if epoch in epoch_counts:
                with torch.no_grad():
                    logits = copy.deepcopy(network).eval()(judged)
                answers.append(logits[:, 1] - logits[:, 0])
    return torch.stack(answers)


def network_attack(
    kind: str, maps: NDArray[np.float32], aux: AuxView, rates: tuple[float, ...], epoch_counts: tuple[int, ...]
) -> tuple[FloatArray, str]:
    """Cross-fitted margins; learning rate and number of epochs are those with the best AUC on held-out aux folds.

    A network per fold judges its held-out aux rows, and the mean of the networks judges every other row.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    everything = torch.from_numpy(maps).float().to(device)
    everything = everything / everything[aux.indices].mean().clamp(min=1e-12)
    labels = torch.from_numpy(aux.labels.astype(np.int64)).to(device)
    folds = np.unique(aux.folds)
    best: tuple[float, FloatArray, str] | None = None
    for rate in rates:
        seed, judged = stream_seed(aux.seed, kind, str(rate)), []
        for fold in folds:
            kept = aux.folds != fold
            fitted, known = everything[aux.indices[kept]], labels[torch.from_numpy(kept)]
            answers = trained_scores(kind, fitted, known, everything, rate=rate, epoch_counts=epoch_counts, seed=seed)
            judged.append(answers.cpu().numpy().astype(np.float64))
        scores = joined(np.stack(judged), folds, aux)  # [E, n]
        areas = [round(aux.auc(row), 3) for row in scores]
        chosen = int(np.argmax(areas))
        if best is None or areas[chosen] > best[0]:
            best = areas[chosen], scores[chosen], f"lr {rate:g}, {epoch_counts[chosen]} epochs"
    assert best is not None
    return best[1], best[2]
