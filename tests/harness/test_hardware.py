"""Detection on described machines: names, refusals, N/A, lost GPUs."""

import json
from pathlib import Path

import pynvml
import pytest

from harness import hardware
from harness.errors import UsageError
from harness.fake_nvml import FakeNvml
from harness.hardware import Detection, detect
from harness.sampler import Sampler

SCENARIOS = Path(__file__).parent.parent / "data" / "hardware"


def machine(name: str) -> Detection:
    return detect(fake=SCENARIOS / f"{name}.json")


def fake(name: str) -> FakeNvml:
    return FakeNvml(json.loads((SCENARIOS / f"{name}.json").read_text()), real=pynvml)


def seen_with(visible: str) -> Detection:
    """Eight H100 under a value of CUDA_VISIBLE_DEVICES."""
    return detect(fake("h100x8"), environ={"CUDA_VISIBLE_DEVICES": visible})


@pytest.mark.parametrize(
    ("name", "gpu", "count", "capability"),
    [
        ("b200x8", "B200", 8, "10.0"),
        ("h100x8", "H100", 8, "9.0"),
        ("h200x2", "H200", 2, "9.0"),
        ("h200x1", "H200", 1, "9.0"),
    ],
)
def test_detect_finds_supported_gpus(name, gpu, count, capability):
    found = machine(name)
    assert found.has_supported_gpu
    assert (found.hardware.gpu, found.hardware.num_gpus) == (gpu, count)
    assert found.hardware.capability == capability
    assert found.hardware.memory_bytes is not None
    assert found.hardware.is_fake


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("a100x8", "A100 is not supported: got compute capability 8.0", "machine"),
        ("b300x8", "got compute capability 10.3, expected 9.0 (H100, H200) or 10.0", "machine"),
        ("rtx5090", "got compute capability 12.0", "machine"),
        ("mig", "MIG mode is on for GPU 0", "nvidia-smi -i 0 -mig 0"),
        ("mig_slice", "CUDA_VISIBLE_DEVICES names a MIG slice", "Unset it"),
        ("hidden", "hides all 8 GPUs", "Unset it"),
        ("h100_and_h200", "the visible GPUs differ: got H100, H200", "Choose one kind"),
        ("lost", "GPU 7 is lost", "leave it out with CUDA_VISIBLE_DEVICES"),
        ("driver_mismatch", "different versions", "reboot, or reload"),
        ("driver_not_loaded", "is not loaded", "modprobe nvidia"),
        ("no_permission", "no permission", "/dev/nvidia*"),
        ("none", "no NVIDIA driver library", "Install the NVIDIA driver"),
    ],
)
def test_detect_explains_with_a_fix_when_gpus_cannot_train(name, what, fix):
    found = machine(name)
    assert not found.has_supported_gpu
    assert what in found.problems[0].what
    assert fix in found.problems[0].fix


def init_errors() -> list[str]:
    return [name for name in dir(pynvml) if name.startswith("NVMLError_")]


@pytest.mark.parametrize("name", init_errors())
def test_detect_explains_every_nvml_failure(name):
    nvml = FakeNvml(
        {"system": {"nvmlInit": {"error": name.removeprefix("NVMLError_")}}}, real=pynvml
    )
    found = detect(nvml)
    assert found.gpus == ()
    assert found.problems[0].what
    assert found.problems[0].fix


def test_detect_leaves_unknown_values_none_when_the_driver_does_not_tell():
    found = machine("not_available")
    assert found.has_supported_gpu
    assert found.hardware.memory_bytes is None
    assert found.hardware.driver is None
    assert found.cuda is None


def test_firmware_and_modes_are_told_where_all_gpus_agree():
    gpu = {
        "nvmlDeviceGetName": "NVIDIA H200",
        "nvmlDeviceGetCudaComputeCapability": [9, 0],
        "nvmlDeviceGetVbiosVersion": "96.00.B1.00.01",
        "nvmlDeviceGetEccMode": [1, 1],
        "nvmlDeviceGetMigMode": [0, 0],
    }
    other = gpu | {"nvmlDeviceGetVbiosVersion": "96.00.99.00.01"}
    same = detect(FakeNvml({"gpus": [gpu, gpu]}, real=pynvml), environ={}).hardware
    mixed = detect(FakeNvml({"gpus": [gpu, other]}, real=pynvml), environ={}).hardware

    assert (same.vbios, same.is_ecc, same.is_mig) == ("96.00.B1.00.01", True, False)
    assert (mixed.vbios, mixed.is_ecc, mixed.is_mig) == (None, True, False)


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        ("3,1", [3, 1]),
        (" 0 , 2 ", [0, 2]),
        ("GPU-fa4e0000-0000-0000-0000-000000000005", [5]),
        ("2,99,3", [2]),  # CUDA stops at the first name that it does not know
        ("2,2,3", [2]),
        ("-1", []),
        ("", []),
        ("GPU-fa4e", []),  # a prefix that fits all names none
    ],
)
def test_visible_gpus_follow_the_variable_as_cuda_reads_it(visible, indices):
    assert [gpu.index for gpu in seen_with(visible).gpus] == indices


@pytest.mark.parametrize(
    ("environ", "nodes"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, 1),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 2),
        ({"GROUP_WORLD_SIZE": "4"}, 4),
        ({"WORLD_SIZE": "junk", "LOCAL_WORLD_SIZE": "0"}, 1),
    ],
)
def test_nodes_are_counted_from_torchruns_variables(environ, nodes):
    assert detect(fake("h100x8"), environ=environ).num_nodes == nodes


def test_cpu_model_falls_back_to_the_machine_type_when_the_kernel_is_silent(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    (tmp_path / "arm").write_text("processor : 0\nBogoMIPS : 50\n")
    assert hardware.cpu_model(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert hardware.cpu_model(tmp_path / "arm")
    assert hardware.cpu_model(tmp_path / "absent") == hardware.cpu_model(tmp_path / "arm")


@pytest.mark.parametrize("content", ["not json", "[]", "{}", '"text"'])
def test_fake_hardware_is_refused_when_the_file_is_not_one(tmp_path, content):
    path = tmp_path / "machine.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="fake hardware"):
        detect(fake=path)


@pytest.mark.gpu
def test_detect_and_sample_agree_on_a_real_gpu():
    found = detect()
    sampler = Sampler([gpu.index for gpu in found.gpus], nvml=pynvml)
    events = sampler.sample()
    sampler.close()
    assert [event.memory_total_bytes for event in events] == [
        gpu.memory_bytes for gpu in found.gpus
    ]
    assert all(event.util is not None and event.energy_j for event in events)
