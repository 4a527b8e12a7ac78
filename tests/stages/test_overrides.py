"""What a command line asks for is read by one of its stages, or refused."""

from __future__ import annotations

import pytest

from coar_dist.config.schema import Config, EvaluationConfig
from coar_dist.errors import ConfigError
from coar_dist.stages.overrides import check_overrides


def config_of(stages: list[str], budget: float | None = None, curve_shares: tuple[float, ...] = (0.5,)) -> Config:
    return Config(stages=stages, budget=budget, evaluation=EvaluationConfig(curve_shares=list(curve_shares)))


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        (config_of(["evaluate"], curve_shares=()), ["evaluation.curve_shares=[]"]),
        (config_of(["evaluate"]), ["regression.memory_gb=4", "stages=[evaluate]", "run.dir=x", "tracking=[mlflow]"]),
        (config_of(["ablate"], budget=200.0), ["estimator=budget", "budget=200", "regression.memory_gb=4"]),
        (
            config_of(["ablate"]),
            ["task/model=x", "components@x=y", "+ablation.mode=rows", "~train"],
        ),
        (config_of(["edit"]), ["ablation.mode=rows", "edit=custom", "edit.target.classes=[1]", "train=null"]),
        (config_of(["report"]), ["experiment=digits", "hydra.verbose=true", "allow_code=[x]"]),
        (config_of(["plan"]), ["regression.memory_gb=8", "edit.name=x"]),
    ],
)
def test_what_a_stage_reads_is_taken(config: Config, overrides: list[str]) -> None:
    check_overrides(config, overrides)


@pytest.mark.parametrize(
    ("config", "override", "way_out"),
    [
        (config_of(["fit", "evaluate"]), "design.num_masks=10", "add the ablate stage"),
        (config_of(["fit", "report"]), "estimator=budget", "add the ablate stage"),
        (
            config_of(["fit"]),
            "train.epochs=3",
            "add the train stage or add the ablate stage or add the circuit stage or add the edit stage",
        ),
        (config_of(["ablate"]), "regression.memory_gb=4", "set budget or add the fit stage or add the evaluate stage"),
        (config_of(["ablate"], budget=200.0), "regression.shared_penalty=true", "add the fit stage"),
        (config_of(["evaluate"]), "regression.num_penalties=9", "add the ablate stage or add the fit stage"),
        (
            config_of(["evaluate"], curve_shares=()),
            "regression.backend=torch",
            "set evaluation.curve_shares or add the ablate stage or add the fit stage",
        ),
        (config_of(["evaluate"]), "evaluation.seed=3", "add the ablate stage"),
        (config_of(["edit"]), "ablation.precision=bfloat16", "add the ablate stage"),
        (
            config_of(["fit", "report"]),
            "run.previews=false",
            "add the ablate stage or add the circuit stage or add the edit stage",
        ),
        (
            config_of(["report"]),
            "cluster.address=auto",
            "add the ablate stage or add the fit stage or add the evaluate stage or add the circuit stage "
            "or add the edit stage",
        ),
    ],
)
def test_an_option_without_effect_is_refused_with_the_way_out(config: Config, override: str, way_out: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_overrides(config, [override])
    text = str(caught.value)
    assert text.startswith(f"{override} has no effect with stages={config.stages}")
    assert text.endswith(f"Leave it out, or {way_out}.")
