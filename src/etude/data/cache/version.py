"""The versions of what caches hold. A cache of another version is left alone and a new one is made beside it.

Raise a version (any other text will do; count up) with every change of code after which the same files would give other contents,
be it a bug that is mended or a feature that is added. Text, names and the place of the code don't matter. What depends on a
version, such as a manifest on the scores, follows by itself.

The versions also name the data that a checkpoint was trained on: after a change a run can't be continued on the new data, since
its batches would be others. The texts of twelve digits are those of the first release, kept so that its checkpoints go on.
"""

# Reading a file into scores, what the manifest tells about each, and finding duplicates: music/score.py, music/notation.py,
# data/scores/jsb.py, data/scores/facts.py, data/scores/duplicates.py, music/theory.py.
SCORES = "5d10e9bd9c19"

# The rows of a manifest and how splits are drawn: data/scores/manifest.py, data/scores/splits.py.
MANIFEST = "610fa1b069a7"

# Features of complexity: music/complexity.py for scores, audio/complexity.py for mels.
SCORE_COMPLEXITY = "39bb80824cf1"
AUDIO_COMPLEXITY = "188313e3842a"

# The ids that a tokenizer gives a score, by its class; a change of vocabulary or parameters shows by itself.
TOKENS = {
    # tokens/miditok.py, tokens/miditok_preparation.py, tokens/miditok_config.py, tokens/plans.py, music/form.py
    "MidiTokTokenizer": "d85669b17e09",
    "SatbGrid": "6cc15d191fc2",  # tokens/satb.py, tokens/satb_voices.py
}

# Log mels of samples: audio/mel.py.
MELS = "a7da18d34a31"

# Samples of an audio file at another rate: audio/files.py, audio/resampling.py.
DECODING = "7a2a32bb9259"

# Samples of an arranged score: music/arrangement.py, render/scores.py, render/synthesizers.py, data/audio/recordings.py.
ARRANGING = "d6b6411b80ab"

# How all of it is kept on disk: data/cache/store.py, music/score_bytes.py, data/scores/manifest.py, data/scores/view.py.
FORMAT = 2


def tokens_version(tokenizer: str) -> str:
    """The version of the ids of a class of tokenizers; that of a class which stands in no table is the first."""
    return TOKENS.get(tokenizer, "1")
