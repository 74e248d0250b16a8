"""Rendered tasks on disk: equal to what is rendered anew, shared by ranks, whole or made again."""

import hashlib
import json
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from nmoe.eval.cache import RENDERER_VERSION, read_columns, write_columns
from nmoe.eval.columns import Columns, make_columns
from nmoe.eval.core import CoreError, PromptCache, evaluate
from nmoe.eval.prompts import build_item
from nmoe.eval.tasks import read_tasks
from tests.conftest import REPO_ROOT
from tests.eval import fakes
from tests.eval.fakes import BOS, HashModel, Ranks, encode_words

# What the columns of the synthetic suite are under this version of the renderer: when this test
# fails because prompts or layout were changed on purpose, the version must grow.
PINNED = (1, "0642443658861170")


def evaluated(bundle, out, *, encode=encode_words, warnings=None, folder=None, **options):
    """The bytes of the item records of an evaluation with a cache in `folder`."""
    cache = None
    if folder is not None:
        said = [] if warnings is None else warnings
        cache = PromptCache(
            folder=folder, tokenizer=options.pop("tokenizer", "words"), warn=said.append
        )
    evaluate(bundle, encode, BOS, HashModel(), records=out, cache=cache, **options)
    return out.read_bytes()


def never(text):
    raise AssertionError("encoded again")


def counting(calls):
    def encode(text):
        calls.append(text)
        return encode_words(text)

    return encode


def assert_equal_items(one, other):
    assert (one.index, one.gold, one.text_hash, one.is_cropped) == (
        *(other.index, other.gold, other.text_hash, other.is_cropped),
    )
    for a, b in zip(one.prompts, other.prompts, strict=True):
        assert (a.tokens.tolist(), a.start, a.end) == (b.tokens.tolist(), b.start, b.end)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("max_tokens", [None, 40])
def test_columns_give_the_items_that_are_built_one_by_one(bundle, threads, max_tokens):
    for task in read_tasks(bundle):
        columns = make_columns(task, encode=encode_words, bos_id=BOS, threads=threads)
        sizes = columns.sizes(task, max_tokens=max_tokens)
        for index in range(len(task.rows)):
            built = build_item(task, index, encode=encode_words, bos_id=BOS, max_tokens=max_tokens)
            assert_equal_items(columns.item(task, index, max_tokens=max_tokens), built)
            assert sizes.num_rows[index] == len(built.prompts)
            assert sizes.num_tokens[index] == max(len(prompt.tokens) for prompt in built.prompts)
            assert sizes.num_positions[index] == sum(p.num_scored for p in built.prompts)


def test_columns_refuse_the_item_that_building_refuses(tmp_path):
    rows = [{"context": "x", "continuation": "a " * n} for n in (2, 30, 40)]
    fakes.write_bundle(tmp_path, [fakes.task("t", "language_modeling", rows, baseline=0)])
    (task,) = read_tasks(tmp_path)
    columns = make_columns(task, encode=encode_words, bos_id=BOS)
    found = []
    for index in range(len(task.rows)):
        try:
            build_item(task, index, encode=encode_words, bos_id=BOS, max_tokens=20)
        except CoreError as error:
            found.append(str(error))
    with pytest.raises(CoreError) as refused:
        columns.sizes(task, max_tokens=20)
    assert str(refused.value) == found[0]
    assert len(found) == 2


@pytest.mark.parametrize(("id_", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_tokens_take_two_bytes_until_an_id_needs_more(bundle, tmp_path, id_, dtype):
    task = read_tasks(bundle)[0]
    columns = make_columns(task, encode=lambda text: [id_, *text.encode()], bos_id=BOS)
    write_columns(tmp_path / "file", columns)
    found = read_columns(tmp_path / "file")
    assert found.tokens_N.dtype == columns.tokens_N.dtype == dtype
    for field in fields(Columns):
        assert np.array_equal(getattr(found, field.name), getattr(columns, field.name)), field.name


def test_renderer_version_belongs_to_what_it_renders(bundle):
    digest = hashlib.sha256()
    for task in read_tasks(bundle):
        columns = make_columns(task, encode=encode_words, bos_id=BOS)
        for field in fields(Columns):
            digest.update(getattr(columns, field.name).tobytes())
    assert (RENDERER_VERSION, digest.hexdigest()[:16]) == PINNED


def test_second_evaluation_encodes_nothing_and_scores_the_same(bundle, tmp_path):
    plain = evaluated(bundle, tmp_path / "plain")
    folder = tmp_path / "cache"
    assert evaluated(bundle, tmp_path / "first", folder=folder) == plain
    assert evaluated(bundle, tmp_path / "second", folder=folder, encode=never) == plain
    kept = sorted(folder.iterdir())
    assert len(kept) == len(read_tasks(bundle))
    # the context only crops what is kept; some tasks are kept as well as all
    cropped = evaluated(bundle, tmp_path / "a", folder=folder, encode=never, max_tokens=40)
    assert cropped == evaluated(bundle, tmp_path / "b", max_tokens=40) != plain
    evaluated(bundle, tmp_path / "c", folder=folder, encode=never, tasks=["free"])
    assert sorted(folder.iterdir()) == kept


def test_another_tokenizer_cap_or_row_is_rendered_anew(tmp_path):
    rows = fakes.choice_rows(9)
    bundle = fakes.write_bundle(
        tmp_path / "b", [fakes.task("t", "multiple_choice", rows, shots=2, delimiter=" ")]
    )
    folder, out = tmp_path / "cache", tmp_path / "out"

    def encoded(**options):
        calls = []
        evaluated(bundle, out, folder=folder, encode=counting(calls), **options)
        return len(calls)

    assert encoded() == 36
    assert encoded() == 0
    assert encoded(tokenizer="other") == 36
    assert encoded(cap=5) == 20
    rows[3]["choices"][1] += "!"
    fakes.write_bundle(
        tmp_path / "b", [fakes.task("t", "multiple_choice", rows, shots=2, delimiter=" ")]
    )
    assert encoded() == 36
    fakes.write_bundle(
        tmp_path / "b", [fakes.task("t", "multiple_choice", rows, shots=2, delimiter=": ")]
    )
    assert encoded() == 36
    assert encoded() == 0


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"short"),
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0" * 8),
    ],
)
def test_damaged_file_is_told_and_made_again(bundle, tmp_path, damage):
    folder, out = tmp_path / "cache", tmp_path / "out"
    plain = evaluated(bundle, out, folder=folder)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    damage(victim := sorted(whole)[2])
    warnings = []
    assert evaluated(bundle, out, folder=folder, warnings=warnings) == plain
    assert len(warnings) == 1
    assert f"{victim} is damaged" in warnings[0]
    assert {path: path.read_bytes() for path in folder.iterdir()} == whole


def test_evaluation_goes_on_and_says_so_once_when_nothing_can_be_kept(bundle, tmp_path):
    (tmp_path / "file").write_text("no folder")
    warnings = []
    plain = evaluated(bundle, tmp_path / "plain")
    folder = tmp_path / "file" / "cache"
    assert evaluated(bundle, tmp_path / "out", folder=folder, warnings=warnings) == plain
    assert len(warnings) == 1
    assert f"not kept in {folder}: Not a directory" in warnings[0]


def test_ranks_share_the_rendering_and_agree(bundle, tmp_path):
    plain = evaluated(bundle, tmp_path / "plain")
    alone = []
    evaluated(bundle, tmp_path / "one", encode=counting(alone))
    ranks, calls = Ranks(3), []

    def work(rank):
        return evaluate(
            bundle,
            counting(calls),
            BOS,
            ranks.in_step(HashModel()),
            records=tmp_path / "together",
            rank=rank,
            world=3,
            gather=ranks.gather(rank),
            cache=PromptCache(folder=tmp_path / "cache", tokenizer="words"),
        )

    results = ranks.run(work)
    assert (tmp_path / "together").read_bytes() == plain
    assert len({result.core for result in results}) == 1
    assert sorted(calls) == sorted(alone)


def test_ranks_stop_together_when_a_prompt_cannot_be_rendered(tmp_path):
    good = fakes.task("good", "schema", fakes.schema_rows(5), baseline=50)
    bad = fakes.task(
        "bad", "language_modeling", [{"context": "a", "continuation": ""}], delimiter="", baseline=0
    )
    fakes.write_bundle(tmp_path, [good, bad])
    ranks = Ranks(2)

    def work(rank):
        return evaluate(
            tmp_path,
            encode_words,
            BOS,
            ranks.in_step(HashModel()),
            rank=rank,
            world=2,
            gather=ranks.gather(rank),
            cache=PromptCache(folder=tmp_path / "cache", tokenizer="words"),
        )

    errors = ranks.run(work)
    assert [type(error) for error in errors] == [CoreError] * 2
    assert len({str(error) for error in errors}) == 1


def test_processes_that_make_the_same_file_leave_it_whole(bundle, tmp_path):
    code = f"""
import sys
from pathlib import Path
from nmoe.eval.cache import PromptCache, PromptSource
from nmoe.eval.tasks import read_tasks
assert "torch" not in sys.modules
for turn in range(20):
    for task in read_tasks(Path({str(bundle)!r})):
        cache = PromptCache(folder=Path({str(tmp_path / "cache")!r}), tokenizer=str(turn))
        PromptSource(lambda text: list(text.encode()), 0, cache=cache).columns(task)
"""
    children = [
        subprocess.Popen([sys.executable, "-c", code], cwd=REPO_ROOT, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for child in children:
        _, problem = child.communicate(timeout=60)
        assert (child.returncode, problem) == (0, b"")
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 20 * len(read_tasks(bundle))
    assert all(len(read_columns(path).text_hash_I) for path in files)


def test_records_tell_prompts_apart(bundle, tmp_path):
    def prompts(name, **options):
        out = tmp_path / name
        evaluate(bundle, encode_words, BOS, HashModel(), records=out, **options)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert all(
            list(line) == [*("task", "index", "gold", "chosen", "correct", "losses", "prompt")]
            for line in lines
        )
        return {(line["task"], line["index"]): line["prompt"] for line in lines}

    whole = prompts("whole")
    assert len(set(whole.values())) == len(whole)
    assert prompts("cropped", max_tokens=40) == whole
    capped = prompts("capped", cap=8)
    assert {key for key in capped if capped[key] == whole[key]} < set(capped)
    zero_shot = {key for key in capped if key[0] == "schemas"}
    assert all(capped[key] == whole[key] for key in zero_shot)
    assert zero_shot


@pytest.mark.soak
def test_whole_suite_has_no_violation_with_the_real_tokenizer(real_bundle, real_tokenizer):
    count = 0
    for task in read_tasks(real_bundle):
        columns = make_columns(
            task, encode=real_tokenizer.encode_array, bos_id=real_tokenizer.eos_id, threads=2
        )
        count += len(columns.text_hash_I)
        assert columns.tokens_N.dtype == np.uint16
    assert count == 91_037
