"""General-MIDI instruments: the name and playable range of each program, and the names of the drum keys.

Ranges are sounding MIDI pitches that players of the instrument usually play. Programs that imitate no instrument have the
range of a synthesizer (36-96) or of a piano keyboard (21-108). Names are those of General MIDI System Level 1, shortened.
Ranges follow the recommendations of General-MIDI manuals approximately; they are used only to limit transposition.
"""

_TABLE = """
Acoustic Grand Piano 21-108, Bright Acoustic Piano 21-108, Electric Grand Piano 21-108, Honky-tonk Piano 21-108,
Electric Piano 1 28-103, Electric Piano 2 28-103, Harpsichord 41-89, Clavinet 36-96,
Celesta 60-108, Glockenspiel 72-108, Music Box 60-84, Vibraphone 53-89,
Marimba 48-84, Xylophone 65-96, Tubular Bells 60-77, Dulcimer 60-84,
Drawbar Organ 36-96, Percussive Organ 36-96, Rock Organ 36-96, Church Organ 21-108,
Reed Organ 36-96, Accordion 53-89, Harmonica 60-84, Tango Accordion 53-89,
Nylon Guitar 40-84, Steel Guitar 40-84, Jazz Guitar 40-86, Clean Guitar 40-86,
Muted Guitar 40-86, Overdriven Guitar 40-86, Distortion Guitar 40-86, Guitar Harmonics 40-86,
Acoustic Bass 28-55, Fingered Bass 28-55, Picked Bass 28-55, Fretless Bass 28-55,
Slap Bass 1 28-55, Slap Bass 2 28-55, Synth Bass 1 28-55, Synth Bass 2 28-55,
Violin 55-96, Viola 48-84, Cello 36-72, Contrabass 28-55,
Tremolo Strings 28-96, Pizzicato Strings 28-96, Harp 23-103, Timpani 36-57,
String Ensemble 1 28-96, String Ensemble 2 28-96, Synth Strings 1 36-96, Synth Strings 2 36-96,
Choir Aahs 48-79, Voice Oohs 48-79, Synth Voice 48-84, Orchestra Hit 48-72,
Trumpet 58-94, Trombone 34-75, Tuba 29-55, Muted Trumpet 58-82,
French Horn 41-77, Brass Section 36-96, Synth Brass 1 36-96, Synth Brass 2 36-96,
Soprano Sax 54-87, Alto Sax 49-80, Tenor Sax 42-75, Baritone Sax 37-68,
Oboe 58-91, English Horn 52-81, Bassoon 34-64, Clarinet 50-91,
Piccolo 74-108, Flute 60-96, Recorder 60-96, Pan Flute 60-96,
Blown Bottle 60-96, Shakuhachi 55-84, Whistle 60-96, Ocarina 60-84,
Square Lead 21-108, Saw Lead 21-108, Calliope Lead 36-96, Chiff Lead 36-96,
Charang Lead 36-96, Voice Lead 36-96, Fifths Lead 36-96, Bass and Lead 21-108,
New Age Pad 36-96, Warm Pad 36-96, Polysynth Pad 36-96, Choir Pad 36-96,
Bowed Pad 36-96, Metallic Pad 36-96, Halo Pad 36-96, Sweep Pad 36-96,
Rain 36-96, Soundtrack 36-96, Crystal 36-96, Atmosphere 36-96,
Brightness 36-96, Goblins 36-96, Echoes 36-96, Sci-fi 36-96,
Sitar 48-77, Banjo 48-84, Shamisen 50-79, Koto 55-84,
Kalimba 48-79, Bagpipe 36-77, Fiddle 55-96, Shanai 48-72,
Tinkle Bell 72-84, Agogo 60-72, Steel Drums 52-76, Woodblock 21-108,
Taiko Drum 21-108, Melodic Tom 21-108, Synth Drum 21-108, Reverse Cymbal 21-108,
Guitar Fret Noise 21-108, Breath Noise 21-108, Seashore 21-108, Bird Tweet 21-108,
Telephone Ring 21-108, Helicopter 21-108, Applause 21-108, Gunshot 21-108
"""
_ROWS = [row.strip().rpartition(" ") for row in _TABLE.replace("\n", " ").split(",")]

INSTRUMENT_NAMES: tuple[str, ...] = tuple(name for name, _, _ in _ROWS)
INSTRUMENT_RANGES: tuple[tuple[int, int], ...] = tuple(
    (int(limits.split("-")[0]), int(limits.split("-")[1])) for _, _, limits in _ROWS
)

DRUM_NAMES: dict[int, str] = {
    35: "Kick 2",
    36: "Kick",
    37: "Side stick",
    38: "Snare",
    39: "Clap",
    40: "Snare 2",
    41: "Low floor tom",
    42: "Closed hi-hat",
    43: "High floor tom",
    44: "Pedal hi-hat",
    45: "Low tom",
    46: "Open hi-hat",
    47: "Low-mid tom",
    48: "High-mid tom",
    49: "Crash",
    50: "High tom",
    51: "Ride",
    52: "China",
    53: "Ride bell",
    54: "Tambourine",
    55: "Splash",
    56: "Cowbell",
    57: "Crash 2",
    58: "Vibraslap",
    59: "Ride 2",
    60: "High bongo",
    61: "Low bongo",
    62: "Mute high conga",
    63: "High conga",
    64: "Low conga",
    65: "High timbale",
    66: "Low timbale",
    67: "High agogo",
    68: "Low agogo",
    69: "Cabasa",
    70: "Maracas",
    71: "Short whistle",
    72: "Long whistle",
    73: "Short guiro",
    74: "Long guiro",
    75: "Claves",
    76: "High woodblock",
    77: "Low woodblock",
    78: "Mute cuica",
    79: "Open cuica",
    80: "Mute triangle",
    81: "Open triangle",
}  # Source: General MIDI System Level 1, percussion key map
