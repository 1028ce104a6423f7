"""Makes the demo: pictures, VAE, base model and sheets, each from the one before; draws further pictures."""

import argparse
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
STAGES = ("pictures", "vae", "base", "measure", "sheet")


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=(*STAGES, "all", "more"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of checkpoints and caches")
    training = parser.add_argument_group("training")
    training.add_argument("--processes", type=int, default=2, help="one thread each")
    training.add_argument("--vae_minutes", type=float, default=18.0, help="processor time of one process")
    training.add_argument("--base_minutes", type=float, default=75.0, help="processor time of one process")
    training.add_argument("--start", type=Path, help="base of the same shape whose weights training begins with")
    more = parser.add_argument_group("more: further pictures of the private set's law, as a kohya folder")
    more.add_argument("--count", type=int, default=800)
    more.add_argument("--persons", choices=("fresh", "known"), default="fresh", help="strangers, or the private ones")
    more.add_argument("--out", type=Path)
    arguments = parser.parse_args(given)
    if arguments.stage == "more" and (arguments.out is None or arguments.count < 1):
        parser.error(f"more needs --out DIR and --count of at least 1, got {arguments.out} and {arguments.count}")
    return arguments


def take(train: Callable[..., None], *rest: object) -> None:
    """Runs ``train`` in as many processes as the course (first of ``rest``) asks for; starting again resumes."""
    import torch.multiprocessing

    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    processes = rest[0].processes
    if processes == 1:
        return train(0, *rest)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["DEMO_PORT"] = str(free.getsockname()[1])
    torch.multiprocessing.spawn(train, args=rest, nprocs=processes)


def train_stage(stage: str, arguments: argparse.Namespace) -> None:
    from base_model import prepare_base, train_base
    from course import Course
    from vae import train_vae

    shared = {"processes": arguments.processes, "seed": arguments.seed, "export_minutes": 2.0}
    course = partial(Course, stage, arguments.work, **shared)
    start = arguments.start
    if stage == "vae":
        take(train_vae, course(minutes=arguments.vae_minutes, learning_rate=1e-3, batch=8), start and start / "vae")
    else:
        base = course(minutes=arguments.base_minutes, learning_rate=1e-3, batch=16, target=HERE / "base")
        prepare_base(base)
        take(train_base, base, start)


def draw_more(arguments: argparse.Namespace) -> None:
    from collection import fresh_pictures, known_pictures, read_folder, write_folder

    if arguments.persons == "fresh":
        pictures = fresh_pictures(arguments.count, arguments.seed)
    else:
        pictures = known_pictures(arguments.count, arguments.seed, read_folder(HERE / "images"))
    write_folder(arguments.out, pictures, f"s{arguments.seed}_")
    print(f"{len(pictures)} pictures of {len({picture.person for picture in pictures})} persons in {arguments.out}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.stage == "more":
        return draw_more(arguments)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        if stage == "pictures":
            from collection import make_pictures

            print(make_pictures(HERE, arguments.work, arguments.seed))
        elif stage in ("vae", "base"):
            train_stage(stage, arguments)
        elif stage == "measure":
            from measure import measure

            measure(HERE, arguments.work)
        else:
            from sheet import make_sheets

            make_sheets(HERE, arguments.work, arguments.seed)


if __name__ == "__main__":
    main()
