"""What cannot be composed, through the real command: one short message, exit code 1, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import run_forked

FILES = {
    "misspelt": "design: {num_mask: 3}",
    "mistyped": "design: {num_masks: many}",
    "broken": "design: {num_masks: [}",
    "no_group": "defaults:\n  - override /tsk: digits",
    "no_choice": "defaults:\n  - override /task: digts",
    "a_list": "- design",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("design.num_mask=3", "design.num_mask: unknown key. Did you mean design.num_masks?"),
        ("design={num_mask:3}", "design.num_mask: unknown key. Did you mean design.num_masks?"),
        ("estimatr=budget", "estimatr: unknown key. Did you mean estimator?"),
        ("num_masks=3", "num_masks: unknown key. Did you mean design.num_masks, gradients.num_masks or"),
        ("+foo=1", "foo: unknown key; the configuration has experiment, estimator, stages"),
        ("++design.foo=1", "design.foo: unknown key; design has kind, num_masks"),
        ("train.examples.subset.frist=3", "train.examples.subset.frist: unknown key. Did you mean train.examples."),
        ("task.model.arguments.widht=3", "Did you mean task.model.arguments.width? To add it, write +task.model.arg"),
        ("design.num_masks=many", "design.num_masks='many': must be a whole number."),
        ("design.num_masks=2.5", "design.num_masks=2.5: must be a whole number."),
        ("design.num_masks=null", "design.num_masks=None: must be a whole number."),
        ("run.previews=maybe", "run.previews='maybe': must be true or false."),
        ("stages=fit", "stages='fit': must be a list"),
        ("train=3", "train=3: must be a TrainConfig."),
        ("design.num_masks=1 design.seed=-1", "design.seed=-1: must be a whole number in 0..2**64-1."),
        ("experiment=imagenet_resnet50 train.epochs=3", "train.epochs=3: train is null, so it has no epochs. Choose"),
        ("experiment=digit", "experiment=digit: there is no such choice. Did you mean digits?"),
        ("components=x", "components=x: there is no such choice. Choose one of attention_blocks, attention_heads"),
        ("regresion=lasso", "regresion: unknown key. Did you mean regression?"),
        ("+regression=lasso", "+regression: there is one already. Leave out the +."),
        ("+design.seed=3", "+design.seed: it is there already. Leave out the +."),
        ("~design.seed", "design.seed: DesignConfig (DictConfig) does not support deletion."),
        ("design.seed", "design.seed: cannot be read. Write key=value"),
        ("design.seed=[1", "design.seed=[1: cannot be read. Write key=value"),
        ("design.seed=1,2", "design.seed=1,2: a list takes brackets, [1,2]; one run for each value takes --multirun."),
        ("hydra.foo=3", "hydra.foo: unknown key; coar-dist --cfg hydra shows all."),
        ("run.dir=${nowhere}", "run.dir: Interpolation key 'nowhere' not found."),
        ("--config-name=foo", "Cannot find primary config 'foo'"),
        ("experiment=misspelt --config-dir=conf", "experiment/misspelt.yaml: design.num_mask: unknown key. Did you"),
        ("experiment=mistyped --config-dir=conf", "experiment/mistyped.yaml: design.num_masks='many': must be a whole"),
        ("experiment=broken --config-dir=conf", "conf/experiment/broken.yaml\", line 2, column 22"),
        ("experiment=no_group --config-dir=conf", "tsk: there is no such group of choices to override."),
        ("experiment=no_choice --config-dir=conf", "task=digts: there is no such choice. Did you mean digits?"),
        ("experiment=a_list --config-dir=conf", "experiment/a_list.yaml: Cannot merge DictConfig with ListConfig."),
        ("experiment=digits --config-dir=nowhere", "nowhere' not found"),
    ],
)  # fmt: skip
def test_what_cannot_be_composed_is_one_short_message(tmp_path: Path, arguments: str, message: str) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / "conf" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    result = run_forked(tmp_path, *arguments.split())
    assert result.returncode == 1
    assert result.stderr.startswith("ConfigError: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 6
    for hint in ("Traceback", "HYDRA_FULL_ERROR", "To append", "full_key", "searchpath", "+design.num_mask"):
        assert hint not in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_tracebacks_are_there_for_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for argument in ("design.num_mask=3", "design.num_masks=1"):
        result = run_forked(tmp_path, argument)
        assert result.returncode == 1
        assert "Traceback" in result.stderr
