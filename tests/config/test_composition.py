"""From what Hydra composes to the typed configuration, and code that files may not run."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from coar_dist.config.composition import check_code, typed_config
from coar_dist.config.schema import Config, EditConfig, ExampleGroup, ModelConfig, RegressionConfig, TaskConfig
from coar_dist.errors import ConfigError


def composed(values: dict[str, Any]) -> Any:
    config = OmegaConf.structured(Config)
    OmegaConf.set_struct(config, False)
    return OmegaConf.merge(config, values)


def test_parts_get_the_defaults_of_what_they_leave_out() -> None:
    config = typed_config(composed({"train": {"epochs": 3}, "edit": {"groups": {"x": {"classes": [1]}}}}))
    assert config == Config(
        train=type(config.train)(epochs=3),  # type: ignore[misc]
        edit=EditConfig(groups={"x": ExampleGroup(classes=[1])}),
    )
    referring = composed({"run": {"dir": "${task.model.source}/x"}, "task": {"model": {"source": "m"}}})
    assert typed_config(referring).run.dir == "m/x"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run": {"dir": "${nowhere}"}}, "run.dir: Interpolation key 'nowhere' not found."),
        ({"foo": 3}, "foo: unknown key"),
        ({"design": {"seed": -1}}, "design.seed=-1: must be a whole number in 0..2**64-1."),
    ],
)
def test_what_cannot_be_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed_config(composed(values))
    assert str(caught.value).startswith(message)


def test_what_a_preset_leaves_to_the_user_must_be_set() -> None:
    config = composed({"run": {"dir": "runs/${task.model.checkpoint}"}})
    config.task.model.checkpoint = config.budget = "???"
    with pytest.raises(ConfigError, match=r"^budget, task\.model\.checkpoint must be set, e\.g\. budget=\.\.\.$"):
        typed_config(config)


def test_code_runs_by_permission_alone() -> None:
    config = Config(task=TaskConfig(ModelConfig("evil:model")), regression=RegressionConfig(backend="torch"))
    message = r"task\.model\.source='evil:model' runs code of the module 'evil', .* add 'allow_code=\[evil\]'"
    for overrides in ([], ["task.model.source=other:model"], ["design.seed=1"]):
        with pytest.raises(ConfigError, match=message):
            check_code(config, overrides)
    check_code(config, ["task.model.source=evil:model"])
    check_code(config, ["+task.model.source='evil:model'"])
    config.allow_code = ["evil"]
    check_code(config, ["allow_code=[evil]"])
    with pytest.raises(ConfigError, match="only the command line can allow code"):
        check_code(config, [])
    config.allow_code = ["good"]
    with pytest.raises(ConfigError, match=message):
        check_code(config, ["allow_code=[good]"])


def test_predicates_are_code_and_objects_are_never_made() -> None:
    config = Config(edit=EditConfig(groups={"x": ExampleGroup(predicate="evil:f")}))
    with pytest.raises(ConfigError, match=r"edit\.groups\.x\.predicate='evil:f' runs code of the module 'evil'"):
        check_code(config, [])
    config = Config(task=TaskConfig(ModelConfig("m", {"loss": {"_target_": "os.system"}})))
    with pytest.raises(ConfigError, match=r"task\.model\.arguments\.loss\._target_='os\.system': objects cannot"):
        check_code(config, ["allow_code=[os]"])
