"""When an attack counts as working: the thresholds, written once."""

BAR = 0.55  # the interval of an AUC must clear it (or 1 - it)
LEAK_P = 0.01
CONTROL_P = 0.001  # p over all controls below which the audit is invalid: luck fails 1 of 1000 sound audits
DOUBT_P = 0.01  # below it the verdict stands, and says that a control is at the edge


def attack_works(p: float, interval: tuple[float, float]) -> bool:
    """Significant, and the 95 % interval of the AUC lies above 0.55 or below 0.45.

    Args:
        p: of this attack, or of the largest deviation among all attacks.
        interval: of the AUC.
    """
    low, high = interval
    return p < LEAK_P and (low > BAR or high < 1 - BAR)
