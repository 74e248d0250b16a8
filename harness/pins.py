"""What the official eval bundle consists of, by hash, and the record of what was unpacked.

`bundle.json` in the folder of a bundle names every file with its size and sha256. A bundle that
came from the official archive is official; any other is custom and names the files that differ.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nmoe.paths import file_digest, write_atomic

RECORD = "bundle.json"
OFFICIAL_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
ARCHIVE_PIN = "90a7c19e28ee7a52b4f6e1f87658deb9fde7f63deba2379045bdb1fe9ea5d200"
# sha256 of the official lists, v1 baselines; equal in all public copies of the bundle.
PINS = {
    "core.yaml": "463f6ae0aa127fbd41fa655f8919e136858f4849eef176922a3be96e102ce7e7",
    "eval_meta_data.csv": "84e279cdc0d836c9ea3a6e55a99102f8ee18f72809fe7aa6ac5a1fe630aa492f",
}
# The rows of the tasks, below eval_data; hellaswag is known by the archive's hash alone.
TASK_PINS = {
    "commonsense_reasoning/commonsense_qa.jsonl": (
        "2771f63f8127c0725b1f6b0ef2cd2ef6469168ae5875fc8d276b25b4f32c8c1a"
    ),
    "commonsense_reasoning/copa.jsonl": (
        "595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846"
    ),
    "commonsense_reasoning/openbook_qa.jsonl": (
        "adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09"
    ),
    "commonsense_reasoning/piqa.jsonl": (
        "d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0"
    ),
    "language_understanding/bigbench_language_identification.jsonl": (
        "80c98d8e7ab8213513d1643886229c05c40a6837353b07c19ac7bd860668954e"
    ),
    "language_understanding/lambada_openai.jsonl": (
        "411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc"
    ),
    "language_understanding/winograd_wsc.jsonl": (
        "746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e"
    ),
    "language_understanding/winogrande.jsonl": (
        "ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7"
    ),
    "reading_comprehension/boolq.jsonl": (
        "454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8"
    ),
    "reading_comprehension/coqa.jsonl": (
        "0c2b8029776a138f755d065b9506eb8e91bbd38c44dce321a75f9987bb7875aa"
    ),
    "reading_comprehension/squad.jsonl": (
        "41fe6c43e725c0dc9161465066932c46edc390bf4019c361c500bbc4b766a350"
    ),
    "symbolic_problem_solving/agi_eval_lsat_ar.jsonl": (
        "9ffd73480b51746c11627e56239f8b87035eb255cb92c3a58fd64e2e4b65fb56"
    ),
    "symbolic_problem_solving/bigbench_cs_algorithms.jsonl": (
        "8485683a8c7e7e6c9fc6ca3cc81140fd85edb27f34406a6736d1539cf7ebcb3a"
    ),
    "symbolic_problem_solving/bigbench_dyck_languages.jsonl": (
        "106ba9ac7507c7ab385c5e59c49cd57aa83025abf080d9b2a2661c0d6c6dbcc5"
    ),
    "symbolic_problem_solving/bigbench_operators.jsonl": (
        "41e2964ad619c49edd97c22b2c50f922a0241255d906a754bf81a20f4f66b85f"
    ),
    "symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl": (
        "8febd2c0080a15680cd17f92bfa30d87abcfac021e646e55d0b8ad69f0cfa767"
    ),
    "world_knowledge/arc_challenge.jsonl": (
        "1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636"
    ),
    "world_knowledge/arc_easy.jsonl": (
        "d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5"
    ),
    "world_knowledge/bigbench_qa_wikidata.jsonl": (
        "bb0d22727cb25beffb022c8e8c0c3e1159c8b3c7bd7284603c0d6491f8616265"
    ),
    "world_knowledge/jeopardy_all.jsonl": (
        "187e7f270a440c63d6cf11a57459fdc7e0bce889338225e42cc88e24ee13d52e"
    ),
}
# One per task in core.yaml; a line is enough, so that no YAML parser is loaded for a check.
_TASK_FILE = re.compile(r"^\s*(?:-\s*)?dataset_uri:\s*[\"']?([^\s\"']+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRecord:
    """Where a bundle came from; `differs` names its files that are not the official ones."""

    is_official: bool
    differs: tuple[str, ...]
    source: str
    archive_sha256: str
    files: dict[str, tuple[int, str]]

    @property
    def status(self) -> str:
        """`official`, or `custom` with the files that differ."""
        return "official" if self.is_official else f"custom ({', '.join(self.differs)})"


def task_files(folder: Path) -> list[str]:
    """The files that core.yaml names, each once, from the folder of the bundle."""
    text = (folder / "core.yaml").read_text(encoding="utf-8", errors="replace")
    return list(dict.fromkeys(f"eval_data/{name}" for name in _TASK_FILE.findall(text)))


def missing_files(folder: Path) -> list[str]:
    """What keeps a folder from being a bundle: lists or rows that are absent or empty."""
    lists = [name for name in PINS if not (folder / name).is_file()]
    return lists or [name for name in task_files(folder) if not _is_filled(folder / name)]


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def make_record(folder: Path, *, source: str, archive_sha256: str) -> BundleRecord:
    """The record of an unpacked bundle that is not missing anything; hashes every file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    files = {
        str(path.relative_to(folder)): (path.stat().st_size, file_digest(path)) for path in paths
    }
    known = PINS | {f"eval_data/{name}": pin for name, pin in TASK_PINS.items()}
    needed = dict.fromkeys([*PINS, *task_files(folder)])
    is_official = archive_sha256 == ARCHIVE_PIN
    differs = tuple(name for name in needed if files.get(name, (0, ""))[1] != known.get(name))
    return BundleRecord(
        is_official=is_official,
        differs=() if is_official else differs or ("the archive",),
        source=source,
        archive_sha256=archive_sha256,
        files=files,
    )


def write_record(folder: Path, record: BundleRecord) -> None:
    """Write bundle.json, whole or not at all."""
    shown = {"status": record.status, **asdict(record)}
    write_atomic(folder / RECORD, json.dumps(shown, indent=1) + "\n")


def read_record(folder: Path) -> BundleRecord | None:
    """The record of a bundle; None when there is none that can be read."""
    try:
        raw: Any = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return BundleRecord(
            is_official=raw["is_official"] is True,
            differs=tuple(str(name) for name in raw["differs"]),
            source=str(raw["source"]),
            archive_sha256=str(raw["archive_sha256"]),
            files={str(name): (int(size), str(sha)) for name, (size, sha) in raw["files"].items()},
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
