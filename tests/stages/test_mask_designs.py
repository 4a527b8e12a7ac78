"""The mask designs that a configuration asks for, and what it cannot ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from coar_dist.config.schema import Config, DesignConfig, EvaluationConfig, GradientsConfig, RunConfig
from coar_dist.designs.given import LeaveOneOut
from coar_dist.designs.independent import Bernoulli, Correlated
from coar_dist.designs.subsets import Balanced
from coar_dist.errors import ConfigError
from coar_dist.stages.mask_designs import designs_of
from coar_dist.stages.pipeline import run_stages


@pytest.mark.parametrize("stage", ["ablate", "plan"])
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"design": DesignConfig(kind="halves")}, r"design\.kind='halves': must be one of bernoulli, .* of your own"),
        ({"gradients": GradientsConfig(kind="listed")}, r"gradients\.kind='listed': must be one of bernoulli"),
        ({"evaluation": EvaluationConfig(kind=":f")}, r"evaluation\.kind=':f': must be one of bernoulli"),
        ({"design": DesignConfig(kind="nowhere:f")}, r"design\.kind='nowhere:f' cannot be imported"),
    ],
)
def test_unknown_kinds_are_refused_before_any_work(
    stage: str, part: dict[str, object], message: str, tmp_path: Path, quiet: Console
) -> None:
    config = Config(stages=[stage], run=RunConfig(str(tmp_path / "run")), **part)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        run_stages(config, quiet)
    assert not any(tmp_path.iterdir())


def test_designs_are_those_that_are_asked_for() -> None:
    config = Config(
        design=DesignConfig(num_masks=30, ablation_fraction=0.2, seed=3),
        gradients=GradientsConfig(num_masks=10, seed=4),
        evaluation=EvaluationConfig(
            num_masks=50, ablation_fractions=[0.2, 0.1], seed=5, ceiling_pairs=40, ceiling_correlation=0.5
        ),
        baselines=["leave_one_out"],
    )
    found = {name: (entry.role, entry.design) for name, entry in designs_of(config, 20).items()}
    assert found == {
        "train": ("train", Bernoulli(20, 30, 0.2, 3)),
        "gradients": ("gradients", Balanced(20, 10, 0.2, 4)),
        "leave_one_out": ("baseline", LeaveOneOut.of(20)),
        "evaluation_0.2": ("evaluation", Bernoulli(20, 50, 0.2, 5)),
        "evaluation_0.1": ("evaluation", Bernoulli(20, 50, 0.1, 5)),
        "ceiling_evaluation_0.2": ("ceiling", Correlated(20, 40, 0.2, 5, 0.5)),
    }


@pytest.mark.parametrize(
    ("num_components", "fraction", "kind"),
    [(48, 0.05, Balanced), (48, 0.3, Bernoulli), (48, 0.32, Balanced), (48, 0.4, Bernoulli), (8, 0.05, Bernoulli)],
)
def test_masks_with_gradients_are_balanced_where_they_can_be(num_components: int, fraction: float, kind: type) -> None:
    config = Config(
        design=DesignConfig(ablation_fraction=fraction),
        gradients=GradientsConfig(num_masks=10, seed=4),
        evaluation=EvaluationConfig(ablation_fractions=[fraction]),
    )
    assert designs_of(config, num_components)["gradients"].design == kind(num_components, 10, fraction, 4)
    for part in ("design", "evaluation"):
        clash = replace(config, **{part: replace(getattr(config, part), seed=4)})
        if kind is Bernoulli:
            with pytest.raises(ConfigError, match=r"gradients\.seed=4 is that of the masks .*, which are bernoulli"):
                designs_of(clash, num_components)
        else:
            designs_of(clash, num_components)
    asked = replace(config, gradients=replace(config.gradients, kind="balanced"))
    if kind is Bernoulli:
        with pytest.raises(ConfigError, match="balanced"):
            designs_of(asked, num_components)


@pytest.mark.parametrize(
    ("num_components", "fraction"), [(2, 0.5), (7, 0.1429), (12, 0.08333), (19, 0.05263), (20, 0.05), (500, 0.05)]
)
def test_masks_of_few_components_ablate_one_on_average(num_components: int, fraction: float) -> None:
    config = Config(
        design=DesignConfig("fixed_size", num_masks=30),
        gradients=GradientsConfig(num_masks=10),
        evaluation=EvaluationConfig(ceiling_pairs=3),
    )
    found = designs_of(config, num_components)
    assert found["train"].design.ablation_fraction == fraction
    assert found["gradients"].design.ablation_fraction == fraction
    assert f"ceiling_evaluation_{fraction}" in found
    ablated = [(~entry.design.masks(0, 10)).sum(axis=1) for entry in (found["train"], found["gradients"])]
    assert min(rows.min() for rows in ablated) >= 1
    pinned = Config(design=DesignConfig(ablation_fraction=0.3), evaluation=EvaluationConfig(ablation_fractions=[0.4]))
    assert designs_of(pinned, num_components)["train"].design.ablation_fraction == 0.3
    pinned.evaluation.ceiling_pairs = 3
    with pytest.raises(ConfigError, match=r"ceiling_pairs=3 take held-out masks at design\.ablation_fraction=0\.3"):
        designs_of(pinned, num_components)
