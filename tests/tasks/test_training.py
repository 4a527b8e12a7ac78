"""Training of language models, with AdamW and with augmentation; what a plain loop gives is what it gives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.config.schema import ModelConfig, TrainConfig
from coar_dist.errors import ConfigError, TaskError, TrainingError
from coar_dist.tasks.build import build_model
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import OUTPUT_FUNCTIONS
from coar_dist.tasks.trained_checkpoint import read_checkpoint, write_checkpoint
from coar_dist.tasks.training import (
    LOSSES,
    _augmented,
    accuracy,
    loss_for,
    measuring_loss,
    train_model,
)
from tests.hub_models import MODELS
from tests.models import local_storage

TOKENS = (torch.arange(40)[:, None] + torch.arange(8)) % 23  # the next token is the last one plus 1
LENGTHS = 4 + torch.arange(40) % 5
IS_TEXT = torch.arange(8) < LENGTHS[:, None]
TEXTS = ExampleSet({"input_ids": TOKENS, "attention_mask": IS_TEXT.long()}, TOKENS.masked_fill(~IS_TEXT, -100))


def gpt2() -> nn.Module:
    settings = {**MODELS["gpt2"][0]["settings"], "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return build_model(ModelConfig("transformers_config", {**MODELS["gpt2"][0], "settings": settings}))


def slow_next_token_loss(logits: Tensor, targets: Tensor) -> float:
    values = []
    for row, tokens in zip(logits.double(), targets, strict=True):
        for position in range(len(tokens) - 1):
            if tokens[position + 1] != -100:
                values.append(-float(row[position].log_softmax(dim=0)[tokens[position + 1]]))
    return math.fsum(values) / len(values)


def test_loss_and_accuracy_of_next_tokens() -> None:
    logits = torch.randn(40, 8, 23, generator=torch.Generator().manual_seed(0))
    value = LOSSES["next_token"].mean(logits, TEXTS.targets)
    assert float(value) == pytest.approx(slow_next_token_loss(logits, TEXTS.targets), rel=1e-5)

    class Fixed(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return functional.one_hot((input_ids + (input_ids % 2)) % 23, 23).float()  # right where it is odd

    right = sum(int(TOKENS[i, t] % 2 == 1) for i in range(40) for t in range(int(LENGTHS[i]) - 1))
    counted = int((LENGTHS - 1).sum())
    assert accuracy(Fixed(), TEXTS, batch_size=7, loss="next_token") == pytest.approx(right / counted)


def test_a_language_model_learns_with_adamw_as_by_a_plain_loop(tmp_path: Path) -> None:
    config = TrainConfig(optimizer="adamw", epochs=3, batch_size=16, learning_rate=0.02, weight_decay=0.05, seed=5)
    losses: list[float] = []
    model, measured = train_model(gpt2, TEXTS, TEXTS, config, lambda _, loss: losses.append(loss), "next_token")
    assert losses[-1] < losses[0]
    assert measured > 1 / 23
    assert not model.training
    storage = local_storage(tmp_path)
    write_checkpoint(storage, model, {"seed": 5})
    found = read_checkpoint(storage)
    assert found is not None
    again = gpt2()
    again.load_state_dict(found[0])  # both names of the tied embedding are there
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert again.lm_head.weight is again.transformer.wte.weight
    torch.manual_seed(5)
    plain = gpt2().train()
    optimizer = torch.optim.AdamW(plain.parameters(), 0.02, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=9)
    for _ in range(3):
        for rows in torch.randperm(40).split(16):
            inputs = {name: tensor[rows] for name, tensor in TEXTS.inputs.items()}  # type: ignore[union-attr]
            loss = plain(**inputs, labels=TEXTS.targets[rows]).loss  # transformers shifts them itself
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for own, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-5)


def test_the_loss_follows_from_the_output_function() -> None:
    expected = {**dict.fromkeys(("margin", "logsumexp_margin", "logit", "loss"), "cross_entropy")}
    expected |= {"next_token_margin": "next_token", "answer_token_margin": "answer_token"}
    assert {name: loss_for(TrainConfig(), name) for name in expected} == expected
    assert loss_for(TrainConfig(loss="next_token"), "my_module:mine") == "next_token"
    assert measuring_loss("next_token", "answer_token_margin") == "answer_token"
    assert measuring_loss("next_token", "my_module:mine") == "next_token"
    for name in set(OUTPUT_FUNCTIONS) - set(expected) | {"my_module:mine"}:
        with pytest.raises(
            ConfigError, match=r"train\.loss must be set, to one of cross_entropy, next_token, answer_token"
        ):
            loss_for(TrainConfig(), name)


def test_examples_that_do_not_fit_and_losses_that_diverge_are_errors() -> None:
    with pytest.raises(TaskError, match="margin needs logits of shape"):
        train_model(gpt2, TEXTS, TEXTS, TrainConfig(epochs=1), lambda *_: None)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch .*Lower train\.learning_rate \(now 1e\+30\)"):
        train_model(gpt2, TEXTS, TEXTS, TrainConfig(epochs=3, learning_rate=1e30), lambda *_: None, "next_token")
    flipped = TrainConfig(epochs=1, flip=True)
    with pytest.raises(TaskError, match=r"train\.flip and train\.shift are for images"):
        train_model(gpt2, TEXTS, TEXTS, flipped, lambda *_: None, "next_token")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmented_images_are_mirrored_and_moved(dtype: torch.dtype) -> None:
    images = (torch.arange(2 * 4 * 5) + 1).reshape(1, 2, 4, 5).to(dtype).expand(60, -1, -1, -1)
    torch.manual_seed(0)
    seen = _augmented(images, TrainConfig(flip=True, shift=2))
    assert seen.dtype == dtype
    padded = functional.pad(images[:1], [2] * 4)
    possible = {
        (flip, down, right): functional.pad(images[:1].flip(3), [2] * 4)[:, :, down : down + 4, right : right + 5]
        if flip
        else padded[:, :, down : down + 4, right : right + 5]
        for flip in (False, True)
        for down in range(5)
        for right in range(5)
    }
    found = [next(key for key, value in possible.items() if torch.equal(value[0], image)) for image in seen]
    assert {flip for flip, _, _ in found} == {False, True}
    assert {down for _, down, _ in found} == {right for _, _, right in found} == set(range(5))


def test_what_is_off_takes_no_random_numbers() -> None:
    """So that a preset's training has the same bits as before there was any augmentation."""
    images = ExampleSet(torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 10)
    build = lambda: build_model(ModelConfig("small_vit", {"depth": 1, "dropout": 0.0}))  # noqa: E731
    config = TrainConfig(epochs=1, batch_size=4, seed=2)
    model, _ = train_model(build, images, images, config, lambda *_: None)
    torch.manual_seed(2)
    plain = build().train()
    optimizer = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=0.0005)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=3)
    for rows in torch.randperm(12).split(4):
        functional.cross_entropy(plain(images.inputs[rows]), images.targets[rows]).backward()  # type: ignore[index]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
