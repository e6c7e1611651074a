"""Every defect is a pure function of strength and generator, does what its unit says, and says where it is."""

from itertools import pairwise

import numpy as np
import pytest

from etude.audio.degradations import (
    DEFECTS,
    DEGRADATIONS,
    LEVEL_DB,
    check_defects,
    degrade,
    normalise_level,
    quality,
)

RATE = 16_000
STRENGTHS = (0.1, 0.4, 0.7, 1.0)


def music(seconds: float = 2.0) -> np.ndarray:
    """Chords of decaying partials, twice a second."""
    time = np.arange(round(seconds * RATE)) / RATE
    partials = (220, 277, 330, 440, 880, 1320, 2640)
    tones = sum(np.sin(2 * np.pi * hertz * time) / place for place, hertz in enumerate(partials, 1))
    return normalise_level((tones * np.exp(-(time % 0.5) * 4)).astype(np.float32))


def change(name: str, strength: float, seed: int = 3) -> np.ndarray:
    """What the defect adds to the music."""
    clean = music()
    return DEGRADATIONS[name](clean, strength, np.random.default_rng(seed), RATE).samples_n.astype(np.float64) - clean


def db(ratio: float) -> float:
    return float(20 * np.log10(ratio))


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


@pytest.mark.parametrize("name", DEFECTS)
def test_equal_generators_give_equal_audio_of_the_same_length_and_leave_the_input(name: str) -> None:
    clean = music()
    kept = clean.copy()
    one, two = (DEGRADATIONS[name](clean, 0.5, np.random.default_rng(7), RATE) for _ in range(2))
    other = DEGRADATIONS[name](clean, 0.5, np.random.default_rng(8), RATE)
    assert np.array_equal(one.samples_n, two.samples_n) and np.array_equal(one.marks_n, two.marks_n)
    assert not np.array_equal(one.samples_n, other.samples_n) and np.array_equal(clean, kept)
    assert one.samples_n.shape == one.marks_n.shape == clean.shape and one.samples_n.dtype == np.float32
    assert np.isfinite(one.samples_n).all() and one.marks_n.any()


@pytest.mark.parametrize("name", [name for name in DEFECTS if name != "wow"])  # whose difference is that of other phases
@pytest.mark.parametrize("seed", range(3))
def test_a_stronger_defect_changes_more(name: str, seed: int) -> None:
    sizes = [rms(change(name, strength, seed)) for strength in STRENGTHS]
    assert all(later > earlier for earlier, later in pairwise(sizes)), sizes


@pytest.mark.parametrize("name", [name for name in DEFECTS if name != "wow"])
@pytest.mark.parametrize("seed", range(6))
def test_nothing_changes_where_it_is_not(name: str, seed: int) -> None:
    clean = music()
    found = DEGRADATIONS[name](clean, 0.8, np.random.default_rng(seed), RATE)
    assert np.abs(found.samples_n - clean)[~found.marks_n].max(initial=0) < 1e-6


def everywhere(name: str, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Clean and degraded music, by a generator that puts the defect everywhere."""
    for seed in range(20):
        found = DEGRADATIONS[name](music(), strength, np.random.default_rng(seed), RATE)
        if found.marks_n.all():
            return music().astype(np.float64), found.samples_n.astype(np.float64)
    raise AssertionError("no generator puts it everywhere")


@pytest.mark.parametrize(("strength", "share"), [(0.0, 0.01), (1.0, 0.3)])
def test_clipping_limits_the_share_that_it_says(strength: float, share: float) -> None:
    _, found = everywhere("clipping", strength)
    assert np.mean(np.abs(found) >= np.abs(found).max() - 1e-6) == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize(
    ("name", "strength", "level"), [("hum", 0.0, -26), ("hum", 1.0, 0), ("hiss", 0.0, -40), ("hiss", 1.0, -10)]
)
def test_hum_and_hiss_have_the_level_that_they_say(name: str, strength: float, level: float) -> None:
    clean, found = everywhere(name, strength)
    assert db(rms(found - clean) / rms(clean)) == pytest.approx(level, abs=0.1)


def test_hum_lies_at_multiples_of_the_mains() -> None:
    clean, found = everywhere("hum", 1.0)
    power = np.abs(np.fft.rfft((found - clean) * np.hanning(len(clean)))) ** 2
    hertz = np.arange(len(power)) / 2.0
    base = next(mains for mains in (50, 60) if power[np.abs(hertz - mains) < 1.5].sum() > 0.01 * power.sum())
    near = np.abs(hertz / base - np.round(hertz / base)) * base < 3 + 0.004 * hertz
    assert power[near & (hertz < 10.5 * base)].sum() > 0.98 * power.sum()


def test_dropouts_are_silent_and_as_long_as_they_say() -> None:
    found = DEGRADATIONS["dropout"](music(), 1.0, np.random.default_rng(0), RATE)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], found.marks_n, [0]]).astype(int)))
    lengths = (edges[1::2] - edges[::2]) / RATE
    assert lengths[0] == pytest.approx(0.3, abs=0.01) or lengths.max() > 0.3  # or two that overlap
    inner = np.convolve(found.marks_n, np.ones(65), "same") == 65
    assert inner.any() and not found.samples_n[inner].any()


def test_a_click_has_the_peak_that_it_says() -> None:
    quiet = normalise_level(np.random.default_rng(0).standard_normal(RATE).astype(np.float32)) * np.float32(0.01)
    found = DEGRADATIONS["click"](quiet, 1.0, np.random.default_rng(1), RATE)
    assert db(float(np.abs(found.samples_n - quiet).max()) / rms(quiet)) == pytest.approx(28, abs=1.5)
    assert 0 < found.marks_n.mean() < 0.02


def test_the_codec_removes_what_lies_above_its_band() -> None:
    noise = normalise_level(np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32))
    for seed in range(4):
        found = DEGRADATIONS["codec"](noise, 1.0, np.random.default_rng(seed), RATE)
        before, after = (np.abs(np.fft.rfft(x[found.marks_n])) ** 2 for x in (noise, found.samples_n))
        high = slice(round(0.4 * len(before)), None)  # of the band, which ends at a quarter of it, varied by a seventh
        assert after[high].sum() < 0.02 * before[high].sum()


def test_wow_moves_a_tone_by_the_share_that_it_says() -> None:
    time = np.arange(4 * RATE) / RATE
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    for seed in range(12):
        found = DEGRADATIONS["wow"](tone, 1.0, np.random.default_rng(seed), RATE)
        if found.marks_n.all():
            break
    spectrum = np.fft.fft(found.samples_n)
    spectrum[len(spectrum) // 2 :] = 0
    hertz = np.diff(np.unwrap(np.angle(np.fft.ifft(spectrum)))) * RATE / (2 * np.pi)
    inner = hertz[RATE // 4 : -RATE // 4]
    assert np.abs(inner - 1000).max() == pytest.approx(60, abs=6)


def test_defects_come_in_the_order_of_a_recordings_life_and_each_step_is_kept() -> None:
    given = {"codec": 0.3, "wow": 0.2, "hum": 0.5}
    samples, steps = degrade(music(), given, np.random.default_rng(2), RATE)
    assert list(steps) == ["wow", "hum", "codec"] and np.array_equal(samples, steps["codec"].samples_n)
    generator = np.random.default_rng(2)
    by_hand = music()
    for name in steps:
        by_hand = DEGRADATIONS[name](by_hand, given[name], generator, RATE).samples_n
    assert np.array_equal(samples, by_hand)
    clean, nothing = degrade(music(), {}, np.random.default_rng(2), RATE)
    assert np.array_equal(clean, music()) and not nothing


def test_the_level_is_set_and_silence_stays() -> None:
    assert db(rms(normalise_level(music() * np.float32(0.003)))) == pytest.approx(LEVEL_DB, abs=0.01)
    assert not normalise_level(np.zeros(100, np.float32)).any()


def test_quality_falls_with_every_strength_from_ten_to_one() -> None:
    assert quality({}) == 10 and quality({"hum": 0.0}) == 10 and quality({"hum": 1.0}) == 1
    assert quality({"hum": 0.5}) == pytest.approx(5.5)
    assert quality({"hum": 0.5, "click": 0.2}) == pytest.approx(1 + 9 * 0.5 * 0.8)
    assert quality({"hum": 0.5, "click": 0.2}) < quality({"hum": 0.5}) < quality({"hum": 0.4})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "data.defects is empty; name at least one of click"),
        (["hum", "rumble"], "'rumble' is not one of click, clipping"),
        (["hum", "hum"], "names a defect twice"),
    ],
)
def test_unknown_defects_are_told(given: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_defects(given)


def test_strengths_out_of_range_and_audio_of_no_length_are_told() -> None:
    with pytest.raises(ValueError, match=r"hum=1\.5"):
        degrade(music(), {"hum": 1.5}, np.random.default_rng(0), RATE)
    with pytest.raises(ValueError, match=r"0\.05 s; degradations need at least 0\.1 s"):
        degrade(np.zeros(800, np.float32), {}, np.random.default_rng(0), RATE)
