"""Makes the embedded demo: private pictures, VAE, base model and sample sheet, each from the one before."""

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing

from autoencoder import train_autoencoder
from course import Course
from denoiser import prepare_base, train_base
from pictures import make_pictures
from sheet import GUIDANCE, STEPS, make_sheet

HERE = Path(__file__).resolve().parent
STAGES = ("pictures", "vae", "base", "sheet")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of checkpoints and caches")
    parser.add_argument("--font", type=Path, default=Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
    parser.add_argument("--listing", type=Path, default=Path("/usr/share/unicode/emoji/emoji-test.txt"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="one thread each")
    parser.add_argument("--vae_minutes", type=float, default=24.0, help="training time, pauses not counted")
    parser.add_argument("--base_minutes", type=float, default=74.0, help="training time, pauses not counted")
    parser.add_argument("--sheet", type=Path, help="where the sheet goes, if not demo/sheet.png")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="of the sheet")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the sheet")
    return parser.parse_args()


def take(course: Course, train: Callable[[int, Course], None]) -> None:
    """Runs ``train`` in as many processes as the course asks for; starting again resumes."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["DEMO_PORT"] = str(free.getsockname()[1])
    torch.multiprocessing.spawn(train, args=(course,), nprocs=course.processes)


def main() -> None:
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    shared = {"work": arguments.work, "processes": arguments.processes, "seed": arguments.seed}
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        if stage == "pictures":
            print(make_pictures(HERE, arguments.work, arguments.listing, arguments.font, arguments.seed))
        elif stage == "vae":
            vae = Course("vae", minutes=arguments.vae_minutes, learning_rate=1e-3, batch=8, **shared)
            take(vae, train_autoencoder)
        elif stage == "base":
            minutes = arguments.base_minutes
            base = Course("base", minutes=minutes, learning_rate=1.4e-3, batch=16, target=HERE / "base", **shared)
            prepare_base(base)
            take(base, train_base)
        elif stage == "sheet":
            target = arguments.sheet or HERE / "sheet.png"
            make_sheet(HERE, arguments.work, arguments.seed, target, arguments.guidance, arguments.steps)


if __name__ == "__main__":
    main()
