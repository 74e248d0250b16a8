"""The bundles that tests score: a synthetic one, and the real one where its archive is present."""

import os
import tarfile
from pathlib import Path

import pytest

from nmoe.data.tokenizer import GPT2, TiktokenTokenizer
from tests.eval import fakes

_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return fakes.write_bundle(tmp_path_factory.mktemp("bundle"), fakes.usual_tasks())


@pytest.fixture(scope="session")
def real_bundle(tmp_path_factory):
    archive = Path(os.environ.get("NMOE_TEST_DATA", _DATA)) / "eval_bundle.tar.xz"
    if not archive.exists():
        pytest.skip(f"the real CORE bundle is absent: no {archive}")
    root = tmp_path_factory.mktemp("real")
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    return root / "eval_bundle"


@pytest.fixture(scope="session")
def real_tokenizer():
    path = Path(os.environ.get("NMOE_TEST_DATA", _DATA)) / "gpt2_bpe" / "gpt2.tiktoken"
    if not path.exists():
        pytest.skip(f"the GPT-2 vocabulary is absent: no {path}")
    return TiktokenTokenizer.open(GPT2, path)
