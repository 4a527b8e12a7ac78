"""What ``coar-dist --help`` says between its examples and its footer."""

from __future__ import annotations

ALL = "--help=all"
OPTIONS = {
    "run.dir=runs/mine": "where everything is written; the same command continues there",
    "experiment=digits": "model, data and settings that belong together",
    "task.model.source=mine:net": "a model of your own, by a function; task.model.checkpoint=weights.safetensors",
    "task.examples.source=image_folder": "where examples come from; task.examples.arguments.path=...",
    "task.examples.subset.first=100": "explain only some of them; also every, ids, classes, sample",
    "task.output_function=margin": "what is explained of an output: logit, loss, value, mine:function, ...",
    "task.class_names=[cat,dog]": "what classes are called on the page, the first of class 0",
    "components=auto": "what is ablated: conv_filters, heads, neurons, experts, [heads,neurons], ...",
    "components.include=['L1?H*']": "shell patterns of names; components.exclude leaves some out",
    "ablation.value=zero_weights": "what takes their place: zero, mean, resample, counterfactual, constants",
    "design.ablation_fraction=0.05": "share of components that a mask ablates",
    "design.num_masks=500": "masks that are run; more of them extend a run",
    "gradients.num_masks=100": "masks that are run with gradients",
    "budget=2000": "passes to spend; a pilot decides how",
    "estimator=gradient": "how attributions are estimated; coar is the paper's, without gradients",
    "regression=ridge": "the fit: ridge, lasso, elastic_net, least_squares",
    "evaluation.num_masks=100": "held-out masks; evaluation.ablation_fractions=[0.1,0.05]",
    "baselines=[leave_one_out]": "other methods to compare with",
    "circuit.known=[L0H1]": "known components, for the circuit stage ('stages=[circuit]')",
    "edit=forget_class": "remove components: fix_errors, forget_class, worst_group, backdoor, ...",
    "stages=[fit,report]": "only some of train, ablate, fit, evaluate, circuit, edit, report; or [plan]",
    "cluster=local": "where: process, local, or a Ray cluster that is up (existing)",
    "cluster.max_actors=2": "processes that compute side by side; cluster.gpus_per_actor",
    "ablation=fast": "bfloat16 passes, margins stored in 16 bits",
}
"""The options that matter most, each as it is written and what it says."""
_IN_FULL = """== Groups: choose with group=option ==
$APP_CONFIG_GROUPS
== Configuration of this command: override with key=value ==
$CONFIG"""


def help_body(in_full: bool) -> str:
    """The options that matter, or all groups and options: a template of Hydra's.

    Example:
        >>> help_body(in_full=False).splitlines()[1]
        '  run.dir=runs/mine                  where everything is written; the same command continues there'
    """
    if in_full:
        return _IN_FULL
    width = max(map(len, OPTIONS)) + 1
    lines = [f"  {option:{width}} {says}" for option, says in OPTIONS.items()]
    return "\n".join(["== Options: override with key=value; all of them: coar-dist --help=all ==", *lines])
