"""Finds the notes of a recording with basic-pitch's network, run by ONNX Runtime.

Shapes: n samples, w windows, f frames, 88 keys of the piano from A0.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from etude.audio.resampling import Resampler
from etude.metrics.audio.notes import Floats, decode_notes

SAMPLE_RATE, HOP = 22_050, 256
WINDOW, WINDOW_FRAMES = 43_844, 172  # samples that the network takes, and the frames that it gives
EDGE = 15  # frames at both ends of a window that are left to the neighbouring windows
INNER = WINDOW_FRAMES - 2 * EDGE - 1
AT_ONCE = 8  # windows


class NoteFinder:
    """Transcribes mono audio of any instruments and number of voices into notes.

    The network reads windows of 2 s; they overlap by 31 frames, of which the outer half is left out.

    Raises:
        ValueError: the packages with the network and its runtime are not installed.

    Source: Bittner et al. 2022, "A lightweight instrument-agnostic model for polyphonic note transcription and multipitch
    estimation"; the network is the one in the package basic-pitch. Its frames are 11.6 ms apart.
    """

    def __init__(self) -> None:
        spec = find_spec("basic_pitch")
        missing = spec is None or not spec.submodule_search_locations or find_spec("onnxruntime") is None
        if missing or spec is None or not spec.submodule_search_locations:
            raise ValueError(
                "note F1 needs the network in the package basic-pitch and onnxruntime; install them without their dependencies: "
                "pip install --no-deps basic-pitch onnxruntime flatbuffers"
            )
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # errors; it warns of its own optimisations
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        path = Path(spec.submodule_search_locations[0]) / "saved_models" / "icassp_2022" / "nmp.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, samples_n: ArrayLike, *, sample_rate: int) -> Floats:
        """Returns the notes of mono audio as rows of (onset in seconds, end in seconds, MIDI pitch), see `decode_notes`.

        Raises:
            ValueError: no samples.
        """
        sounding, onsets = self.posteriors(samples_n, sample_rate=sample_rate)
        return decode_notes(sounding, onsets, frame_rate=SAMPLE_RATE / HOP)

    def posteriors(self, samples_n: ArrayLike, *, sample_rate: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the probabilities [f, 88] that a key sounds and that a note begins, at frames of 256 / 22,050 s."""
        wave_1n = torch.as_tensor(np.asarray(samples_n, np.float32))[None]
        if not wave_1n.shape[1]:
            raise ValueError("samples are empty; give at least one")
        resampler = Resampler(sample_rate, SAMPLE_RATE)
        wave = torch.cat([resampler.push(wave_1n), resampler.flush()], 1)[0].numpy()
        frames = -(-len(wave) // HOP)
        count = -(-frames // INNER)
        padded = np.pad(wave, (EDGE * HOP, count * INNER * HOP + WINDOW - len(wave)))
        windows = np.stack([padded[w * INNER * HOP :][:WINDOW] for w in range(count)])[:, :, None]
        sounding: list[NDArray[np.float32]] = []
        onsets: list[NDArray[np.float32]] = []
        for start in range(0, count, AT_ONCE):
            inputs = {self._input: windows[start : start + AT_ONCE]}
            made = self._session.run(["StatefulPartitionedCall:1", "StatefulPartitionedCall:2"], inputs)
            for found, values in zip((sounding, onsets), made, strict=True):
                found.append(values[:, EDGE : EDGE + INNER].reshape(-1, 88))
        whole = [np.concatenate(found)[:frames] for found in (sounding, onsets)]
        return whole[0], whole[1]
