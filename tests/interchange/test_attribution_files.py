"""Attribution files of the research code: their units, what is refused, and the way back."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LinearRegression
from torch import nn

from coar_dist.api import open_run
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import Config, RunConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import (
    ComponentMismatchError,
    ConfigError,
    ForeignFileError,
    MissingWorkError,
    NonFiniteMarginError,
    RunNotFoundError,
)
from coar_dist.interchange import attribution_files
from coar_dist.interchange.attribution_files import open_attributions, read_attributions
from coar_dist.interchange.exporting import export_attributions
from coar_dist.interchange.importing import import_attributions
from coar_dist.interchange.units import MaskUnits
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.examples import ExampleTable
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.interchange import research
from tests.models import SmallResNet, local_storage, random_masks

NUM_MASKS, NUM_COMPONENTS, NUM_EXAMPLES = 200, 11, 9


def problem(alpha: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    masks = random_masks(NUM_MASKS, NUM_COMPONENTS, alpha)
    margins = masks @ random.normal(size=(NUM_COMPONENTS, NUM_EXAMPLES)) + random.normal(size=(NUM_MASKS, NUM_EXAMPLES))
    return masks, (margins + 30.0 * np.arange(NUM_EXAMPLES)).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with train and held-out margins, its examples in blocks of 4."""
    masks, margins = problem()
    identity = {"model.weights": "w", "ablation.examples_per_block": 4, "ablation.margins_dtype": "float32"}
    components = ComponentIndex((ComponentGroup.of("conv.weight", 0, NUM_COMPONENTS),))
    run = RunDirectory.create(local_storage(tmp_path / "run"), identity, components, NUM_EXAMPLES)
    designs = {
        name: RunDesign(role, Bernoulli(NUM_COMPONENTS, num_masks, 0.2, seed))
        for name, role, num_masks, seed in (("train", "train", 150, 1), ("evaluation_0.2", "evaluation", 50, 2))
    }
    run.set_designs(designs)
    run.margins("train").write(0, masks[:150], margins[:150], {})
    run.margins("evaluation_0.2").write(0, masks[150:], margins[150:], {})
    ExampleTable(run).write(None, None, margins[0])
    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What the research code's regression makes of the run's train margins."""
    masks, margins = problem()
    return research.save(tmp_path / "datamodels.pt", *research.regress(masks[:150], margins[:150]))


def train_units() -> MaskUnits:
    return MaskUnits.of_masks([problem()[0][:100], problem()[0][100:150]])


def bring(file: Path, units: MaskUnits | None, run: RunDirectory, method: str = "research", **how: object) -> bool:
    return import_attributions(read_attributions(file, units, **how), run.storage, method)


def test_predictions_are_those_of_the_research_codes_regression(run: RunDirectory, file: Path, quiet: Console) -> None:
    """Their weights are per standard deviation of a mask bit: taken as they are, they predict something else."""
    masks, margins = problem()
    weight, bias = research.regress(masks[:150], margins[:150])
    theirs = research.predict(weight, bias, masks, of=masks[:150])
    assert bring(file, train_units(), run)
    assert not bring(file, train_units(), run)
    ours = open_run(run.storage.location)
    np.testing.assert_allclose(ours.predict(masks, method="research"), theirs, rtol=1e-5, atol=1e-5)
    truth = LinearRegression().fit(masks[:150].astype(float), margins[:150].astype(float))
    np.testing.assert_allclose(ours.weights(method="research"), truth.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.intercepts(method="research"), truth.intercept_, rtol=1e-4, atol=1e-4)
    alone = read_attributions(file, train_units())
    np.testing.assert_allclose(alone.predict(masks), theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(alone.read(3, 7)[0], ours.weights([3, 4, 5, 6], method="research"))

    run_stages(Config(stages=["evaluate", "report"], run=RunConfig(run.storage.location)), quiet)
    found = EvaluationTable(run, "research", "evaluation_0.2").read()["correlation"]
    expected = [np.corrcoef(theirs[150:, i], margins[150:, i])[0, 1] for i in range(NUM_EXAMPLES)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    text = quiet.file.getvalue()  # type: ignore[union-attr]
    assert "Research code" in text
    assert "imported" in text


def test_units_by_the_ablation_fraction_are_those_in_expectation() -> None:
    masks = random_masks(40_000, 5, alpha=0.05)
    exact, expected = MaskUnits.of_masks([masks]), MaskUnits.of_fraction(0.05, 5)
    np.testing.assert_allclose(exact.mean, expected.mean, rtol=5e-3)
    np.testing.assert_allclose(exact.deviation, expected.deviation, rtol=5e-2)
    np.testing.assert_allclose(exact.deviation, masks.std(axis=0), rtol=1e-12)
    with pytest.raises(ConfigError, match="strictly between"):
        MaskUnits.of_fraction(1.0, 5)
    with pytest.raises(MissingWorkError, match="there are none"):
        MaskUnits.of_masks([])


def test_a_component_that_never_varies_says_nothing_or_is_refused() -> None:
    masks = random_masks(50, 3)
    masks[:, 1] = True
    units = MaskUnits.of_masks([masks])
    weights, intercepts = units.to_bits(np.array([[1.0, 0.0, 2.0]]), np.array([5.0]))
    assert weights[0, 1] == 0.0
    np.testing.assert_allclose(
        masks @ weights[0] + intercepts, research.standardised(masks, masks) @ [1.0, 0.0, 2.0] + 5.0, rtol=1e-5
    )
    with pytest.raises(ComponentMismatchError, match="components 1 have weights"):
        units.to_bits(np.array([[1.0, 0.1, 2.0]]), np.array([5.0]))
    back, bias = units.from_bits(np.array([[1.0, 7.0, 2.0]]), np.array([5.0]))
    predicted = masks @ np.array([1.0, 7.0, 2.0]) + 5.0
    np.testing.assert_allclose(research.predict(back.T, bias, masks, masks)[:, 0], predicted, rtol=1e-5)


def test_a_file_that_does_not_say_its_units_needs_them(run: RunDirectory, file: Path) -> None:
    with pytest.raises(ConfigError, match="does not say what its weights are standardised by"):
        read_attributions(file)
    with pytest.raises(ForeignFileError, match=r"has 11 components, but the masks .* have 12"):
        read_attributions(file, MaskUnits.bits(12))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_out_as_their_file_and_in_again(run: RunDirectory, tmp_path: Path, quiet: Console, dtype: str) -> None:
    run_stages(Config(stages=["fit"], run=RunConfig(run.storage.location)), quiet)
    ours, masks = open_run(run.storage.location), problem()[0]
    tolerance = {"float32": 1e-5, "float16": 1e-2}[dtype]

    standardised = tmp_path / "standardised.pt"
    export_attributions(run, standardised, "coar", train_units(), dtype)
    found = torch.load(standardised)
    assert (found["weight"].dtype, found["weight"].shape) == (getattr(torch, dtype), (NUM_COMPONENTS, NUM_EXAMPLES))
    theirs = research.predict(found["weight"].numpy(), found["bias"].numpy(), masks, of=masks[:150])
    np.testing.assert_allclose(theirs, ours.predict(masks), rtol=1e-5, atol=tolerance)
    np.testing.assert_allclose(found["lam"].numpy(), ours.quality()["regularisation"], rtol=1e-6)

    per_bit = tmp_path / "per_bit.pt"
    export_attributions(run, per_bit, "coar", MaskUnits.bits(NUM_COMPONENTS), dtype)
    attributions = research.load(per_bit)
    np.testing.assert_allclose(attributions.numpy(), ours.weights(), atol=tolerance)
    for mask in masks[:5]:
        expected = ours.predict(mask[None])[0] - ours.intercepts()
        np.testing.assert_allclose(research.attribution_margins(attributions, mask), expected, atol=5 * tolerance)

    for path in (standardised, per_bit):
        assert bring(path, None, run, f"research_{path.stem}")
        again = open_run(run.storage.location)
        np.testing.assert_allclose(
            again.predict(masks, method=f"research_{path.stem}"), ours.predict(masks), rtol=1e-5, atol=5 * tolerance
        )
    with pytest.raises(ConfigError, match="says itself what its weights are standardised by"):
        read_attributions(standardised, MaskUnits.bits(NUM_COMPONENTS))
    with pytest.raises(ConfigError, match="already exists"):
        export_attributions(run, per_bit, "coar", train_units())
    with pytest.raises(MissingWorkError, match="attributions of 'coar_lasso' lack"):
        export_attributions(run, tmp_path / "no.pt", "coar_lasso", train_units())
    assert not list(tmp_path.glob(".*"))


def test_weights_beyond_float16_are_not_exported_as_infinity(run: RunDirectory, tmp_path: Path) -> None:
    table = AttributionTable(run, "coar")
    for first, end in run.margins("train").blocks:
        weights = np.full((end - first, NUM_COMPONENTS), 1e6, dtype=np.float32)
        table.write((first, end), {}, Attributions.of_weights(weights, np.zeros(end - first)))
    with pytest.raises(NonFiniteMarginError, match=r"examples 0\.\.3 are beyond the range of float16"):
        export_attributions(run, tmp_path / "out.pt", "coar", MaskUnits.bits(NUM_COMPONENTS), "float16")
    assert not (tmp_path / "out.pt").exists()


def test_nans_are_counted_and_named_and_left_out_or_zero_by_request(run: RunDirectory, tmp_path: Path) -> None:
    masks, margins = problem()
    weight, bias = research.regress(masks[:150], margins[:150])
    weight[:, 4] = np.nan
    weight[2:4, [6, 7]] = np.nan
    bias[4] = np.nan
    file = research.save(tmp_path / "nan.pt", weight, bias)
    units = train_units()
    with pytest.raises(ForeignFileError, match=r"16 NaN or infinite values?, of 3 of 9 examples \(4, 6\.\.7\); 11 of"):
        read_attributions(file, units)
    with pytest.raises(ForeignFileError, match=r"4 NaN or .*, of 2 of 8 examples \(6\.\.7\); 2 of 11 components"):
        read_attributions(file, units, leave_out=(4,))

    left = read_attributions(file, units, leave_out=(4, 6, 7))
    kept = [0, 1, 2, 3, 5, 8]
    expected = research.predict(weight[:, kept], bias[kept], masks, of=masks[:150])
    np.testing.assert_allclose(left.predict(masks), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ComponentMismatchError, match="11 components and 6 examples"):
        import_attributions(left, run.storage)

    assert bring(file, units, run, nan_is_zero=True)
    zeros, no_bias = np.nan_to_num(weight), np.nan_to_num(bias)
    found = open_run(run.storage.location).predict(masks, method="research")
    np.testing.assert_allclose(found, research.predict(zeros, no_bias, masks, masks[:150]), rtol=1e-5, atol=1e-5)

    weight[0, 1] = np.inf
    infinite = research.save(tmp_path / "inf.pt", weight, bias)
    with pytest.raises(ForeignFileError, match=r"1 infinite value, of 1 of 9 examples \(1\); "):
        read_attributions(infinite, units, nan_is_zero=True)


class Code:
    """What runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


FLOATS = torch.zeros(3, 2)
VECTOR = torch.zeros(2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FLOATS, "holds a Tensor, but a dict of weight"),
        ({"weight": FLOATS}, r"has the keys \['weight'\], without \['bias'\]"),
        ({"weight": FLOATS, "bias": VECTOR, "mean": VECTOR}, r"of which \['mean'\] are unknown"),
        ({"weight": FLOATS.T, "bias": VECTOR}, r"weight torch.float32 \(2, 3\), bias torch.float32 \(2,\), but"),
        ({"weight": FLOATS.long(), "bias": VECTOR}, "weight must be floats"),
        ({"weight": FLOATS, "bias": VECTOR[:1]}, r"bias torch.float32 \(1,\)"),
        ({"weight": FLOATS, "bias": VECTOR, "lam": 0.0}, "lam float"),
        ({"weight": FLOATS[:0], "bias": VECTOR}, "weight must be floats"),
        ({"weight": FLOATS, "bias": VECTOR, "coar_dist": {"components": "c"}}, "was not written by this version"),
        ({"weight": FLOATS, "bias": VECTOR, "lam": Code()}, "no file of tensors saved by torch.save"),
    ],
)
def test_other_content_is_refused_and_never_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, message: str
) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ForeignFileError, match=message):
        open_attributions(tmp_path / "file.pt")
    assert "executed" not in capsys.readouterr().out


def test_damaged_files_are_refused_and_old_ones_read(run: RunDirectory, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for damaged in (whole[:-20], whole[:100], b"", b"hello", pickle.dumps({"weight": 1})):
        file.write_bytes(damaged)
        with pytest.raises(ForeignFileError, match=r"datamodels\.pt"):
            open_attributions(file)
    with pytest.raises(ForeignFileError, match="is not there"):
        open_attributions(tmp_path / "nothing.pt")
    old = tmp_path / "old.pt"
    torch.save({"weight": FLOATS + 1, "bias": VECTOR}, old, _use_new_zipfile_serialization=False)
    opened = read_attributions(old, MaskUnits.bits(3))
    np.testing.assert_array_equal(opened.read(0, 2)[0], np.ones((2, 3)))
    assert np.isnan(opened.lam(0, 2)).all()


def test_what_does_not_fit_the_run_is_refused(run: RunDirectory, file: Path, tmp_path: Path, quiet: Console) -> None:
    with pytest.raises(ConfigError, match="begin with research"):
        bring(file, train_units(), run, method="coar")
    with pytest.raises(RunNotFoundError):
        import_attributions(read_attributions(file, train_units()), storage_at(tmp_path / "nothing"))
    few = research.save(tmp_path / "few.pt", np.ones((10, NUM_EXAMPLES)), np.ones(NUM_EXAMPLES))
    with pytest.raises(ComponentMismatchError, match=r"10 components and 9 examples .* has 11 and 9"):
        bring(few, MaskUnits.bits(10), run)
    run_stages(Config(stages=["fit"], run=RunConfig(run.storage.location)), quiet)
    export_attributions(run, tmp_path / "out.pt", "coar", train_units())
    components = ComponentIndex((ComponentGroup.of("other.weight", 0, NUM_COMPONENTS),))
    other = RunDirectory.create(local_storage(tmp_path / "other"), run.identity, components, NUM_EXAMPLES)
    with pytest.raises(ComponentMismatchError, match="as many, but other ones, or in another order"):
        bring(tmp_path / "out.pt", None, other)


def test_weights_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 MB of weights: memory-mapped, checked and read in small blocks."""
    weight = np.random.default_rng(0).normal(size=(2000, 4000)).astype(np.float32)
    file = research.save(tmp_path / "large.pt", weight, np.zeros(4000, dtype=np.float32))
    monkeypatch.setattr(attribution_files, "_VALUES_AT_ONCE", 2**16)
    tracemalloc.start()
    try:
        opened = read_attributions(file, MaskUnits.bits(2000))
        weights, _ = opened.read(1000, 1050)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(file) in Path("/proc/self/maps").read_text()
    assert peak < 2 * 2**20, peak
    np.testing.assert_array_equal(weights, weight[:, 1000:1050].T)


class TinyVit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 8, 4)
        self.encoder = nn.ModuleList(
            nn.ModuleDict(
                {"attention": nn.MultiheadAttention(8, 2), "mlp": nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))}
            )
            for _ in range(2)
        )
        self.heads = nn.Sequential(nn.Linear(8, 4))


def as_dict(components: ComponentIndex) -> list[tuple[str, int]]:
    assert all(group.slices[0].axis == 0 and group.slices[0].size == 1 for group in components.groups)
    return [(group.parameter, group.num_components) for group in components.groups]


def test_component_ids_are_the_research_codes() -> None:
    """The same groups in the same order, by the selectors that the page of the components names."""
    transformers = pytest.importorskip("transformers")
    resnet, vit = SmallResNet(), TinyVit()
    found = discover(resnet, "conv_filters", include=["*conv*"])
    assert as_dict(found) == list(research.components_of_convolutions(resnet).items())
    found = discover(vit, "linear_rows", exclude=["heads*"])
    assert as_dict(found) == list(research.components_of_vit(vit).items())
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=20))
    assert as_dict(discover(gpt2, "transposed_linear_inputs")) == list(research.components_of_gpt2(gpt2).items())
