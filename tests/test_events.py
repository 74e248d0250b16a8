"""Events: strict JSON both ways, an append-only log that survives torn tails."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.event_log import EventLog, read_events
from nmoe.events import (
    KINDS,
    AlertEvent,
    CheckpointEvent,
    CoreEvent,
    Event,
    EventError,
    GpuEvent,
    PrepEvent,
    Record,
    RouterEvent,
    StepEvent,
    decode,
    encode,
)

EXAMPLE_VALUES: dict[str, Any] = {"int": 3, "float": 0.5, "str": "[/bold] é ", "bool": True}


def example(kind: str) -> Event:
    """An event of `kind` with every field filled."""
    cls = KINDS[kind]
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if name == "kind":
            continue
        text = str(hint)
        if "tuple[" in text:
            inner = text.split("tuple[")[1].split(",")[0]
            values[name] = (EXAMPLE_VALUES[inner.split(" ")[0]],) * 2
        elif "Literal" in text:
            values[name] = hint.__args__[0]
        else:
            word = next(w for w in ("int", "float", "str", "bool") if w in text)
            values[name] = EXAMPLE_VALUES[word]
    return cls(**values)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_event_survives_a_round_trip(kind: str) -> None:
    record = Record(seq=7, time=1700000000.125, attempt=2, event=example(kind))
    line = encode(record)
    assert "\n" not in line
    assert decode(line) == record
    assert json.loads(line)["k"] == kind


def test_event_kinds_are_those_of_the_classes() -> None:
    assert all(cls.kind == kind for kind, cls in KINDS.items())
    assert len(KINDS) == 22
    assert all("kind" not in {f.name for f in fields(cls)} for cls in KINDS.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_event_writes_null_and_the_name_when_a_number_is_not_finite(value: float) -> None:
    event = StepEvent(
        step=1,
        tokens=2,
        loss=value,
        lr=0.1,
        grad_norm=1.0,
        ms=1.0,
        tok_s=1.0,
        mfu=None,
        train_s=0.0,
        wall_s=0.0,
    )
    line = encode(Record(seq=0, time=0.0, attempt=0, event=event))
    raw = json.loads(line)
    assert raw["loss"] is None
    assert raw["nf"] == ["loss"]
    back = decode(line)
    assert back is not None
    assert isinstance(back.event, StepEvent)
    assert math.isnan(back.event.loss)
    assert back.event.mfu is None


def test_event_restores_only_the_lost_items_of_a_list() -> None:
    event = RouterEvent(
        step=1,
        layers=(0, 1),
        cv=(0.5, math.nan),
        entropy=(1.0, 1.0),
        experts_active=(8, 8),
        max_load=(1.0, 1.0),
        bias_range=(0.0, 0.0),
        record=0,
    )
    back = decode(encode(Record(seq=0, time=0.0, attempt=0, event=event)))
    assert back is not None
    assert isinstance(back.event, RouterEvent)
    assert back.event.cv[0] == 0.5
    assert math.isnan(back.event.cv[1])


def test_decode_skips_kinds_it_does_not_know_and_ignores_new_fields() -> None:
    assert decode('{"v":1,"s":0,"t":0,"a":0,"k":"hologram","x":1}') is None
    back = decode('{"v":1,"s":0,"t":0,"a":0,"k":"epoch","step":4,"epoch":1,"colour":"red"}')
    assert back is not None


def test_decode_reads_a_checkpoint_that_was_written_without_its_pause() -> None:
    line = '{"v":1,"s":0,"t":0,"a":0,"k":"ckpt","step":6,"name":"c","bytes":1,"seconds":0.5}'
    back = decode(line)
    assert back is not None
    assert back.event == CheckpointEvent(step=6, name="c", bytes=1, seconds=0.5, paused_s=None)


def test_decode_reads_a_gpu_sample_of_an_older_version() -> None:
    line = '{"v":1,"s":3,"t":0,"a":0,"k":"gpu","index":2,"util":97,"power_w":900.5,"is_lost":false}'
    back = decode(line)
    assert back is not None
    assert back.event == GpuEvent(index=2, util=97, power_w=900.5)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"v":2,"s":0,"t":0,"a":0,"k":"epoch","step":1,"epoch":1}',
        '{"s":0,"t":0,"a":0,"k":"epoch","step":1,"epoch":1}',
        '{"v":1,"s":0,"t":0,"a":0,"k":"epoch","step":1}',
        '{"v":1,"t":0,"a":0,"k":"epoch","step":1,"epoch":1}',
        '{"v":1,"s":0,"t":0,"a":0,"step":1,"epoch":1}',
        '{"v":1,"s":0,"t":0,"a":0,"k":["epoch"],"step":1,"epoch":1}',
        '{"v":1,"s":"x","t":0,"a":0,"k":"epoch","step":1,"epoch":1}',
    ],
)
def test_decode_refuses_what_is_not_an_event(line: str) -> None:
    with pytest.raises(EventError):
        decode(line)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"step": "1"}, "step"),
        ({"step": 1.0}, "step"),
        ({"step": True}, "step"),
        ({"step": 1 << 63}, "step"),
        ({"loss": None}, "loss"),
        ({"loss": "low"}, "loss"),
        ({"mfu": []}, "mfu"),
        ({"s": -1}, "count"),
        ({"s": "0"}, "count"),
        ({"a": 0.5}, "count"),
        ({"t": "now"}, "time"),
        ({"t": 1e300}, "time"),
    ],
)
def test_decode_refuses_values_of_another_kind(change: dict[str, object], word: str) -> None:
    event = StepEvent(
        step=1,
        tokens=8,
        loss=2.0,
        lr=0.1,
        grad_norm=1.0,
        ms=1.0,
        tok_s=1.0,
        mfu=None,
        train_s=1.0,
        wall_s=1.0,
    )
    raw = json.loads(encode(Record(seq=0, time=0.0, attempt=0, event=event)))
    assert decode(json.dumps(raw)) is not None
    with pytest.raises(EventError, match=word):
        decode(json.dumps(raw | change))


COUNTS = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("ci95", [[], [0.1], [0.1, 0.2, 0.3], [0.1, "0.2"]])
def test_decode_refuses_an_interval_that_is_no_pair(ci95: list[object]) -> None:
    event = CoreEvent(
        score=0.1, tasks=1, items=10, bundle="b", seconds=1.0, ci95=(0.05, 0.15)
    )  # fmt: skip
    line = json.loads(encode(Record(seq=0, time=1.0, attempt=0, event=event)))
    assert decode(json.dumps(line)) is not None
    with pytest.raises(EventError, match="ci95"):
        decode(json.dumps(line | {"ci95": ci95}))


@given(st.text(), COUNTS, COUNTS)
def test_event_carries_any_text_and_number(text: str, done: int, total: int) -> None:
    event = PrepEvent(job=text, done=done, total=total, unit="bytes")
    line = encode(Record(seq=0, time=0.0, attempt=0, event=event))
    back = decode(line.encode("utf-8", "surrogatepass"))
    assert back is not None
    assert back.event == event


def test_log_goes_on_behind_a_torn_tail_without_losing_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=0)
    for number in range(3):
        log.write(AlertEvent(code="a", level="info", message=str(number)))
    log.close()
    with path.open("ab") as file:
        file.write(b'{"v":1,"s":3,"t":1.0,"a":0,"k":"al')
    assert [record.seq for record in read_events(path)] == [0, 1, 2]
    log = EventLog(path, attempt=1)
    log.write(AlertEvent(code="b", level="info", message="after"))
    log.close()
    records = list(read_events(path))
    assert [(record.seq, record.attempt) for record in records] == [(0, 0), (1, 0), (2, 0), (3, 1)]


def test_log_reads_as_empty_when_there_is_no_file(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "none.jsonl")) == []
