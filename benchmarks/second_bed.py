"""A second test bed of style transfer, on which nothing is ever chosen: other tunes, arranger, synthesizer and soundfont.

    python benchmarks/second_bed.py --out outputs/second_bed        # needs fluidsynth and an .sf2 file other than the default
    python benchmarks/style_transfer.py --bed outputs/second_bed    # measures on it; any folder of this form will do

The folder holds SPLIT/STYLE/TUNE.flac: for `train` other tunes in each style, for `val` and `test` the same tunes in all styles.
The tunes are those of Aird's Airs, which the first bed (Ryan's Mammoth, O'Neill's) does not use. The arranger below shares no
code with `etude.music.arrangement`: it harmonises by whole bars, with instruments, patterns and registers of its own.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from symusic import Note, Score, Tempo, Track

from etude.audio.files import AUDIO_SUFFIXES
from etude.data.audio.corpora import AudioCorpus, Failures
from etude.data.audio.recordings import FileRecording, Recording
from etude.data.scores.corpora import Folk, Music21Corpus
from etude.music.score import read_pieces
from etude.render.scores import render, write_audio
from etude.render.synthesizers import check_synthesizer

STYLES = ("folk", "rock", "jazz")
COUNTS = {"val": 12, "test": 12, "train": 48}  # tunes; of train for each style
SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
OF_EACH = 40  # tunes; reading one takes a tenth of a second
SECONDS, RATE, BPM = 20.0, 44_100, 108
Hit = tuple[float, float, int, int]  # beat, length in beats, pitch, velocity


# --- reading the bed ---


@dataclass(frozen=True)
class SplitFolder(AudioCorpus):
    """Audio files in SPLIT/STYLE/ below a folder; the styles and splits are those of the folders.

    root: the folder.
    paired: None, since the splits tell which songs are paired.
    """

    root: str = ""
    paired: bool | None = None

    def available(self) -> list[str]:
        found = [style for style in STYLES if all((Path(self.root) / split / style).is_dir() for split in COUNTS)]
        if len(found) < 2:
            raise ValueError(f"{self.root} holds no bed; give a folder with SPLIT/STYLE/*.flac, SPLIT being {', '.join(COUNTS)}")
        return found

    def recordings(self, styles: Sequence[str], *, cache_dir: Path, num_workers: int) -> tuple[list[Recording], Failures]:
        found: list[Recording] = []
        for split in COUNTS:
            for style in styles:
                listed = sorted((Path(self.root) / split / style).iterdir())
                paths = [path for path in listed if path.suffix in AUDIO_SUFFIXES and path.name[0] != "."]
                for path in paths:
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    about = {"style": style, "song": path.stem, "split": split, "source": self.root, "licence": "unknown"}
                    found.append(
                        FileRecording(name=f"{split}/{style}/{path.name}", group=path.stem, path=path, sha256=digest, **about)
                    )
        return found, []


# --- making it ---


class Airds(Music21Corpus):
    """Aird's Airs, six files of some 200 tunes each."""

    collections = Folk.collections[2:]


def tunes() -> Iterator[tuple[str, Score]]:
    """Yields (name, score) of tunes with 40 notes or more, of the first `OF_EACH` of each of Aird's parts, in a hash's order."""
    found = [
        (f"{source.path.stem}_{number}", score)
        for source in Airds().files()
        for number, (_, score) in enumerate(islice(read_pieces(source.path), OF_EACH))
    ]
    for name, score in sorted(found, key=lambda item: hashlib.sha256(item[0].encode()).digest()):
        if sum(len(track.notes) for track in score.tracks) >= 40:
            yield name, score


def melody_of(score: Score) -> tuple[list[Hit], float]:
    """Returns the highest line of a score in beats, folded into the octaves from D4, and the beats of a bar."""
    beat = float(score.ticks_per_quarter)
    notes = sorted((n for t in score.tracks for n in t.notes), key=lambda n: (n.time, -n.pitch))
    line: list[Hit] = []
    for note in notes:
        if line and note.time / beat - line[-1][0] < 1e-6:
            continue
        if line:
            line[-1] = (line[-1][0], min(line[-1][1], note.time / beat - line[-1][0]), *line[-1][2:])
        line.append((note.time / beat, note.duration / beat, note.pitch, 92))
    shift = 12 * round((71 - float(np.median([hit[2] for hit in line]))) / 12)
    metre = score.time_signatures[0] if len(score.time_signatures) else None
    bar = 4.0 if metre is None else 4.0 * metre.numerator / metre.denominator
    return [(at, length, pitch + shift, velocity) for at, length, pitch, velocity in line], bar


def harmony(line: Sequence[Hit], bar: float, bars: int) -> list[tuple[int, int, int]]:
    """Returns (root, third, fifth) of each bar: of the six common triads of the scale, the one that fits its melody best, with a
    preference for the fifth before, and the tonic at the end."""
    weight = np.zeros(12)
    for _, length, pitch, _ in line:
        weight[pitch % 12] += length
    scale = (0, 2, 4, 5, 7, 9, 11)
    tonic = max(
        range(12), key=lambda t: sum(weight[(t + s) % 12] for s in scale) + 0.2 * weight[t] + 0.2 * (t == line[-1][2] % 12)
    )
    triads = [tuple((tonic + scale[(d + step) % 7]) % 12 for step in (0, 2, 4)) for d in (0, 3, 4, 5, 1, 2)]
    found: list[tuple[int, int, int]] = []
    for number in range(bars):
        own = np.zeros(12)
        for at, length, pitch, _ in line:
            own[pitch % 12] += max(0.0, min(at + length, (number + 1) * bar) - max(at, number * bar))
        last = number == bars - 1
        fits = [own[list(t)].sum() + 0.4 * own[t[0]] - 0.15 * place + (9 if last and place == 0 else 0)
                for place, t in enumerate(triads)]  # fmt: skip
        found.append(triads[int(np.argmax(fits))])  # type: ignore[arg-type]
    return found


def near(pitch_class: int, centre: int) -> int:
    """Returns the pitch of a class that is nearest to `centre`."""
    return centre + (pitch_class - centre + 6) % 12 - 6


def folk(line: list[Hit], chords: list[tuple[int, int, int]], bar: float) -> list[tuple[int, list[Hit]]]:
    """Flute over broken chords of a nylon guitar and a cello that holds the root."""
    guitar, cello = [], []
    for number, (root, third, fifth) in enumerate(chords):
        start, steps = number * bar, int(bar * 2)
        order = [near(root, 50), near(fifth, 55), near(third, 60), near(fifth, 64)]
        guitar += [(start + 0.5 * i, 0.9, order[(i % 4) if i % 8 < 4 else 3 - i % 4], 74 - 8 * (i % 2)) for i in range(steps)]
        cello.append((start, bar * 0.95, near(root, 43), 58))
    return [(73, line), (24, guitar), (42, cello)]


def rock(line: list[Hit], chords: list[tuple[int, int, int]], bar: float) -> list[tuple[int, list[Hit]]]:
    """Overdriven guitar two octaves wide over palm-muted eighths, a picked bass and open hats."""
    lead = [(at, length, pitch - 12, 100) for at, length, pitch, _ in line]
    muted, bass, drums = [], [], []
    for number, (root, _, fifth) in enumerate(chords):
        start, steps = number * bar, int(bar * 2)
        low = near(root, 45)
        for i in range(steps):
            length = 0.45 if i % 4 else 0.9
            muted += [(start + 0.5 * i, length, pitch, 96 if i % 4 == 0 else 70) for pitch in (low, near(fifth, low + 6))]
            bass.append((start + 0.5 * i, 0.45, low - 12, 98 - 14 * (i % 2)))
            drums.append((start + 0.5 * i, 0.2, 46 if i % 2 == 0 else 42, 66))
        drums += [(start + i, 0.2, 38 if i % 2 else 36, 108) for i in range(int(bar))]
        drums += [(start + bar - 1.5, 0.2, 36, 90), *([(start, 0.5, 49, 90)] if number % 8 == 0 else [])]
    return [(29, lead), (30, muted), (34, bass), (-1, drums)]


def jazz(line: list[Hit], chords: list[tuple[int, int, int]], bar: float) -> list[tuple[int, list[Hit]]]:
    """Clarinet over an electric piano with rootless chords, a walking bass that leads on, and a ride with skipped beats."""
    swung = [(_swing(at), _swing(at + length) - _swing(at), pitch - 5 + 5, 88) for at, length, pitch, _ in line]
    piano, bass, drums = [], [], []
    for number, (root, third, fifth) in enumerate(chords):
        start, following = number * bar, chords[min(number + 1, len(chords) - 1)][0]
        seventh = (fifth + (3 if (fifth - third) % 12 == 4 else 4)) % 12
        voicing = [near(third, 58), near(seventh, 62), near((root + 2) % 12, 65)]
        piano += [(_swing(start + at), length, pitch, 66) for at, length in ((0.0, 0.6), (1.5, 0.4)) for pitch in voicing]
        walk = [near(root, 38), near(third, 40), near(fifth, 43), near(following, 38) - 1]
        count = max(1, int(bar))
        bass += [(start + i, 0.95, walk[i if i < count - 1 else 3] if i < 4 else walk[2], 90) for i in range(count)]
        for i in range(count):
            drums.append((start + i, 0.3, 51, 84))
            drums += [(_swing(start + i + 0.5), 0.3, 51, 64), (start + i, 0.2, 44, 76)] if i % 2 else []
    return [(71, swung), (4, piano), (32, bass), (-1, drums)]


def _swing(beat: float) -> float:
    whole, part = divmod(beat, 1.0)
    return whole + (part * 1.3 if part < 0.5 else 0.65 + (part - 0.5) * 0.7)


def arranged(tune: Score, style: str) -> Score:
    """Returns a tune in a style, at `BPM` beats a minute, cut to the whole bars within `SECONDS`."""
    line, bar = melody_of(tune)
    bars = max(1, min(int(SECONDS * BPM / 60 / bar), int(np.ceil((line[-1][0] + line[-1][1]) / bar))))
    line = [(at, min(length, bars * bar - at), pitch, velocity) for at, length, pitch, velocity in line if at < bars * bar]
    chords = harmony(line, bar, bars)
    made = Score(480)
    made.tempos.append(Tempo(0, BPM))
    for program, hits in {"folk": folk, "rock": rock, "jazz": jazz}[style](line, chords, bar):
        track = Track(program=max(0, program), is_drum=program < 0)
        for at, length, pitch, velocity in hits:
            track.notes.append(Note(round(480 * at), max(1, round(480 * length)), pitch, velocity))
        made.tracks.append(track)
    return made


def render_one(job: tuple[Path, bytes, str, Path]) -> None:
    """Writes the audio of one tune in one style, if it is not there yet; without the last chord's decay, as on the first bed."""
    path, score, style, soundfont = job
    if path.is_file():
        return
    made = arranged(Score.from_midi(score), style)
    sound = render(made, sample_rate=RATE, soundfont=soundfont, synthesizer="fluidsynth")
    end = max(note.end for track in made.tracks for note in track.notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    write_audio(aside, sound[:, : round(end / 480 * 60 / BPM * RATE)], RATE)
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/second_bed"))
    parser.add_argument("--soundfont", type=Path, default=SOUNDFONT)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    try:
        check_synthesizer("fluidsynth", args.soundfont)
    except ValueError as error:
        sys.exit(f"error: {error}; or give style_transfer.py a folder that was rendered elsewhere, --bed FOLDER")
    jobs, supply = [], tunes()
    for split, count in COUNTS.items():
        for number in range(count * (len(STYLES) if split == "train" else 1)):
            name, score = next(supply)
            for style in [STYLES[number % len(STYLES)]] if split == "train" else STYLES:
                jobs.append((args.out / split / style / f"{name}.flac", score.dumps_midi(), style, args.soundfont))
    with ProcessPoolExecutor(args.workers) as pool:
        list(pool.map(render_one, jobs, chunksize=4))
    print(f"{len(jobs)} files in {args.out}")


if __name__ == "__main__":
    main()
