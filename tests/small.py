"""The smallest model that a test trains, as the settings that make it."""
SHAPE = dict(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, vocab_size=300)


def small(**more) -> str:
    """Return overrides for the smallest model, as the command line takes them; `more` is added, or takes the place of what is there."""
    return " ".join(f"{name}={value}" for name, value in (SHAPE | more).items())
