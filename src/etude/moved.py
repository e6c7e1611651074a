"""The present names of modules that were moved, so that older checkpoints and caches, which name them, still load.

Every class or function name that is read from a file goes through `current_name`. To move a module, add one line to `MOVED`.
"""

MOVED: dict[str, str] = {  # earlier dotted prefix: present one
    "etude.audio.vocoder": "etude.audio.griffin_lim",
    "etude.core.optimizers": "etude.optim.optimizers",
    "etude.core.schedules": "etude.optim.schedules",
    "etude.data.audio_corpora": "etude.data.audio.corpora",
    "etude.data.audio_module": "etude.data.audio.module",
    "etude.data.corpora": "etude.data.scores.corpora",
    "etude.data.module": "etude.data.scores.module",
    "etude.models.discriminators": "etude.models.mel.discriminators",
    "etude.models.grid_transformer": "etude.models.symbolic.grid_transformer",
    "etude.models.mel_generator": "etude.models.mel.generator",
    "etude.models.transformer": "etude.models.symbolic.transformer",
    "etude.models.vocos": "etude.models.wave.vocos",
    "etude.music.bpe": "etude.tokens.bpe",
    "etude.music.miditok_tokenizer": "etude.tokens.miditok",
    "etude.music.satb": "etude.tokens.satb",
    "etude.music.tokenizer": "etude.tokens.tokenizer",
    "etude.tasks.evaluation": "etude.evaluation.scores",
    "etude.tasks.restyle": "etude.transfer.restyle",
    "etude.tasks.samples": "etude.generation.samples",
    "etude.tasks.style_evaluation": "etude.evaluation.styles",
    "etude.tasks.style_samples": "etude.transfer.samples",
    "etude.techniques.balance": "etude.techniques.loss.balance",
    "etude.techniques.bandit": "etude.techniques.data.bandit",
    "etude.techniques.curriculum": "etude.techniques.data.curriculum",
    "etude.techniques.distillation": "etude.techniques.loss.distillation",
    "etude.techniques.early_stopping": "etude.techniques.guards.early_stopping",
    "etude.techniques.ema": "etude.techniques.weights.ema",
    "etude.techniques.fill_frames": "etude.techniques.data.fill_frames",
    "etude.techniques.finite": "etude.techniques.guards.finite",
    "etude.techniques.grow_layers": "etude.techniques.weights.grow_layers",
    "etude.techniques.length_warmup": "etude.techniques.data.length_warmup",
    "etude.techniques.live_quality": "etude.techniques.guards.live_quality",
    "etude.techniques.loss_schedule": "etude.techniques.loss.loss_schedule",
    "etude.techniques.musical_domain": "etude.techniques.loss.musical_domain",
    "etude.techniques.schedule_free": "etude.techniques.weights.schedule_free",
    "etude.techniques.self_paced": "etude.techniques.loss.self_paced",
    "etude.techniques.stability": "etude.techniques.guards.stability",
    "etude.techniques.stages": "etude.techniques.optim.stages",
    "etude.techniques.swa": "etude.techniques.weights.swa",
    "etude.techniques.switch_optimizer": "etude.techniques.optim.switch_optimizer",
}


def current_name(name: str) -> str:
    """Returns the dotted `name` with its longest prefix in `MOVED` replaced; only whole parts between dots match."""
    matching = [old for old in MOVED if name == old or name.startswith(f"{old}.")]
    if not matching:
        return name
    old = max(matching, key=len)
    return MOVED[old] + name[len(old) :]
