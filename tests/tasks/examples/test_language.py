"""Token ids: text windows, padded texts and prompts with answers, against encoding them by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from coar_dist.errors import CoarWarning, ConfigError, TaskError
from coar_dist.store.examples import TOKEN_END
from coar_dist.tasks.examples.answers import prompts
from coar_dist.tasks.examples.prompts import huggingface_answers
from coar_dist.tasks.outputs import next_token_margin
from tests.tasks.examples.making import built

WORDS = ["<bos>", "<eos>", "<unk>", "is", "the", "sky", "sea", "blue", "deep", "no", "yes", "Mary", "John", "gave", "?"]
ID = {word: i for i, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_tokenizer(tmp_path_factory.mktemp("tokenizer"), "<bos> $A")


def saved_tokenizer(root: Path, template: str) -> str:
    """A tokenizer of whole words, on disk as from the hub; ``template`` says which special tokens it adds."""
    words = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(template, special_tokens=[("<bos>", 0), ("<eos>", 1)])
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}  # none that pads, as GPT-2's
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(root)
    return str(root)


def saved(root: Path, **columns: list[Any]) -> str:
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).save_to_disk(root)
    datasets.enable_progress_bars()
    return str(root)


def tokens_of(text: str) -> list[int]:
    return [ID["<bos>"], *(ID.get(word, ID["<unk>"]) for word in text.replace("?", " ?").split())]


def test_windows_of_bytes(tmp_path: Path) -> None:
    text = "Ein süßer Text: 0123456789, und noch etwas."
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    content = text.encode()
    examples = built("text_file", path=str(tmp_path / "text.txt"), length=10)
    assert list(examples.inputs) == ["input_ids"]
    assert torch.equal(examples.inputs["input_ids"], examples.targets)
    starts = list(range(0, len(content) - 9, 10))
    assert [bytes(row) for row in examples.targets.tolist()] == [content[start : start + 10] for start in starts]
    assert examples.columns["source_id"].tolist() == starts
    assert examples.columns["excerpt"].tolist() == [content[i : i + 10].decode(errors="replace") for i in starts]
    arguments = {"path": str(tmp_path / "text.txt"), "length": 8, "stride": 3, "start": 0.5, "stop": 0.9}
    overlapping = built("text_file", {"every": 2}, **arguments)
    first, end = int(0.5 * len(content)), int(0.9 * len(content))
    starts = [start for start in range(first, end, 3) if start + 8 <= end][::2]
    assert [bytes(row) for row in overlapping.targets.tolist()] == [content[start : start + 8] for start in starts]
    assert overlapping.columns["source_id"].tolist() == starts


def test_windows_of_tokens(tmp_path: Path, tokenizer: str) -> None:
    text = "the sky is blue the sea is deep is the sky blue ?"
    (tmp_path / "text.txt").write_text(text)
    examples = built("text_file", path=str(tmp_path / "text.txt"), tokenizer=tokenizer, length=4)
    assert examples.targets.reshape(-1).tolist() == [ID[word] for word in text.split()][:12]
    assert examples.columns["excerpt"].tolist() == ["the sky is blue", "the sea is deep", "is the sky blue"]
    assert examples.columns["tokens"][0].split(TOKEN_END) == ["the", "sky", "is", "blue"]


def test_long_texts_are_cut_in_their_excerpts(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("x" * 602)
    for length, expected in [(300, "x" * 300), (301, "x" * 299 + "…")]:
        examples = built("text_file", path=str(tmp_path / "text.txt"), length=length)
        assert examples.columns["excerpt"].tolist() == [expected] * 2
        assert examples.columns["tokens"].tolist() == [TOKEN_END.join("x" * length)] * 2


def test_marks_count_matches_in_each_window(tmp_path: Path, tokenizer: str) -> None:
    text = "ROMEO:\nsüß\n\nJULIET:\nAy me.\nNURSE:\n-"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    marks = {"heading": r"(?m)^[A-Z]+:$", "umlaut": "ü", "none": "x"}
    arguments = {"path": str(tmp_path / "text.txt"), "marks": marks}
    content = text.encode()
    whole = built("text_file", length=len(content), **arguments)
    assert {name: whole.columns[name].tolist() for name in marks} == {"heading": [3], "umlaut": [1], "none": [0]}
    assert whole.columns["heading"].dtype == np.int64
    cut = content.index("ü".encode()) + 1  # through the letter
    assert built("text_file", {"first": 1}, length=cut, **arguments).columns["umlaut"].tolist() == [0]
    (tmp_path / "words.txt").write_text("the sky is blue the sea the sky")
    of_words = {"path": str(tmp_path / "words.txt"), "tokenizer": tokenizer, "length": 4, "marks": {"the": r"\bthe\b"}}
    assert built("text_file", **of_words).columns["the"].tolist() == [1, 2]
    for wrong, message in [
        ({"a": "("}, r"marks.a='\(' is no regular expression: "),
        ({"source_id": "a"}, "a name but"),
        ({"excerpt": "a"}, "a name but"),
    ]:
        with pytest.raises(ConfigError, match=message):
            built("text_file", **{**arguments, "marks": wrong}, length=8)


def test_text_files_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a" * 20)
    (tmp_path / "latin.txt").write_bytes("süß".encode("latin-1") * 9)
    for changes, error, message in [
        ({"length": 1}, ConfigError, "length=1, stride=None.*length must be at least 2"),
        ({"stride": 0}, ConfigError, "stride=0"),
        ({"start": 0.5, "stop": 0.5}, ConfigError, "0 <= start < stop <= 1"),
        ({"length": 21}, TaskError, "has 20 tokens from 0 to 20, fewer than length=21"),
        ({"path": str(tmp_path / "none")}, TaskError, "no UTF-8 text that can be read.*No such file"),
        ({"path": str(tmp_path / "latin.txt")}, TaskError, "no UTF-8 text that can be read.*can't decode"),
    ]:
        with pytest.raises(error, match=message):
            built("text_file", **{"path": str(tmp_path / "text.txt"), "length": 8, **changes})
    with pytest.raises(ConfigError, match="have no class labels"):
        built("text_file", {"classes": [1]}, path=str(tmp_path / "text.txt"), length=8)


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_are_padded_on_the_right_and_padding_does_not_count(
    tmp_path: Path, tokenizer: str, streaming: bool
) -> None:
    texts = ["the sky is blue", "is it", "the sea is deep is the sky blue ?", "the"]
    arguments = {"dataset": saved(tmp_path / "data", text=texts, topic=["a", "b", "c", "d"]), "split": "train"}
    arguments |= {"tokenizer": tokenizer, "columns": ["topic"], "streaming": streaming}
    examples = built("huggingface_text", {"first": 3}, max_length=6, **arguments)
    expected = [tokens_of(text)[:6] for text in texts[:3]]
    ids, mask = examples.inputs["input_ids"], examples.inputs["attention_mask"]
    assert ids.shape == mask.shape == examples.targets.shape == (3, 6)
    for row, tokens in enumerate(expected):
        assert ids[row, : len(tokens)].tolist() == tokens
        assert mask[row].tolist() == [1] * len(tokens) + [0] * (6 - len(tokens))
        assert examples.targets[row].tolist() == tokens + [-100] * (6 - len(tokens))
    assert examples.columns["topic"].tolist() == ["a", "b", "c"]
    assert examples.columns["excerpt"].tolist() == texts[:3]
    logits = torch.randn(3, 6, len(WORDS))
    for row, tokens in enumerate(expected):  # the padded row has the margin of the bare one
        bare = next_token_margin(logits[row : row + 1, : len(tokens)], torch.tensor([tokens]))
        assert next_token_margin(logits, examples.targets)[row] == pytest.approx(bare.item(), rel=1e-6)
    assert built("huggingface_text", {"every": 3}, **arguments).targets.shape == (2, 5)  # the longest of the chosen


def test_a_column_excerpt_of_the_data_sets_own_stays(tmp_path: Path, tokenizer: str) -> None:
    arguments = {"dataset": saved(tmp_path / "data", text=["the sky"], excerpt=["sky"]), "tokenizer": tokenizer}
    examples = built("huggingface_text", split="train", columns=["excerpt"], **arguments)
    assert examples.columns["excerpt"].tolist() == ["sky"]


def test_texts_that_do_not_fit(tmp_path: Path, tokenizer: str) -> None:
    data = saved(tmp_path / "data", text=["the sky", "", None])
    for ids, message in [([0, 1], r"row 1 of .* and 0 others have fewer than 2 tokens"), ([2], "'text' is None, not")]:
        with pytest.raises(TaskError, match=message):
            built("huggingface_text", {"ids": ids}, dataset=data, split="train", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="max_length=1: must be at least 2"):
        built("huggingface_text", dataset=data, split="train", tokenizer=tokenizer, max_length=1)
    with pytest.raises(TaskError, match=r"huggingface_text.*raises"):
        built("huggingface_text", dataset=data, split="train", tokenizer=str(tmp_path / "no_tokenizer"))


BOOLQ = {"template": "{passage} {question}?", "answers": [" no", " yes"], "label_column": "answer"}


def boolq(root: Path) -> str:
    return saved(
        root,
        passage=["the sky is blue", "the sea {is}", "the sky is deep is the sea"],
        question=["is the sky blue", "is the sea blue", "blue"],
        answer=[True, False, True],
    )


def test_yes_and_no(tmp_path: Path, tokenizer: str) -> None:
    arguments = {"dataset": boolq(tmp_path / "data"), "split": "validation", "tokenizer": tokenizer, **BOOLQ}
    examples = built("huggingface_answers", **arguments)
    expected = [
        tokens_of("the sky is blue is the sky blue?"),
        tokens_of("the sea { is } is the sea blue?"),
        tokens_of("the sky is deep is the sea blue?"),
    ]
    assert examples.targets.tolist() == [
        [9, ID["yes"], ID["no"]],
        [10, ID["no"], ID["yes"]],
        [9, ID["yes"], ID["no"]],
    ]
    for row, tokens in enumerate(expected):
        position = examples.targets[row, 0]
        assert examples.inputs["input_ids"][row, : position + 1].tolist() == tokens
        assert examples.inputs["attention_mask"][row].tolist() == [i <= position for i in range(11)]
    no = built("huggingface_answers", {"classes": [0]}, **arguments)
    assert no.columns["source_id"].tolist() == [1]
    cut = built("huggingface_answers", max_length=5, truncate=True, **arguments)
    assert [row[1:] for row in cut.inputs["input_ids"].tolist()] == [tokens[-4:] for tokens in expected]
    assert cut.targets[:, 0].tolist() == [4, 4, 4]
    bare = built("huggingface_answers", add_special_tokens=False, **arguments)
    assert bare.inputs["input_ids"][1].tolist() == expected[1][1:]


@pytest.mark.parametrize("streaming", [False, True])
def test_answers_of_every_examples_own(tmp_path: Path, tokenizer: str, streaming: bool) -> None:
    data = saved(
        tmp_path / "data", prompt=["Mary John gave", "John gave"], who=["Mary", "John"], other=["John", "Mary"]
    )
    arguments = {"dataset": data, "split": "test", "tokenizer": tokenizer, "columns": ["who"], "streaming": streaming}
    examples = built("huggingface_answers", template="{prompt}", answers=[" {who}", " {other}", " the"], **arguments)
    assert examples.targets.tolist() == [[3, ID["Mary"], ID["John"], ID["the"]], [2, ID["John"], ID["Mary"], ID["the"]]]
    assert examples.columns["who"].tolist() == ["Mary", "John"]
    assert examples.columns["excerpt"].tolist() == ["Mary John gave", "John gave"]


def test_counterfactuals_of_rows(tmp_path: Path, tokenizer: str) -> None:
    data = saved(
        tmp_path / "data", prompt=["Mary John gave", "John gave"], who=["Mary", "John"], other=["John", "Mary John"]
    )
    arguments = {"dataset": data, "split": "test", "tokenizer": tokenizer, "answers": [" Mary", " John"]}
    arguments |= {"template": "{who} gave", "counterfactual_template": "{other} gave"}
    examples = built("huggingface_answers", {"ids": [0]}, **arguments)
    assert examples.inputs["input_ids"].tolist() == [tokens_of("Mary gave")]
    assert examples.counterfactual["input_ids"].tolist() == [tokens_of("John gave")]
    assert examples.counterfactual["attention_mask"].tolist() == examples.inputs["attention_mask"].tolist()
    with pytest.raises(TaskError, match=r"row 1 of .*: its prompt has 3 tokens and its counterfactual 4, but both"):
        built("huggingface_answers", **arguments)


def test_prompts_in_python(tokenizer: str) -> None:
    texts = ["Mary John gave", "John gave"]
    given = {"answers": [" Mary", " John"], "against": " the", "counterfactual": ["John Mary gave", "Mary gave"]}
    examples = prompts(tokenizer, texts, columns={"n": [1, 2]}, **given)  # type: ignore[arg-type]
    assert examples.targets.tolist() == [[3, ID["Mary"], ID["the"]], [2, ID["John"], ID["the"]]]
    assert examples.columns["n"].tolist() == [1, 2]
    assert isinstance(examples.inputs, dict)
    assert isinstance(examples.counterfactual, dict)
    for row, text in enumerate(texts):
        assert examples.inputs["input_ids"][row, : len(tokens_of(text))].tolist() == tokens_of(text)
    assert examples.counterfactual["input_ids"][0].tolist() == tokens_of("John Mary gave")
    several = prompts(tokenizer, texts, answers=" the", against=[[" Mary", " John"], [" John", " Mary"]])
    assert several.targets[:, 1:].tolist() == [[ID["the"], ID["Mary"], ID["John"]], [ID["the"], ID["John"], ID["Mary"]]]
    with pytest.warns(CoarWarning, match=r"prompt 0: .*gave' and the answer 'Mary' are other tokens .* a blank"):
        prompts(tokenizer, texts, **{**given, "answers": ["Mary", "John"]})  # type: ignore[arg-type]
    for changes, message in [
        ({"answers": [" Mary"]}, r"answers: there are 1 for 2 prompts"),
        ({"against": [" John", " John"]}, r"prompt 1: two of its answers are the same token"),
        ({"against": [[" the"], [" the", " Mary"]]}, r"against: every prompt needs as many alternatives"),
        ({"counterfactual": ["John gave", "Mary gave"]}, r"prompt 0: its prompt has 4 tokens and its counterfactual 3"),
        ({"answers": " Mary John"}, r"prompt 0: the answer ' Mary John' is 2 tokens"),
    ]:
        with pytest.raises(TaskError, match=message):
            prompts(tokenizer, texts, **{**given, **changes})  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="one is a string"):
        prompts(tokenizer, "Mary gave", answers=" John", against=" the")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"answers": [" yes"]}, ConfigError, r"answers=\[' yes'\]: there must be at least two"),
        ({"answers": [" yes", " not so"]}, TaskError, r"row 0 .*' not so' is 2 tokens .* Choose another word"),
        ({"answers": [" yes", " zebra"]}, TaskError, "does not know the answer ' zebra'"),
        ({"answers": [" yes", "yes"]}, TaskError, "two of its answers are the same token"),
        ({"answers": [" no", " {reply}"]}, TaskError, "has no column 'reply'; it has passage, question, answer"),
        ({"template": "{question"}, ConfigError, r"expected '}' before end of string; write \{\{ for a brace"),
        ({"template": "{question.__class__}"}, TaskError, "has no column 'question.__class__'"),
        ({"template": "{question!r}"}, ConfigError, r"only \{column\} is allowed in braces"),
        ({"template": "{}"}, ConfigError, r"only \{column\} is allowed in braces"),
        ({"max_length": 0}, ConfigError, "max_length=0"),
        ({"max_length": 9}, TaskError, "row 0 .*its prompt has 10 tokens, but must have 1 to 9. Raise max_length"),
        ({"label_column": "question"}, TaskError, "'question' is 'is the sky blue', not an integer class label"),
    ],
)
def test_answers_that_do_not_fit(
    tmp_path: Path, tokenizer: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"dataset": boolq(tmp_path / "data"), "split": "test", "tokenizer": tokenizer, **BOOLQ}
    with pytest.raises(error, match=message):
        built("huggingface_answers", **{**arguments, **changes})


def test_labels_and_prompts_that_do_not_fit(tmp_path: Path, tokenizer: str) -> None:
    data = saved(tmp_path / "data", prompt=["the sky", "", None], label=[2, 0, 1])
    arguments = {"dataset": data, "split": "test", "template": "{prompt}", "answers": [" no", " yes"]}
    for ids, changes, message in [
        ([0], {"label_column": "label"}, "row 0 .*'label' is 2, but there are 2 answers"),
        ([1], {"add_special_tokens": False}, "row 1 .*its prompt has 0 tokens"),
        ([2], {}, "row 2 .*column 'prompt', which the template needs, is empty"),
    ]:
        with pytest.raises(TaskError, match=message):
            built("huggingface_answers", {"ids": ids}, tokenizer=tokenizer, **arguments, **changes)
    with_end = saved_tokenizer(tmp_path / "with_end", "<bos> $A <eos>")
    with pytest.raises(TaskError, match=r"adds '<eos>' to the end of the prompt.*add_special_tokens=false"):
        built("huggingface_answers", {"first": 1}, tokenizer=with_end, **arguments)
    source = huggingface_answers(tokenizer=with_end, add_special_tokens=False, **arguments)
    assert source.num_examples == 3
