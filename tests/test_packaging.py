"""Installing: the launcher, the bootstrap and the image share one script, which runs here.

Nothing is downloaded: `python3` on PATH makes environments that see what is installed already, so
pip finds every requirement met and installs the project alone.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import REPO_ROOT

COPIED = (
    *("n", "pyproject.toml", "constraints.txt", "LICENSE", "NOTICE", "README.md"),
    *("THIRD_PARTY_NOTICES.md", "nmoe", "harness", "tui", "scripts", "configs", "docker", ".ci"),
)
FAKE_PYTHON = f"""#!/bin/sh
# Without a version of pip of its own: the installed one serves.
if [ "$1 $2" != "-m venv" ]; then exec {sys.executable} "$@"; fi
echo made >>"$(dirname "$0")/venvs"
for folder; do :; done
{sys.executable} "$@" --without-pip && printf '%s\\n' '{sysconfig.get_path("purelib")}' >"$(
    "$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/near.pth"
"""
GOOD_GPU = "NVIDIA B200, 10.0, 183359 MiB, 580.65.06"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A copy of the project, and the folder that comes first on PATH when it is used."""

    root: Path
    bin: Path

    def run(self, *command: object, env: Mapping[str, str] | None = None, cwd: Path | None = None):
        return subprocess.run(
            [str(each) for each in command],
            cwd=cwd or self.root,
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", **(env or {})},
            capture_output=True,
            text=True,
            timeout=200,
        )

    def tool(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.write_text(script)
        path.chmod(0o755)
        return path

    @property
    def venvs_made(self) -> int:
        made = self.bin / "venvs"
        return len(made.read_text().splitlines()) if made.exists() else 0

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / "installed-run"


def make_clone(folder: Path) -> Clone:
    clone = Clone(root=folder / "nmoe clone", bin=folder / "bin")
    clone.root.mkdir()
    clone.bin.mkdir()
    for name in COPIED:
        source = REPO_ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, clone.root / name, ignore=ignore)
        else:
            shutil.copy(source, clone.root / name)
    clone.tool("python3", FAKE_PYTHON)
    return clone


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return make_clone(tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose first `./n` has run."""
    clone = make_clone(tmp_path_factory.mktemp("installed"))
    done = clone.run("./n", "--help")
    assert done.returncode == 0, done.stderr
    return clone


def stages(dockerfile: Path) -> dict[str, tuple[str, list[str]]]:
    """Stage -> (what it starts from, its instructions with continued lines joined)."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.M).replace("\\\n", " ")
    found: dict[str, tuple[str, list[str]]] = {}
    current: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            current = []
            found[match[2]] = (match[1], current)
        else:
            current.append(line)
    return found


# ------------------------------------------------------------------------------------ versions


def test_constraints_pin_every_requirement_within_its_range():
    project = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.lower().partition(";")[0].split("==")
        for line in (REPO_ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    unmet = [
        each
        for each in map(Requirement, wanted)
        if not each.specifier.contains(pins.get(each.name.lower(), "0"))
    ]
    assert unmet == []


def test_constraints_hold_for_what_is_installed():
    done = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"],
        capture_output=True,
        text=True,
    )
    installed = {
        name.lower().replace("_", "-"): version.partition("+")[0]
        for name, _, version in (line.partition("==") for line in done.stdout.splitlines())
    }
    text = (REPO_ROOT / "constraints.txt").read_text()
    differing = {
        name: (version, installed[name.lower().replace("_", "-")])
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.M)
        if installed.get(name.lower().replace("_", "-"), version) != version
    }
    assert differing == {}


# ------------------------------------------------------------------------------------ launcher


def test_launcher_installs_once_and_says_so(installed: Clone):
    assert installed.venvs_made == 1
    before = installed.stamp.stat().st_mtime_ns
    second = installed.run("./n", "--help")
    assert second.returncode == 0
    assert second.stderr == ""
    assert (installed.venvs_made, installed.stamp.stat().st_mtime_ns) == (1, before)


def test_launcher_works_through_a_link_from_another_folder(installed: Clone, tmp_path: Path):
    (tmp_path / "linked").symlink_to(installed.root / "n")
    # A file of the current folder must not stand in for a module of the project.
    (tmp_path / "typer.py").write_text("raise SystemExit('the wrong typer')")
    (tmp_path / "harness").mkdir()
    done = installed.run(tmp_path / "linked", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "speedrun" in done.stdout


def test_launcher_passes_on_the_exit_code(installed: Clone):
    assert installed.run("./n", "no-such-verb").returncode == 2


def test_launcher_runs_the_tests_when_asked(installed: Clone):
    """`n test` hands its arguments to pytest, in the folder of the project."""
    shutil.copy(installed.stamp, installed.root / ".venv" / "installed-test")
    done = installed.run(installed.root / "n", "test", "--version", cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    assert "pytest" in done.stdout + done.stderr


def test_launcher_installs_again_when_the_versions_change(clone: Clone):
    assert clone.run("./n", "--help").returncode == 0
    with (clone.root / "constraints.txt").open("a") as file:
        file.write("# one more line\n")
    again = clone.run("./n", "--help")
    assert again.returncode == 0
    assert "n: installed" in again.stderr
    assert clone.stamp.read_text().count("# one more line") == 1


def test_launcher_starts_afresh_when_an_installation_was_killed(clone: Clone):
    assert clone.run("./n", "--help").returncode == 0
    clone.stamp.unlink()
    (clone.root / ".venv" / "installing").touch()
    assert clone.run("./n", "--help").returncode == 0
    assert clone.venvs_made == 2
    assert clone.stamp.exists()
    assert not (clone.root / ".venv" / "installing").exists()


def test_launcher_installs_once_when_started_twice(clone: Clone):
    env = {**os.environ, "PATH": f"{clone.bin}:{os.environ['PATH']}"}
    both = [
        subprocess.Popen(
            ["./n", "--help"], cwd=clone.root, env=env, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert all("speedrun" in each.communicate(timeout=200)[0] for each in both)
    assert [each.returncode for each in both] == [0, 0]
    assert clone.venvs_made == 1


def test_launcher_names_the_fix_when_python_is_too_old(clone: Clone):
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        clone.tool(name, '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.4\nexit 1\n')
    done = clone.run("./n", "--help")
    assert done.returncode == 3
    assert "got Python 3.10.4" in done.stderr
    assert "sudo apt install python3" in done.stderr


@pytest.mark.parametrize(
    ("said", "explained"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError: Failed to resolve", "the package index cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "has no wheel for Python"),
        ("something else", "the reason is above and in"),
    ],
)
def test_launcher_explains_why_an_installation_failed(clone: Clone, said: str, explained: str):
    """A pip that fails, first on the path of the new environment's python."""
    pip = clone.bin / "pip"
    pip.mkdir()
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text(
        "import sys\n"
        "log = sys.argv[sys.argv.index('--log') + 1]\n"
        f"open(log, 'w').write({said!r})\n"
        "sys.exit(1)\n"
    )
    done = clone.run("./n", "--help", env={"PYTHONPATH": str(clone.bin)})
    assert done.returncode == 3
    assert explained in done.stderr
    assert not clone.stamp.exists()
    # What failed in good order is continued, not thrown away.
    assert clone.run("./n", "--help").returncode == 0
    assert clone.venvs_made == 1


def test_ci_runs_the_test_command_of_the_readme():
    commands = (REPO_ROOT / ".ci" / "run").read_text()
    assert "exec ./n test\n" in commands
    assert "./n test" in (REPO_ROOT / "README.md").read_text()


# ----------------------------------------------------------------------------------- bootstrap


@pytest.fixture
def host(installed: Clone, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs bootstrap.sh on a host whose nvidia-smi and torch answer as told."""

    def run(*args: str, smi: str | None = f"echo '{GOOD_GPU}'", sees_gpu: bool = True):
        folder = tmp_path / "host"
        folder.mkdir(exist_ok=True)
        (folder / "torch.py").write_text(
            f"class cuda:\n    is_available = staticmethod(lambda: {sees_gpu})\n"
        )
        path = f"{folder}:{os.environ['PATH']}"
        if smi is not None:
            (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
            (folder / "nvidia-smi").chmod(0o755)
        env = {"PATH": path, "PYTHONPATH": str(folder), "HOME": str(tmp_path)}
        return installed.run("scripts/bootstrap.sh", *args, env=env)

    return run


def test_bootstrap_installs_and_links_when_the_host_is_ready(host, installed, tmp_path):
    done = host("--bin", str(tmp_path / "links"))
    assert done.returncode == 0, done.stderr
    assert "NVIDIA B200" in done.stderr
    assert (tmp_path / "links" / "n").resolve() == installed.root / "n"
    assert installed.run(tmp_path / "links" / "n", "--help", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("smi", "said"),
    [
        ("echo 'Failed to initialize NVML: Driver/library mismatch'; exit 18", "reboot"),
        ("echo 'NVIDIA H100 80GB HBM3, 9.0, 81559 MiB, 535.161.08'", "expected 580 or newer"),
        ("true", "lists no GPU"),
        ("echo 'NVIDIA H100, 9.0, 81559 MiB, [N/A]'", "names no driver version"),
    ],
)
def test_bootstrap_refuses_a_host_when_its_driver_does_not_serve(host, tmp_path, smi, said):
    done = host("--bin", str(tmp_path / "links"), smi=smi)
    assert done.returncode == 3
    assert said in done.stderr
    assert not (tmp_path / "links").exists()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a driver")
def test_bootstrap_names_the_fix_when_there_is_no_driver(host):
    done = host(smi=None)
    assert done.returncode == 3
    assert "Install driver 580 or newer" in done.stderr


def test_bootstrap_refuses_a_torch_that_sees_no_gpu(host, tmp_path):
    done = host("--bin", str(tmp_path / "links"), sees_gpu=False)
    assert done.returncode == 3
    assert "torch does not see the GPUs" in done.stderr


def test_bootstrap_warns_when_no_gpu_is_supported(host, tmp_path):
    smi = "echo 'NVIDIA A100-SXM4-80GB, 8.0, 81920 MiB, 580.65.06'"
    done = host("--bin", str(tmp_path / "links"), smi=smi)
    assert done.returncode == 0
    assert "no GPU here is of compute capability 9.0 or 10.0" in done.stderr


@pytest.mark.parametrize(("args", "code"), [(("--help",), 0), (("--nope",), 2), (("--bin",), 2)])
def test_bootstrap_explains_its_arguments(host, args, code):
    done = host(*args)
    assert done.returncode == code
    assert "scripts/bootstrap.sh" in done.stdout + done.stderr


# --------------------------------------------------------------------------------------- image


def test_image_is_built_in_four_stages_each_on_the_one_before():
    found = stages(REPO_ROOT / "docker" / "Dockerfile")
    assert list(found) == ["base", "system", "deps", "train"]
    assert [origin for origin, _ in found.values()][1:] == ["base", "system", "deps"]


def test_image_starts_with_n():
    instructions = stages(REPO_ROOT / "docker" / "Dockerfile")["train"][1]
    assert 'ENTRYPOINT ["/usr/local/bin/n"]' in instructions
    assert any("ln -s /opt/nmoe/n /usr/local/bin/n" in each for each in instructions)


def test_image_copies_only_what_exists():
    copied = [
        source
        for _, instructions in stages(REPO_ROOT / "docker" / "Dockerfile").values()
        for each in instructions
        if each.startswith("COPY ")
        for source in each.split()[1:-1]
    ]
    assert copied
    assert [each for each in copied if not (REPO_ROOT / each).exists()] == []


def test_image_is_a_target_of_make_for_every_stage():
    for stage in stages(REPO_ROOT / "docker" / "Dockerfile"):
        done = subprocess.run(
            ["make", "-n", "-C", REPO_ROOT / "docker", stage], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"--target {stage}" in done.stdout


def test_image_commands_install_the_project(tmp_path):
    """What the stages copy and run by way of scripts/install.sh, done in a folder of its own."""
    clone = make_clone(tmp_path)
    context, root = clone.root, tmp_path / "opt nmoe"
    root.mkdir()
    for _, instructions in stages(REPO_ROOT / "docker" / "Dockerfile").values():
        for each in instructions:
            verb, _, rest = each.partition(" ")
            if verb == "COPY":
                copy_into(root, context, *rest.split())
            elif verb == "RUN" and "scripts/install.sh" in rest:
                command = rest.partition("&&")[0]
                done = clone.run("sh", "-c", command, cwd=root)
                assert done.returncode == 0, done.stderr
    inside = Clone(root=root, bin=root / ".venv" / "bin")
    assert inside.run("./n", "--help").returncode == 0
    train = inside.run("python", "-m", "nmoe.train", "--help", cwd=Path("/"))
    assert train.returncode == 0, train.stderr
    assert "usage" in train.stdout.lower()


def copy_into(root: Path, context: Path, *args: str) -> None:
    *copied, target = args
    for each in copied:
        source = context / each
        if source.is_dir():
            ignore = shutil.ignore_patterns(".venv")
            shutil.copytree(source, root / target, dirs_exist_ok=True, ignore=ignore)
        else:
            folder = root / target if target.endswith("/") else (root / target).parent
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder)
