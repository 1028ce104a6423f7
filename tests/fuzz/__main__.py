"""The long run: ``python -m tests.fuzz --cases 5000``. Each way in has a process of its own, which may die or hang."""

import argparse
import json
import os
import selectors
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from io import FileIO, TextIOWrapper

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import sound
from tests.fuzz.damage import Damage, damages
from tests.fuzz.outcome import outcome_of
from tests.fuzz.way_in import WayIn
from tests.fuzz.ways_in import WAYS

LONGEST_WAIT = 180.0  # seconds without a word of a process: a loaded machine takes some for 10 of processor time
STILL = 3  # rounds without a new case: the way has no more


def main() -> int:
    """Run all cases and print a table; 1 where something must be mended."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="of all ways in together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--way", default="", help="only the ways whose name holds this")
    options = parser.parse_args()
    chosen = [way for way in WAYS if options.way in way.name]
    started, total, to_mend = time.monotonic(), Counter[str](), 0
    for place, way in enumerate(chosen):
        each = options.cases * (place + 1) // len(chosen) - options.cases * place // len(chosen)
        found = run_way(way, each, options.seed)
        kinds = Counter(one["kind"] for one in found)
        total.update(kinds)
        seconds, mib = (max((one.get(name, 0) for one in found), default=0) for name in ("seconds", "mib"))
        print(f"{way.name}: {in_words(kinds)}; at most {seconds:.1f} s, {mib:.0f} MiB", flush=True)
        for one in found:
            if one["kind"] not in ("read", "refused"):
                to_mend += 1
                print(f"    {one['kind']}: {one['damage']} -> {one['message']}", flush=True)
    shutil.rmtree(sound.SCRATCH, ignore_errors=True)
    print(f"{sum(total.values())} cases at {len(chosen)} ways in, seed {options.seed}: {in_words(total)}; {to_mend} to "
          f"mend; {(time.monotonic() - started) / 60:.0f} minutes")  # fmt: skip
    return 1 if to_mend else 0


def in_words(kinds: Counter[str]) -> str:
    """Counts in one line."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def run_way(way: WayIn, count: int, seed: int) -> list[dict]:
    """The outcomes of one way; a process that dies or hangs is a fault of the case that it was at."""
    way.prepare(sound.fresh_case())  # in this process, so that what is made once is made once
    found: list[dict] = []
    while len(found) < count:
        before = len(found)
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            status = 1
            try:
                with os.fdopen(writing, "w", buffering=1) as out:
                    work(way, count - before, seed, out)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as words:
            at_work, how = listen(words, process, found)
        _, status = os.waitpid(process, 0)
        if at_work is not None:
            found.append({"kind": how, "damage": at_work, "message": f"status {os.waitstatus_to_exitcode(status)}"})
        elif len(found) == before:
            break
        seed += 1000
    return found


def listen(words: FileIO, process: int, found: list[dict]) -> tuple[str | None, str]:
    """Take a process's words in; the case that it was at when it stopped, and how it stopped."""
    at_work, rest = None, b""
    with selectors.DefaultSelector() as ready:
        ready.register(words, selectors.EVENT_READ)
        while True:
            if not ready.select(LONGEST_WAIT):
                os.kill(process, signal.SIGKILL)
                return at_work or "its start", "hang"
            piece = words.read(65536)
            if not piece:
                return at_work, "crash"
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                said = json.loads(line)
                at_work = None if "kind" in said else said["damage"]
                found += [said] if "kind" in said else []


def work(way: WayIn, count: int, seed: int, out: TextIOWrapper) -> None:
    """Run cases of one way in this process, with a line before and after each."""
    seen: set[Damage] = set()
    warnings.simplefilter("ignore")

    def say(**words: object) -> None:
        print(json.dumps(words), file=out, flush=True)

    def one_case(damage: Damage) -> None:
        if damage in seen or len(seen) >= count:
            return
        seen.add(damage)
        say(damage=repr(damage))
        outcome = outcome_of(way, damage)
        say(kind=outcome.kind, damage=repr(damage), message=outcome.message, seconds=outcome.seconds, mib=outcome.mib)

    still, rounds = 0, 0
    while len(seen) < count and still < STILL:
        before, rounds = len(seen), rounds + 1
        drawn = settings(max_examples=count, deadline=None, phases=[Phase.generate], database=None,
                         suppress_health_check=list(HealthCheck))  # fmt: skip
        hypothesis.seed(seed + rounds)(drawn(given(damages(way.form))(one_case)))()
        still = still + 1 if len(seen) == before else 0


if __name__ == "__main__":
    sys.exit(main())
