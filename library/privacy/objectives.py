"""The two objectives that the LoRA minimises, from its adaptation loss and the proxy's cross-entropy."""

from torch import Tensor


def sum_objective(adaptation: Tensor, attack_loss: Tensor, alpha: float) -> Tensor:
    """L - alpha * CE: MP-LoRA, arXiv 2402.11989 eq. 6. Unbounded below unless the gain is limited.

    Args:
        adaptation: [] mean squared denoising error of the member batch.
        attack_loss: [] cross-entropy (nats) of the proxy on the same batch, label "member".
    """
    return adaptation - alpha * attack_loss


def ratio_objective(adaptation: Tensor, attack_loss: Tensor, alpha: float, beta: float) -> Tensor:
    """L / (beta + alpha * CE + 1e-5): SMP-LoRA, arXiv 2402.11989 eq. 10. CE >= 0 keeps the denominator above beta.

    Args:
        adaptation: [] mean squared denoising error of the member batch.
        attack_loss: [] cross-entropy (nats) of the proxy on the same batch, label "member".
    """
    return adaptation / (beta + alpha * attack_loss + 1e-5)
