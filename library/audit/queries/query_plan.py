"""Which questions the UNet is asked about each picture: the grids of the two profiles and their cost."""

import hashlib
from dataclasses import astuple, dataclass

VERSION = 2  # raise when the meaning of a stored number changes


@dataclass(frozen=True)
class QueryPlan:
    """One grid of timesteps. ``()`` leaves a part out."""

    name: str
    noise_timesteps: tuple[int, ...]  # each asked with the caption and with the empty caption
    noise_draws: int  # draw 1 is draw 0 negated, and so on in pairs
    chain_nodes: tuple[int, ...]  # DDIM inversion from the clean latent
    secmi_edge: tuple[int, int]  # the edge of the chain whose map is kept for SecMI's network
    pia_timesteps: tuple[int, ...]
    pian_timestep: int
    sima_timesteps: tuple[int, ...]
    crop_timesteps: tuple[int, ...]
    crop_share: float  # side of the centre crop, of the picture's side
    clipped_shares: tuple[float, ...]  # words kept of a caption
    clipped_timesteps: tuple[int, ...]
    clipped_draws: int
    clid_timesteps: tuple[int, ...]  # where caption and empty caption are compared; part of noise_timesteps
    gradient_timesteps: tuple[int, ...]
    map_timestep: int  # where the loss map is kept for the map attacker

    def passes(self) -> dict[str, int]:
        """UNet passes per picture and state; a gradient counts three."""
        return {
            "noise": len(self.noise_timesteps) * self.noise_draws * 2,
            "chain": len(self.chain_nodes),
            "jumps": len(self.pia_timesteps) + 1 + len(self.sima_timesteps),
            "crops": len(self.crop_timesteps),
            "clipped captions": len(self.clipped_shares) * len(self.clipped_timesteps) * self.clipped_draws,
            "gradients": 3 * len(self.gradient_timesteps),
        }

    def fingerprint(self) -> str:
        """Names the grid in cache keys."""
        return hashlib.sha256(repr((VERSION, astuple(self))).encode()).hexdigest()[:16]


LITE = QueryPlan(
    name="lite",
    noise_timesteps=(100, 200, 300, 450),
    noise_draws=1,
    chain_nodes=(0, 100, 110),
    secmi_edge=(100, 110),
    pia_timesteps=(200,),
    pian_timestep=200,
    sima_timesteps=(100,),
    crop_timesteps=(),
    crop_share=0.825,
    clipped_shares=(),
    clipped_timesteps=(),
    clipped_draws=1,
    clid_timesteps=(300, 450),
    gradient_timesteps=(125, 375, 625, 875),
    map_timestep=200,
)

FULL = QueryPlan(
    name="full",
    noise_timesteps=(20, 50, 100, 140, 200, 300, 400, 450, 500, 600, 700, 850),
    noise_draws=2,
    chain_nodes=(0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110),
    secmi_edge=(100, 110),
    pia_timesteps=(100, 200, 300),
    pian_timestep=200,
    sima_timesteps=(20, 100, 200),
    crop_timesteps=(50, 100, 200, 300),
    crop_share=0.825,
    clipped_shares=(0.7, 0.5, 0.3),
    clipped_timesteps=(400, 450, 500),
    clipped_draws=2,
    clid_timesteps=(400, 450, 500),
    gradient_timesteps=(50, 150, 250, 350, 450, 550, 650, 750, 850, 950),
    map_timestep=200,
)

PLANS = {"lite": LITE, "full": FULL}
