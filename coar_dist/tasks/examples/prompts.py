"""Prompts with one right next token, made of the rows of a data set by a template."""

from __future__ import annotations

from string import Formatter

from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.answers import AnswerPrompts
from coar_dist.tasks.examples.huggingface import Gathered, HubRows, Pairs, Row
from coar_dist.tasks.examples.source import IndexedSource, StreamedSource
from coar_dist.tasks.examples.tokens import tokenizer_of


def huggingface_answers(
    dataset: str,
    split: str,
    tokenizer: str,
    template: str,
    answers: list[str],
    label_column: str | None = None,
    config_name: str | None = None,
    max_length: int = 512,
    truncate: bool = False,
    add_special_tokens: bool = True,
    columns: list[str] | None = None,
    streaming: bool = False,
    counterfactual_template: str | None = None,
) -> IndexedSource | StreamedSource:
    """Prompts whose next token is the answer, for ``task.output_function=answer_token_margin``.

    BoolQ: ``template="{passage}\\nQuestion: {question}?\\nAnswer:" answers=[" no", " yes"] label_column=answer``.
    Indirect objects: ``template="{prompt}" answers=[" {indirect_object}", " {subject}"]``, the first one being right.

    Args:
        dataset, split, config_name, streaming: see ``HubRows.open``.
        tokenizer: a name on the hub or a folder.
        template: the prompt; ``{name}`` stands for the row's column of that name, ``{{`` for a brace.
        answers: two or more, as they follow the prompt (with their blank); each is one token. They are templates too.
        label_column: which answer is right: an integer, or a truth value, whose answers are ``[if false, if true]``.
            None: always the first.
        max_length: tokens of a prompt at most.
        truncate: cut the start off longer prompts; else they are an error.
        add_special_tokens: whether the tokenizer adds its own, e.g. one that begins a text.
        columns: further columns to keep with the examples.
        counterfactual_template: the prompt of ``ablation.value=counterfactual``, e.g. with another name in the place of
            one; as many tokens as the prompt.

    Returns:
        Inputs ``input_ids`` and ``attention_mask``, (num_examples, length) int64 each, padded on the right to the
        longest of the chosen prompts. Targets (num_examples, 1 + num_answers) int64: the position of the prompt's last
        token, the right answer's token, the other answers' tokens in their order. ``source_id`` is the row, ``excerpt``
        the beginning of the prompt.

    Raises:
        ConfigError: a template is malformed, or there are fewer than two answers.
        TaskError: a column is missing, an answer is not one token or not unlike the others, a label has no answer, a
            prompt is empty, too long, or ends in a token that the tokenizer has added, or a counterfactual is of
            another length than its prompt.
    """
    if len(answers) < 2:
        raise ConfigError(f"answers={answers}: there must be at least two.")
    if max_length < 1:
        raise ConfigError(f"max_length={max_length}: must be at least 1.")
    templates = [template] if counterfactual_template is None else [template, counterfactual_template]
    used = [name for text in (*templates, *answers) for name in _fields(text)]
    labelled = [] if label_column is None else [label_column]
    rows = HubRows.open(dataset, split, config_name, streaming, [*used, *labelled, *(columns or ())])
    encoding = AnswerPrompts(tokenizer_of(tokenizer), tokenizer, add_special_tokens, max_length, truncate)

    def answer_tokens(row: Row, name: str) -> list[int]:
        """The right answer's token, then the others'."""
        tokens = encoding.answer_tokens([_filled(answer, row, name) for answer in answers], name)
        right = 0 if label_column is None else rows.label(row, label_column, name)
        if not 0 <= right < len(tokens):
            raise TaskError(f"{name}: {label_column!r} is {right}, but there are {len(tokens)} answers, from 0 on.")
        return [tokens.pop(right), *tokens]

    def load(pairs: Pairs) -> ExampleSet:
        gathered, texts, others, names, tokens_of_answers = Gathered(columns), [], [], [], []
        for i, row in gathered.passing(pairs):
            names.append(f"row {i} of {rows.where}")
            texts.append(_filled(template, row, names[-1]))
            if counterfactual_template is not None:
                others.append(_filled(counterfactual_template, row, names[-1]))
            tokens_of_answers.append(answer_tokens(row, names[-1]))
        counterfactual = None if counterfactual_template is None else others
        return encoding.examples(texts, counterfactual, names, tokens_of_answers, gathered.columns())

    return rows.source(load, label_column)


def _fields(template: str) -> list[str]:
    """The columns that a template names.

    Raises:
        ConfigError: it holds anything but plain ``{name}``.
    """
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template)]
    except ValueError as error:
        raise ConfigError(f"template {template!r}: {error}; write {{{{ for a brace.") from error
    names = [name for name, _, _ in parts if name is not None]
    wrong = [name for name, spec, conversion in parts if name == "" or spec or conversion]
    if wrong:
        raise ConfigError(f"template {template!r}: only {{column}} is allowed in braces; write {{{{ for a brace.")
    return names


def _filled(template: str, row: Row, name: str) -> str:
    """The template with the row's values; names are looked up whole, so that nothing but columns can be reached."""
    text = []
    for literal, column, _, _ in Formatter().parse(template):
        text.append(literal)
        if column is not None:
            if row[column] is None:
                raise TaskError(f"{name}: column {column!r}, which the template needs, is empty.")
            text.append(str(row[column]))
    return "".join(text)
