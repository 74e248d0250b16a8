"""The command line: exit codes, progress lines, the last line of stderr, and its start."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nmoe.data import cli
from nmoe.data.manifest import MANIFEST_NAME, digest, read_manifest
from nmoe.data.minibundle import is_whole
from nmoe.data.mixture import PREP_KEYS
from nmoe.paths import REPO_ROOT


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nmoe.data.cli", *map(str, args)]
    return subprocess.run(
        command, cwd=REPO_ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def prep_args(output: Path, part: str = "val") -> list[str | Path]:
    return ["prep", "--source", "stdlib", "--dataset", part, "--tokenizer", "byte"] + [
        *("--output", output, "--name", f"pocket-{part}")
    ]


def progress(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pocket") / "val"
    done = run(*prep_args(output))
    assert done.returncode == 0, done.stderr
    return output


def test_pocket_is_prepared_in_seconds_with_progress_lines_only(tmp_path: Path) -> None:
    start = time.monotonic()

    done = run(*prep_args(tmp_path / "train", "train"), "--json")

    assert time.monotonic() - start < 15  # 1 s on a free machine
    assert done.returncode == 0, done.stderr
    lines = progress(done.stdout)
    assert all(set(line) == {"job", "done", "total", "unit"} for line in lines)
    assert {(line["job"], line["unit"]) for line in lines} == {("pocket-train", "bytes")}
    assert [line["done"] == line["total"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert read_manifest(tmp_path / "train").total_tokens > 4_000_000


def test_people_get_one_line_on_stderr_when_not_on_a_terminal(val: Path) -> None:
    done = run(*prep_args(val))

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("pocket-val: ")
    assert done.stderr.count("\n") == 1


def test_verify_and_info_pass_when_the_dataset_is_whole(val: Path) -> None:
    checked, shown = run("verify", val), run("info", val, "--json")

    assert (checked.returncode, shown.returncode) == (0, 0)
    facts = json.loads(shown.stdout)
    assert facts["digest"] == digest(read_manifest(val))
    assert facts["tokenizer"] == "byte"
    assert str(facts["total_tokens"]) in run("info", val).stdout.replace(",", "")


@pytest.mark.parametrize("name", ["shard_00000.npy", "shard_00000.idx"])
def test_verify_exits_4_and_names_the_file_when_it_is_damaged(
    val: Path, tmp_path: Path, name: str
) -> None:
    for path in val.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    done = run("verify", tmp_path)

    assert done.returncode == 4
    assert name in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("verb", ["verify", "info"])
def test_folder_without_a_dataset_exits_4_with_the_command(tmp_path: Path, verb: str) -> None:
    done = run(verb, tmp_path / "[/bold]", "--json")

    assert (done.returncode, done.stdout) == (4, "")
    assert "[/bold]" in done.stderr
    assert "nmoe.data.cli prep" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_prep_exits_4_when_the_output_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    done = run(*prep_args(tmp_path / "file" / "val"), "--json")

    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith("error: cannot write to")
    assert "Traceback" not in done.stderr


def test_prep_ends_quietly_when_its_reader_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nmoe.data.cli", *map(str, prep_args(tmp_path / "val"))]
    child = subprocess.Popen(
        [*command, "--json"],
        cwd=REPO_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    child.stdout.close()

    _, errors = child.communicate(timeout=60)

    assert child.returncode == 4
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["prep"],
        ["nonsense"],
        ["prep", "--source", "hg", "--dataset", "x", "--output", "y"],
        ["prep", "--source", "stdlib", "--dataset", "val", "--output", "y", "--tokenizer", "z"],
    ],
)
def test_usage_errors_exit_2(args: list[str]) -> None:
    assert run(*args).returncode == 2


@pytest.mark.parametrize(
    ("text", "count"), [("64", 64), ("10B", 10**10), ("1.5m", 1_500_000), ("10,485,760", 10485760)]
)
def test_counts_are_read_with_their_unit(text: str, count: int) -> None:
    args = ["prep", "--source", "text", "--dataset", "x", "--output", "y", "--max-tokens", text]

    assert cli._parser().parse_args(args).max_tokens == count


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "10G", "B", ""])
def test_counts_are_refused_when_they_are_no_whole_number(text: str) -> None:
    done = run(*prep_args(Path("y")), f"--max-tokens={text}")

    assert done.returncode == 2
    assert "expected a number such as" in done.stderr


def test_shares_and_limit_are_kept(tmp_path: Path) -> None:
    done = run(*prep_args(tmp_path), "--max-tokens", "100K", "--num-shards", "4", "--workers", "2")

    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path)
    assert manifest.total_tokens >= 100_000
    assert manifest.facts["num_shards"] == "4"


def test_terminal_shows_rate_time_left_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.sys.stderr, "isatty", lambda: True)
    ticks = iter([0.0, 10.0])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(ticks))
    report = cli.Reporter("set", unit="bytes", is_json=False, disk=tmp_path)

    report(0, 400, 0)
    report(100, 400, 12_340)

    out, shown = capsys.readouterr()
    assert out == ""
    assert "100 of 400 bytes, 1,234 tokens/s, 0:00:30 left" in shown
    assert "GB of disk left" in shown


def test_file_gets_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = iter([0.0, 30.0, 61.0, 62.0, 122.0])
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(ticks))
    report = cli.Reporter("set", unit="bytes", is_json=False)

    for done in (100, 200, 300, 400):
        report(done, 1000, 10 * done)

    assert capsys.readouterr().err.splitlines() == [
        "set: 200 of 1,000 bytes, 32 tokens/s, 0:04:08 left",
        "set: 400 of 1,000 bytes, 33 tokens/s, 0:03:04 left",
    ]


@pytest.mark.parametrize(
    ("source", "option"),
    [("text", "--revision"), ("parquet", "--files"), ("hf", "--keep"), ("hub_parquet", "--split")],
)
def test_option_of_another_source_is_refused(tmp_path: Path, source: str, option: str) -> None:
    done = run(*("prep", "--source", source, "--dataset", "a/b"), option, "x", "--output", tmp_path)

    assert done.returncode == 2
    assert f"{option}: only for --source h" in done.stderr


def test_prep_bundle_writes_the_bundle_once(tmp_path: Path) -> None:
    folder = tmp_path / "pocket_bundle"

    first = run("prep-bundle", "--output", folder, "--json")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    second = run("prep-bundle", "--output", folder, "--json")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert is_whole(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for done in (first, second):
        last = progress(done.stdout)[-1]
        assert last["job"] == "pocket_bundle"
        assert last["done"] == last["total"]


def test_help_imports_neither_torch_nor_pyarrow() -> None:
    program = (
        "import sys\nimport nmoe.data.cli\n"
        "print([m for m in ('torch', 'pyarrow', 'datasets') if m in sys.modules])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO_ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_unfinished_folder_is_not_a_dataset(val: Path, tmp_path: Path) -> None:
    for path in val.iterdir():
        if path.name != MANIFEST_NAME:
            (tmp_path / path.name).write_bytes(path.read_bytes())

    assert run("verify", tmp_path).returncode == 4


MIXTURE = """
tokenizer = "byte"
[sources.prose]
source = "text"
dataset = "texts/prose"
[sources.rows]
source = "jsonl"
dataset = ["texts/rows.jsonl"]
text_key = "body"
[sources.made]
path = "ready"
[validation]
source = "text"
dataset = "texts/val.txt"
"""


@pytest.fixture
def mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mixture file and its texts in a data root of their own."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    texts = tmp_path / "texts"
    (texts / "prose").mkdir(parents=True)
    (texts / "prose" / "a.txt").write_text("It was a dark and stormy night.")
    (texts / "rows.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    (texts / "val.txt").write_text("Call me Ishmael.")
    (texts / "ready.txt").write_text("made before")
    ready = ("--dataset", texts / "ready.txt", "--output", tmp_path / "ready")
    done = run("prep", "--source", "text", *ready)
    assert done.returncode == 0, done.stderr
    (tmp_path / "stories.toml").write_text(MIXTURE)
    return tmp_path / "stories.toml"


def test_mixture_is_prepared_source_by_source_and_found_whole_again(mixture: Path) -> None:
    first = run("prep-mixture", mixture, "--json")
    again = run("prep-mixture", mixture)

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    jobs = [line["job"] for line in progress(first.stdout)]
    assert list(dict.fromkeys(jobs)) == ["stories-prose", "stories-rows", "stories-val"]
    assert again.stderr.count("\n") == 3
    made = mixture.parent / "mixtures" / "stories"
    assert sorted(path.name for path in made.iterdir()) == ["prose", "rows", "val"]
    assert read_manifest(made / "rows").num_docs == 2


@pytest.mark.parametrize(
    ("before", "after", "code", "message"),
    [
        ('"jsonl"', '"jsonnl"', 2, "stories.toml: rows is not what prep takes"),
        ("text_key", "text_kee", 2, 'unknown key "text_kee". Did you mean "text_key"'),
        ("text_key", "max_tokens", 2, "stories.toml: rows is not what prep takes"),
        ("rows.jsonl", "rosw.jsonl", 4, "texts/rosw.jsonl, expected a file or a folder"),
        ('"ready"', '"raedy"', 4, "no dataset in"),
    ],
)
def test_mixture_that_cannot_be_prepared_is_refused_with_the_place(
    mixture: Path, before: str, after: str, code: int, message: str
) -> None:
    mixture.write_text(MIXTURE.replace(before, after))

    done = run("prep-mixture", mixture)

    assert done.returncode == code
    assert message in done.stderr.splitlines()[-1]
    if code == 2:
        assert not (mixture.parent / "mixtures").exists()


def test_mixture_takes_the_options_of_prep() -> None:
    options = set(re.findall(r"--([a-z-]+)", run("prep", "--help").stdout))
    # what prep-mixture sets itself, or takes for all sources
    options -= {"help", "output", "name", "tokenizer", "workers", "json", "mirror", "keep"}

    assert {name.replace("-", "_") for name in options} <= PREP_KEYS


def test_verify_tells_what_training_shares_with_validation(val: Path, tmp_path: Path) -> None:
    text = "".join(f"line {number} of a text\n" for number in range(100))
    (tmp_path / "text.txt").write_text(text)
    other = tmp_path / "other"
    done = run("prep", "--source", "text", "--dataset", tmp_path / "text.txt", "--output", other)
    assert done.returncode == 0, done.stderr

    apart = run("verify", other, "--against", val)
    copied = run("verify", val, "--against", val, "--window", "64")
    allowed = run("verify", val, "--against", val, "--max-overlap", "1", "--json")

    assert apart.returncode == 0, apart.stderr
    assert "(0.000%) lie in windows of 200 tokens" in apart.stdout
    assert copied.returncode == 4
    assert copied.stdout.count("\n  document ") == 5
    assert "got 100.000% of its tokens, expected at most 1.000%" in copied.stderr.splitlines()[-1]
    assert allowed.returncode == 0
    assert progress(allowed.stdout)[-1]["overlap"]["share"] == 1.0
