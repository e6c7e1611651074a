"""Tells when audio files hold more than the mel contract keeps."""

from collections.abc import Sequence

from etude.audio.files import AudioError, inspect_audio
from etude.audio.mel import MelContract
from etude.data.audio.recordings import FileRecording, Recording

FULL_BAND_HZ = 44_100  # the rate of a CD
LOOKED_AT = 100  # headers that are read, spread over all files


def left_out_band(recordings: Sequence[Recording], contract: MelContract) -> list[str]:
    """Returns a line if most files have a sample rate of 44.1 kHz or more and the contract's is lower; otherwise nothing.

    The headers of at most `LOOKED_AT` files are read, evenly spread; files that can't be opened don't count.
    """
    if contract.sample_rate >= FULL_BAND_HZ:
        return []
    paths = [recording.path for recording in recordings if isinstance(recording, FileRecording)]
    rates = []
    for path in paths[:: -(-len(paths) // LOOKED_AT) or 1]:
        try:
            rates.append(inspect_audio(path).sample_rate)
        except AudioError:
            continue
    if 2 * sum(rate >= FULL_BAND_HZ for rate in rates) <= len(rates):
        return []
    return [
        f"most files have {FULL_BAND_HZ:,} samples a second or more, of which this data.contract keeps what lies below "
        f"{contract.f_max:,.0f} Hz; contract=44k keeps what lies below 16,000 Hz, and takes longer to train"
    ]
