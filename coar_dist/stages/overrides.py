"""Whether what a command line asks for has an effect on the stages that it runs."""

from __future__ import annotations

from collections.abc import Sequence

from coar_dist.config.schema import PLAN, Config
from coar_dist.errors import ConfigError
from coar_dist.stages.pipeline import PIPELINE
from coar_dist.stages.stage import covers

_GROUP_KEYS = {"estimator": ("budget", "gradients")}
"""What an option group sets whose name is no key of the configuration."""


def check_overrides(config: Config, overrides: Sequence[str]) -> None:
    """Check that a stage of the command reads every option that is given: the others read what the run was made with.

    A plan is of the whole command, so it takes the options of all stages.

    Args:
        config: the whole configuration.
        overrides: what the command line says, ``key=value`` each.

    Raises:
        ConfigError: an option has no effect; the message says which stage reads it.
    """
    if config.stages == [PLAN]:
        return
    stages = [stage for stage in PIPELINE if stage.name != PLAN]
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")
        keys = _GROUP_KEYS.get(name, (name,))
        readers = [stage for stage in stages if any(covers(stage.all_keys, key) for key in keys)]
        at_work = [stage for stage in readers if stage.name in config.stages]
        if not readers or any(covers(stage.keys_read(config), key) for stage in at_work for key in keys):
            continue
        conditions = [(other, read) for stage in at_work for other, read in stage.reads_with.items()]
        ways = [f"set {other}" for other, read in conditions if any(covers(read, key) for key in keys)]
        ways += [f"add the {stage.name} stage" for stage in readers if stage not in at_work]
        raise ConfigError(
            f"{override} has no effect with stages={config.stages}: what these stages need of it they read from the "
            f"run directory. Leave it out, or {' or '.join(ways)}."
        )
