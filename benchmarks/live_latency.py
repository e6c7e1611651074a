"""How long `etude live` takes from the end of a phrase to the first note of its answer; rows for docs/results/generation.md.

    OMP_NUM_THREADS=1 python benchmarks/live_latency.py --ckpt bundled --phrases 20

Phrases of eighths in one and in two voices, in C major, a step or a third at a time, are played into the session without a port,
and what it would send is taken without one; so the time is that of the program alone, from the moment at which the phrase counts
as ended. `at once`: nothing was done before that moment, as with a file; `after a silence`: the silence has lasted its second,
in which the answer was begun. Each case has answered once before, as a session does.
"""

import argparse
import random
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

from peer import append_row, context
from training import ROOT

from etude.core.checkpoint_search import find_checkpoint
from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.studio.duet import Duet
from etude.studio.live import ModelAnswer
from etude.studio.midi_ports import Event

ROWS = ROOT / "docs" / "results" / "rows" / "live_latency.jsonl"
SCALE = (60, 62, 64, 65, 67, 69, 71, 72, 74, 76, 77, 79)
EIGHTH = 0.25  # seconds, at 120 quarters a minute
SETTINGS = {"temperature": 0.9, "top_k": None, "top_p": 0.98, "min_p": 0.02}  # of conf/live.yaml


class OnePhrase:
    """A source that gives one phrase, which ends now, and then ends or stays silent."""

    metre, tempo_bpm, name = (4, 4), 120.0, "phrase"

    def __init__(self, events: list[Event], *, ends: bool) -> None:
        self.events, self.ends, self.ended = events, ends, False

    def poll(self) -> list[Event]:
        found, self.events, self.ended = self.events, [], self.ends
        shift = time.perf_counter() - found[-1].seconds if found else 0.0
        return [event._replace(seconds=event.seconds + shift) for event in found]

    def close(self) -> None:
        """Nothing is open."""


class Nowhere:
    """A sink that plays nothing, and waits for nothing."""

    name, waits = "nowhere", False

    def send(self, event: Event) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Nothing is open."""


def phrase(bars: int, voices: int, draw: random.Random) -> list[Event]:
    """Returns a walk on the scale in eighths, and below it, for two voices, another in quarters."""
    events = []
    for voice in range(voices):
        place, length = draw.randrange(4, 8), EIGHTH * (1 + voice)
        for number in range(round(bars * 8 * EIGHTH / length)):
            place = min(max(place + draw.choice((-2, -1, -1, 1, 1, 2)), 0), len(SCALE) - 1)
            pitch = SCALE[place] - 19 * voice
            events += [Event(number * length, "on", pitch, 80), Event((number + 0.9) * length, "off", pitch)]
    return sorted(events, key=lambda event: event.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="bundled")
    parser.add_argument("--phrases", type=int, default=20, help="of each length")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    task: Any = run.load_task(find_checkpoint(args.ckpt, "outputs", best=True))[0]
    for (bars, voices), ends in product(((1, 1), (2, 1), (4, 1), (4, 2), (8, 2)), (True, False)):
        answer = ModelAnswer(task, bars=4, seed=0, cuts=SETTINGS)
        answer.warm_up((4, 4))
        draw, exchanges = random.Random(0), []
        for _ in range(args.phrases):
            source = OnePhrase(phrase(bars, voices, draw), ends=ends)
            session = Duet(answer, source, Nowhere(), silence=1.0, tempo_bpm=120, metre=(4, 4)).exchanges()
            exchanges.append(next(session))
            session.close()
        spent = sorted(1000 * each.latency for each in exchanges if each.latency is not None)
        found = {
            "case": "at once" if ends else "after a silence", "bars": bars, "voices": voices, "phrases": len(exchanges),
            "answered": len(spent), "median_ms": statistics.median(spent), "longest_ms": spent[-1],
            "notes": sum(each.answered for each in exchanges), "late": sum(each.late for each in exchanges),
        }  # fmt: skip
        append_row(args.rows, {"model": args.ckpt, **found, **context()})


if __name__ == "__main__":
    main()
