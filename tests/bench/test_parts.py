"""The step by part: traces written by hand, and those of a live run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile, record_function

from bench.parts import NODE, OTHER, PARTS, REGION, ROTARY, STEP, breakdown
from bench.regions import part_of, regions
from bench.runs import opened, plan_of, size_for, write_data
from nmoe.build import Run
from nmoe.dist import World
from nmoe.train import train_step

MAIN, BACKWARD = 7, 8
ONE = World(rank=0, size=1)


def event(cat: str, name: str, ts: float, dur: float, tid: int = MAIN, **args: Any) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def region(part: str, ts: float, dur: float, tid: int = MAIN) -> dict:
    return event("user_annotation", REGION + part, ts, dur, tid)


def op(name: str, ts: float, dur: float, tid: int = MAIN, **args: Any) -> dict:
    return event("cpu_op", name, ts, dur, tid, **args)


def made(name: str, ts: float, dur: float, sequence: int) -> dict:
    """An operation of the forward pass that makes a node."""
    return op(name, ts, dur, **{"Sequence number": sequence, "Fwd thread id": 0})


def node(name: str, ts: float, dur: float, sequence: int) -> dict:
    """The same node in the backward pass, on another thread."""
    return op(NODE + name, ts, dur, BACKWARD, **{"Sequence number": sequence, "Fwd thread id": 1})


def launched(at: float, name: str, ts: float, dur: float, *, tid: int = MAIN) -> list[dict]:
    """A call in a thread and the kernel that it starts, on a stream with a number of its own."""
    number = int(at * 1000)
    return [
        event("cuda_driver", "cuLaunchKernelEx", at, 1, tid, correlation=number),
        event("kernel", name, ts, dur, 99, correlation=number),
    ]


def trace(*events: dict | list[dict]) -> dict[str, Any]:
    """A trace whose step lasts from 0 to 1000, with some noise around."""
    flat = [each for item in events for each in (item if isinstance(item, list) else [item])]
    noise = [
        {"ph": "M", "name": "process_name", "pid": 1, "ts": 0.0},
        event("gpu_user_annotation", REGION + "head", 0, 2000, 99),
        event("overhead", "Activity Buffer Request", 5, 5),
    ]
    return {"traceEvents": [*noise, event("user_annotation", STEP, 0, 1000), *flat]}


def test_kernel_belongs_to_the_innermost_region_of_its_launch():
    found = breakdown(
        trace(
            region("head", 10, 100),
            region("norms", 20, 30),
            op("aten::mul", 25, 5),
            launched(26, "mul", 500, 40),
            launched(60, "gemm", 600, 70),  # in the outer region, and in no operation
        )
    )
    assert found.parts == {"norms": 40, "head": 70}


def test_backward_belongs_to_the_region_of_the_operation_that_made_the_node():
    found = breakdown(
        trace(
            region("router", 10, 20),
            op("aten::arange", 12, 1, **{"Sequence number": 5}),  # makes no node
            region("experts", 40, 60),
            made("aten::linear", 41, 9, 5),
            made("aten::t", 42, 1, 5),
            made("_Experts", 60, 30, 6),
            node("_ExpertsBackward", 300, 50, 6),
            op("_ExpertsBackward", 301, 48, BACKWARD),
            region("dispatch", 305, 10, BACKWARD),  # of what a backward calls itself
            launched(306, "rows", 700, 10, tid=BACKWARD),
            launched(330, "dw", 710, 20, tid=BACKWARD),
            node("TBackward0", 400, 10, 5),
            launched(401, "t", 730, 5, tid=BACKWARD),
        )
    )
    assert found.parts == {"dispatch": 10, "experts": 25}


def test_node_without_an_operation_of_its_number_is_of_the_one_before():
    """An operation in place on a view makes two nodes in a row."""
    found = breakdown(
        trace(
            region("norms", 10, 20),
            made("aten::add_", 11, 5, 5),
            region("head", 40, 20),
            made("aten::mm", 41, 5, 7),
            node("CopySlices", 300, 10, 6),
            launched(301, "copy", 700, 10, tid=BACKWARD),
        )
    )
    assert found.parts == {"norms": 10}


def test_accumulation_and_optimizer_are_known_by_name():
    found = breakdown(
        trace(
            op(f"{NODE}torch::autograd::AccumulateGrad", 100, 20, BACKWARD),
            launched(110, "add", 500, 3, tid=BACKWARD),
            event("user_annotation", "Optimizer.step#AdamW.step", 200, 50),
            launched(210, "adamw", 600, 8),
        )
    )
    assert found.parts == {"accumulation": 3, "optimizer": 8}


@pytest.mark.parametrize(
    ("name", "backward", "part"),
    [
        (
            "aten::_scaled_dot_product_cudnn_attention",
            "ScaledDotProductCudnnAttentionBackward0",
            "attention",
        ),
        ("aten::mul", "MulBackward0", ROTARY),
    ],
)
def test_attention_is_its_product_and_the_rest_is_apart(name, backward, part):
    found = breakdown(
        trace(
            region("attention", 10, 50),
            made(name, 20, 10, 3),
            launched(25, "forward", 500, 7),
            node(backward, 300, 20, 3),
            launched(310, "backward", 600, 9, tid=BACKWARD),
        )
    )
    assert found.parts == {part: 16}


def test_work_of_no_part_is_other_with_its_kernels():
    found = breakdown(
        trace(
            launched(15, "memcpy", 100, 6),
            launched(16, "memcpy", 110, 6),
            # its launch was not recorded, and neither was the operation
            event("kernel", "lost", 300, 5, 99, correlation=123_456, **{"External id": 9}),
        )
    )
    assert found.parts == {OTHER: 17}
    assert found.kernels[OTHER].most_common(1) == [("memcpy", 12)]


def test_kernel_without_its_launch_is_of_the_operation_that_the_profiler_names():
    found = breakdown(
        trace(
            region("head", 10, 20),
            op("aten::mm", 12, 5, **{"External id": 42}),
            event("kernel", "gemm", 300, 5, 99, correlation=1, **{"External id": 42}),
        )
    )
    assert found.parts == {"head": 5}


def test_work_outside_of_the_step_does_not_count():
    inside, outside = launched(900, "late", 1100, 10), launched(1200, "after", 1300, 50)
    found = breakdown(trace(inside, outside))
    assert found.parts == {OTHER: 10}
    assert found.wall_us == 1110


def test_overlapping_work_counts_once_and_parts_and_gaps_make_the_step():
    found = breakdown(
        trace(
            region("experts", 10, 10),
            launched(11, "long", 100, 100),
            region("dispatch", 30, 10),
            launched(31, "beside", 150, 80),
            launched(32, "hidden", 160, 20),
        )
    )
    assert found.parts == {"experts": 100, "dispatch": 30}
    assert found.wall_us == 230
    assert found.gaps_us(230) == 100
    assert found.gaps_us(120) == 0


def test_trace_without_the_step_is_refused():
    with pytest.raises(ValueError, match="has no region 'bench: step'"):
        breakdown({"traceEvents": [region("head", 1, 2)]})


@pytest.mark.parametrize(
    ("module", "is_mixture", "part"),
    [
        ("", True, "embedding"),
        ("embedding", True, "embedding"),
        ("norm", True, "norms"),
        ("head", True, "head"),
        ("blocks.11", False, "norms"),
        ("blocks.0.attention_norm", False, "norms"),
        ("blocks.0.attention", True, "attention"),
        ("blocks.0.attention.qkv", True, "projections"),
        ("blocks.0.attention.out", True, "projections"),
        ("blocks.0.attention.rotary", True, ROTARY),
        ("blocks.0.ffn", True, "combine"),
        ("blocks.0.ffn", False, "dense FFN"),
        ("blocks.0.ffn.up", False, "dense FFN"),
        ("blocks.0.ffn.router.gate", True, "router"),
        ("blocks.0.ffn.experts", True, "experts"),
        ("blocks.0.ffn.shared.down", True, "shared expert"),
        ("blocks.0.attention.core", True, None),
    ],
)
def test_modules_have_parts_by_their_names(module, is_mixture, part):
    assert part_of(module, is_mixture=is_mixture) == part
    assert part is None or part in PARTS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder, size = tmp_path_factory.mktemp("run"), size_for("cpu")
    write_data(folder, size, device="cpu")
    plan = plan_of("super", folder, size, device="cpu", world=ONE, more=())
    with opened(plan, folder, world=ONE, say=lambda _: None) as made_run:
        train_step(made_run)
        yield made_run


def traced(run: Run, file: Path) -> dict[str, Any]:
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function(STEP):
        train_step(run)
    profiler.export_chrome_trace(str(file))
    return json.loads(file.read_text())


def as_on_a_gpu(recorded: dict[str, Any]) -> dict[str, Any]:
    """The same trace as if every operation had launched a kernel of 1 us when it began."""
    events, kernels, clock = [], [], 0.0
    for each in recorded["traceEvents"]:
        if each.get("ph") != "X":
            continue
        events.append(each)
        if each["cat"] == "cpu_op":
            clock, number = clock + 1.0, len(kernels)
            start, tid = each["ts"], each["tid"]
            kernels.append(
                event("cuda_runtime", "cudaLaunchKernel", start, 0, tid, correlation=number)
            )
            kernels.append(event("kernel", each["name"], 1e18 + clock, 1, 99, correlation=number))
    return {"traceEvents": events + kernels}


def test_step_of_a_live_run_has_all_its_parts(run: Run, tmp_path: Path):
    with regions(run):
        recorded = traced(run, tmp_path / "trace.json")
    found = breakdown(recorded)
    assert set(found.parts) == set(PARTS) - {"dense FFN", "gaps"}
    assert found.parts[OTHER] < 0.1 * found.busy_us
    assert found.busy_us <= found.wall_us
    # every product of the model lies in the part that it must lie in, backward too: two of each
    backward = {part for part in found.parts if "MmBackward0" in found.kernels[part]}
    assert backward == {"projections", "router", "shared expert", "head"}
    assert any(name.endswith("Backward") for name in found.kernels["experts"])
    assert set(breakdown(as_on_a_gpu(recorded)).parts) == set(found.parts)


def test_regions_leave_the_run_as_it_was(run: Run, tmp_path: Path):
    with pytest.raises(KeyError), regions(run):
        raise KeyError
    for owner in (run.model, run.transport, run.optimizer):
        assert not {"nats", "dispatch", "step"} & set(vars(owner))
    found = breakdown(traced(run, tmp_path / "trace.json"))
    assert set(found.parts) <= {OTHER, "accumulation", "optimizer"}
