"""What ``conf/`` computes of its own values."""

from omegaconf import DictConfig, ListConfig, OmegaConf


def _as_choices(values: ListConfig) -> str:
    """A list as Hydra's sweeper wants it: ``[8, 13] -> "8,13"``."""
    return ",".join(map(str, values))


def _divisible(dim: int, targets: ListConfig) -> int:
    """The largest d up to ``dim`` that divides into an A and a B for each target."""
    return dim - dim % (2 * len(targets))


def _epochs(budget: int, learning_rates: ListConfig) -> int:
    """How many epochs with each of the learning rates so many calls pay for; at least one."""
    from dfolora.methods.gradient.training import PASSES  # late, for its package takes seconds

    return max(1, budget // (PASSES * len(learning_rates)))


def _patterns(prompts: DictConfig, variants: ListConfig) -> list[str]:
    """The patterns of some of a task's prompts, for either kind of model, where it has them."""
    by_kind = [prompts[variant] for variant in variants if variant in prompts]
    return [*dict.fromkeys(prompt.pattern for each in by_kind for prompt in each.values())]


OmegaConf.register_new_resolver("choices", _as_choices)
OmegaConf.register_new_resolver("divisible", _divisible)
OmegaConf.register_new_resolver("epochs", _epochs)
OmegaConf.register_new_resolver("patterns", _patterns)
