"""The configuration of MidiTok that the tokenizers use."""

from typing import Any

from etude.tokens.miditok_preparation import DENOMINATORS, NUMERATORS

DRUM_PITCHES = (27, 88)  # the drum keys of General MIDI 2; other drum notes are left out


def build(
    scheme: str,
    *,
    num_velocities: int,
    num_tempos: int,
    tempo_range: tuple[int, int],
    program_changes: bool,
    max_bars: int,
) -> Any:
    """Builds MidiTok's tokenizer: one stream for all programs, without rests, chords, pedals and pitch bends.

    Args: see `MidiTokTokenizer`.
    """
    import miditok

    config = miditok.TokenizerConfig(
        pitch_range=(0, 127),
        drums_pitch_range=DRUM_PITCHES,
        beat_res={(0, 4): 12, (4, 12): 4, (12, 32): 1},
        num_velocities=num_velocities,
        special_tokens=["PAD"],
        use_velocities=True,
        use_note_duration_programs=list(range(-1, 128)),
        use_chords=False,
        use_rests=False,
        use_tempos=True,
        use_time_signatures=True,
        use_programs=True,
        use_pitchdrum_tokens=True,
        one_token_stream_for_programs=True,
        program_changes=program_changes,
        num_tempos=num_tempos,
        tempo_range=tempo_range,
        log_tempos=True,
        delete_equal_successive_tempo_changes=True,
        delete_equal_successive_time_sig_changes=True,
        time_signature_range={denominator: list(NUMERATORS) for denominator in DENOMINATORS},
        remove_duplicated_notes=False,
        max_bar_embedding=max_bars if scheme == "Octuple" else None,
    )
    return getattr(miditok, scheme)(config)
