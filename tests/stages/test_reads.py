"""What a stage says that it reads is what it reads."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coar_dist.config.combinations import validate
from coar_dist.config.schema import (
    PLAN,
    STAGES,
    AblationConfig,
    BaselineConfig,
    ClusterConfig,
    Config,
    DesignConfig,
    EditConfig,
    EvaluationConfig,
    ExampleGroup,
    ExamplesConfig,
    GradientsConfig,
    ModelConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)
from coar_dist.console.saying import Terminal
from coar_dist.errors import ConfigError
from coar_dist.stages import pipeline
from coar_dist.stages.ablate import ABLATE
from coar_dist.stages.pipeline import PIPELINE
from coar_dist.stages.session import READS, Session
from coar_dist.stages.stage import Stage, covers
from coar_dist.store.lock import Hold
from tests.small_run import without_ray
from tests.stages.recording import Recorder

RARELY_READ = ["regression.tolerance"]
"""By the evaluate stage: where ``regression.memory_gb`` leaves only conjugate gradients."""


class RecordedSession(Session):
    """Becoming the writer logs the whole configuration, which is no reading of it."""

    recorder: Recorder

    def take(self) -> Hold:
        self.recorder.is_on = False
        try:
            return super().take()
        finally:
            self.recorder.is_on = True


def keys_read(stage: Stage, config: Config) -> set[str]:
    """The options that a stage reads, its checks among them."""
    validate(config)
    recorder = Recorder()
    with RecordedSession(recorder.recorded(config), Terminal(Console(file=io.StringIO()))) as session:
        session.recorder = recorder
        session.begin(stage.name)
        if stage.check is not None:
            stage.check(session)
        stage.run(session)
    return recorder.keys


def is_below(key: str, parts: Sequence[str]) -> bool:
    return any(key == part or key.startswith(f"{part}.") for part in parts)


def config_of(folder: Path, **changes: Any) -> Config:
    digits = ExamplesConfig("digits", {"split": "test", "num_examples": 20})
    settings: dict[str, Any] = {
        "stages": list(STAGES),
        "run": RunConfig(str(folder)),
        "task": TaskConfig(ModelConfig("digits_resnet", {"width": 4, "num_blocks": 1}), digits),
        "train": TrainConfig(ExamplesConfig("digits", {"split": "train", "num_examples": 100}), epochs=1),
        "design": DesignConfig(num_masks=60, ablation_fraction=0.2),
        "gradients": GradientsConfig(num_masks=20),
        "budget": 150.0,
        "baselines": ["leave_one_out", "internal_influence"],
        "baseline_settings": BaselineConfig(num_steps=2),
        "evaluation": EvaluationConfig(num_masks=10, ablation_fractions=[0.2], curve_shares=[0.5]),
        "ablation": AblationConfig(mode="weights", rows_per_forward=20, compile=False),
        "cluster": ClusterConfig(max_actors=1),
        "edit": EditConfig(target=ExampleGroup(ids=[3]), improve=["all"], max_components=3),
    }
    return Config(**{**settings, **changes})


def test_the_stages_read_what_they_say_that_they_read(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    with without_ray():
        for stage in PIPELINE:
            read, declared = keys_read(stage, config), stage.keys_read(config)
            undeclared = sorted(key for key in read if not is_below(key, [*declared, *READS]))
            assert not undeclared, f"{stage.name} reads {undeclared}: add them to its reads"
            unread = [part for part in declared if not any(is_below(key, [part]) for key in {*read, *RARELY_READ})]
            assert not unread, f"{stage.name} does not read {unread}: leave them out of its reads"


def test_only_a_budget_needs_a_fit_before_all_masks_are_there() -> None:
    with_budget, without = Config(budget=200.0), Config()
    assert covers(ABLATE.keys_read(with_budget), "regression.memory_gb")
    assert not covers(ABLATE.keys_read(without), "regression.memory_gb")
    assert covers(ABLATE.keys_read(without), "design.seed")


def test_the_pipeline_has_every_stage_in_its_order() -> None:
    assert [stage.name for stage in PIPELINE] == [PLAN, *STAGES]


def test_what_stages_read_is_known_without_torch_ray_and_matplotlib() -> None:
    program = (
        "import sys; from coar_dist.stages.pipeline import PIPELINE; assert all(stage.name for stage in PIPELINE); "
        "print(sorted({'torch', 'ray', 'matplotlib', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_check_comes_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage's check refuses; the first has done nothing, and nobody has taken the run directory."""
    calls: list[str] = []

    def refuse(session: Session) -> None:
        assert session.config.run.dir == str(tmp_path / "run")
        calls.append("check")
        raise ConfigError("it cannot be")

    first = Stage("train", (), run=lambda session: calls.append("run"), check=lambda session: calls.append("first"))
    last = Stage("report", (), run=lambda session: calls.append("run"), check=refuse)
    monkeypatch.setattr(pipeline, "PIPELINE", (first, last))
    with pytest.raises(ConfigError, match="it cannot be"):
        pipeline.run_stages(Config(run=RunConfig(str(tmp_path / "run"))), Console(file=io.StringIO()))
    assert calls == ["first", "check"]
    assert list(tmp_path.iterdir()) == []
