"""The README tells the truth: its tree, its scores, its commands, its query, its links."""

import json
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from nmoe.metrics import MetricsWriter
from tests.conftest import REPO_ROOT

README = (REPO_ROOT / "README.md").read_text()
PACKAGES = ("nmoe", "harness", "tui")


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def fenced(text: str, language: str = "") -> str:
    match = re.search(rf"```{language}\n(.*?)```", text, flags=re.S)
    assert match, f"no ```{language} block"
    return match[1]


def tree() -> list[str]:
    """Every path of the tree, from the repository root."""
    paths, folder = [], ""
    for line in fenced(section("Tree")).splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            paths.append(folder + name)
        else:
            folder = name
            paths.append(name)
    return paths


def test_tree_names_only_what_exists():
    assert [path for path in tree() if not (REPO_ROOT / path).exists()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_tree_names_every_module(package: str):
    listed = {path.rstrip("/") for path in tree()}
    present = {
        f"{package}/{entry.name}"
        for entry in (REPO_ROOT / package).iterdir()
        if not entry.name.startswith(("_", "."))
    }
    assert present - listed == set()


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    assert [each for each in targets if not (REPO_ROOT / each).exists()] == []


def test_scores_are_the_published_rows():
    published = json.loads((REPO_ROOT / "LEADERBOARD.json").read_text())["published"]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section("Scores").splitlines()
        if "published, not verified here" in line
    ]
    assert rows == [
        [
            each["preset"],
            f"{each['devices']}x {each['machine']}",
            each["dtype"],
            f"{each['train_s']:.1f} s",
            str(each["step"]),
            f"{each['tokens']:,}",
            f"{each['loss']:.5f}",
            f"{each['core']:.5f}",
            each["status"],
        ]
        for each in published
    ]


def test_commands_are_the_verbs_of_n():
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "--help"], capture_output=True, text=True
    )
    verbs = set(re.findall(r"^  (\w+)  +\S", done.stdout.partition("Commands:")[2], flags=re.M))
    listed = set(re.findall(r"`n (\w+)", section("Commands").partition("`--headless`")[0]))
    assert verbs
    assert listed == verbs | {"test"}


def test_query_reads_the_curve_of_a_run(data_dir: Path):
    writer = MetricsWriter(data_dir / "metrics" / "RUN", "RUN")
    writer.add(10, {"train/loss": 5.0, "train/grad_norm": 1.0})
    writer.flush()
    writer.add(20, {"train/loss": 4.0, "valid/loss": 4.5})
    writer.flush()
    query = fenced(README, "sql").replace("$DATA_DIR", str(data_dir))
    assert duckdb.connect().execute(query).fetchall() == [(10, 5.0, None), (20, 4.0, 4.5)]


def test_trainer_commands_name_configs_that_exist():
    named = re.findall(r"configs/\S+\.toml", README)
    assert [each for each in named if not (REPO_ROOT / each).exists()] == []
