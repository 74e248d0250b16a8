"""Texts, token regions and crops of single items, each by hand."""

import pytest

from nmoe.eval.prompts import build_item, render
from nmoe.eval.tasks import CoreError, Task
from tests.eval.fakes import BOS, encode_bytes


def make_task(task_type, rows, *, shots=0, delimiter=" "):
    return Task(
        label="made",
        task_type=task_type,
        num_shots=shots,
        delimiter=delimiter,
        baseline=0.25,
        rows=tuple(rows),
    )


def choice(*choices, query="q", gold=0):
    return {"query": query, "choices": list(choices), "gold": gold}


def answer(context, continuation):
    return {"context": context, "continuation": continuation}


def build(task, index=0, **options):
    return build_item(task, index, encode=encode_bytes, bos_id=BOS, **options)


def scored(item):
    """The scored text of each prompt."""
    return [
        bytes(token - 1 for token in prompt.tokens[prompt.end - prompt.num_scored : prompt.end])
        for prompt in item.prompts
    ]


def test_choices_keep_odd_whitespace_when_rendered():
    row = choice("A", " B ", query="goal\n")
    piqa = make_task("multiple_choice", [row], delimiter="\nAnswer: ")
    assert render(piqa, 0) == ["goal\n\nAnswer: A", "goal\n\nAnswer:  B "]
    letters = make_task("multiple_choice", [choice("A", "B", query="Answer: ")])
    assert render(letters, 0) == ["Answer:  A", "Answer:  B"]


def test_shots_are_the_other_rows_when_all_are_drawn():
    rows = [choice("no", "yes", query=f"q{i}", gold=1) for i in range(3)]
    texts = render(make_task("multiple_choice", rows, shots=2), 1)
    assert sorted(texts[0].split("\n\n")) == ["q0 yes", "q1 no", "q2 yes"]
    assert texts[0].split("\n\n")[:2] == texts[1].split("\n\n")[:2]
    assert texts[1].endswith("\n\nq1 yes")


def test_stem_is_stripped_only_without_answer_when_language_modeling():
    task = make_task("language_modeling", [answer(" \nthe sky is ", "blue ")])
    assert render(task, 0) == ["the sky is blue ", "the sky is"]
    assert scored(build(task)) == [b" blue "]
    spaced = make_task("language_modeling", [answer("end.", "\n\nnew")])
    assert scored(build(spaced)) == [b" \n\nnew"]


def test_choice_regions_start_at_first_difference_when_choices_share_a_beginning():
    item = build(make_task("multiple_choice", [choice("the cat", "the cow", "the ant")]))
    assert scored(item) == [b"cat", b"cow", b"ant"]
    assert [prompt.start for prompt in item.prompts] == [1 + len("q the ")] * 3


def test_schema_region_is_the_common_tail_when_options_share_their_end():
    row = {"context_options": ["Ann saw", "Bob, too, saw"], "continuation": "him", "gold": 1}
    item = build(make_task("schema", [row]))
    assert scored(item) == [b" saw him", b" saw him"]
    assert item.gold == 1


def test_region_is_empty_when_a_choice_begins_the_other():
    item = build(make_task("multiple_choice", [choice("go on", "go")]))
    assert scored(item) == [b" on", b""]
    same = build(make_task("multiple_choice", [choice("go", "go")]))
    assert scored(same) == [b"", b""]


def test_region_is_empty_when_schema_options_are_equal():
    row = {"context_options": ["same", "same"], "continuation": "end", "gold": 0}
    item = build(make_task("schema", [row]))
    assert [(prompt.start, prompt.num_scored) for prompt in item.prompts] == [(0, 0), (0, 0)]


def test_item_is_refused_when_answer_adds_no_token():
    with pytest.raises(CoreError, match=r"'made' item 0: .* no strict prefix"):
        build(make_task("language_modeling", [answer("a", "")], delimiter=""))
    assert scored(build(make_task("language_modeling", [answer("a", " ")], delimiter=""))) == [b" "]


def test_item_is_refused_when_tokens_of_stem_are_no_prefix():
    def merging(text):
        return [ord(c) for c in text.replace("is b", "\x01")]

    task = make_task("language_modeling", [answer("it is", "blue")])
    with pytest.raises(CoreError, match="no strict prefix"):
        build_item(task, 0, encode=merging, bos_id=BOS)


def test_row_keeps_its_last_tokens_when_longer_than_context():
    task = make_task("multiple_choice", [choice("yes", "never", query="a long question")])
    whole = build(task)
    item = build(task, max_tokens=10)
    assert scored(item) == scored(whole) == [b"yes", b"never"]
    assert [len(prompt.tokens) for prompt in item.prompts] == [10, 10]
    assert [prompt.end for prompt in item.prompts] == [10, 10]
    assert item.is_cropped
    assert not whole.is_cropped
    assert not build(task, max_tokens=len(whole.prompts[1].tokens)).is_cropped


def test_item_is_refused_when_its_region_is_cut():
    task = make_task("multiple_choice", [choice("yes", "never", query="a long question")])
    with pytest.raises(CoreError, match="does not fit"):
        build(task, max_tokens=4)
    free = make_task("language_modeling", [answer("why", "because")])
    assert scored(build(free, max_tokens=9)) == [b" because"]
    with pytest.raises(CoreError, match="fills all 8 tokens"):
        build(free, max_tokens=8)
