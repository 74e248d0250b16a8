"""The oracle: the CORE specification read aloud, prompt by prompt, sharing no code with nmoe."""

import csv
import json
import math
import random

import torch


def load(bundle_dir, label, cap=None):
    """Task entry of core.yaml, its shuffled rows, its baseline in percent."""
    entry = entries(bundle_dir)[label]
    with open(bundle_dir / "eval_data" / entry["dataset_uri"], encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(1337).shuffle(rows)
    if cap is not None and cap > 0:
        rows = rows[:cap]
    with open(bundle_dir / "eval_meta_data.csv", newline="", encoding="utf-8") as table:
        baselines = {row["Eval Task"]: row["Random baseline"] for row in csv.DictReader(table)}
    return entry, rows, float(baselines[label])


def entries(bundle_dir):
    """label -> fields of core.yaml: a flat list, a value a line, so no YAML library is needed."""
    found, current = {}, None
    for line in (bundle_dir / "core.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("-"):
            current = {"continuation_delimiter": " "}
            line = line[1:]
        key, colon, value = line.strip().partition(": ")
        if current is None or not colon:
            continue
        if key == "label":
            found[value] = current
        if key == "num_fewshot":
            current[key] = int(value.strip("[]"))
        else:
            current[key] = json.loads(value) if value.startswith('"') else value
    return found


def draw_shots(rows, i, k):
    others = [j for j in range(len(rows)) if j != i]
    return [rows[j] for j in random.Random(1234 + i).sample(others, k)] if k > 0 else []


def prompts(entry, rows, i):
    """All texts of an item; for language modeling: [with the answer, without]."""
    d, item = entry["continuation_delimiter"], rows[i]
    shots = draw_shots(rows, i, entry["num_fewshot"])
    head = ""
    if entry["icl_task_type"] == "multiple_choice":
        for s in shots:
            head += s["query"] + d + s["choices"][s["gold"]] + "\n\n"
        return [head + item["query"] + d + c for c in item["choices"]]
    if entry["icl_task_type"] == "schema":
        for s in shots:
            head += s["context_options"][s["gold"]] + d + s["continuation"] + "\n\n"
        return [head + o + d + item["continuation"] for o in item["context_options"]]
    for s in shots:
        head += s["context"].strip() + d + s["continuation"] + "\n\n"
    stem = head + item["context"].strip() + d
    return [stem + item["continuation"], stem.strip()]


def regions(entry, rows, i, encode, bos_id, max_tokens=None):
    """[(tokens, s, e)] of the rows to run, and whether one was cropped."""
    tokens = [[bos_id, *encode(text)] for text in prompts(entry, rows, i)]
    shortest = min(len(t) for t in tokens)
    if entry["icl_task_type"] == "multiple_choice":
        s = 0
        while s < shortest and all(t[s] == tokens[0][s] for t in tokens):
            s += 1
        spans = [(t, s, len(t)) for t in tokens]
    elif entry["icl_task_type"] == "schema":
        n = 0
        while n < shortest and all(t[-1 - n] == tokens[0][-1 - n] for t in tokens):
            n += 1
        spans = [(t, len(t) - n, len(t)) for t in tokens]
    else:
        with_answer, without = tokens
        assert len(without) < len(with_answer)
        assert with_answer[: len(without)] == without
        spans = [(with_answer, len(without), len(with_answer))]
    if max_tokens is None:
        return spans, False
    crops = [max(0, len(t) - max_tokens) for t, _, _ in spans]
    spans = [(t[c:], s - c, e - c) for (t, s, e), c in zip(spans, crops, strict=True)]
    assert all(s >= 0 for _, s, _ in spans)
    return spans, any(crops)


def score_item(entry, rows, i, encode, bos_id, logits_at, max_tokens=None):
    spans, is_cropped = regions(entry, rows, i, encode, bos_id, max_tokens)
    losses, hits = [], []
    for tokens, s, e in spans:
        at = list(range(s - 1, e - 1)) if s > 0 else []
        targets = [tokens[t + 1] for t in at]
        if not at:
            losses.append(math.nan)
            continue
        logits = logits_at(
            torch.tensor([tokens]), torch.zeros(len(at), dtype=torch.int64), torch.tensor(at)
        )
        each = -torch.log_softmax(logits.double(), dim=-1)[range(len(at)), targets]
        losses.append(sum(each.tolist()) / len(at))
        hits.append(logits.argmax(dim=-1).tolist() == targets)
    if entry["icl_task_type"] == "language_modeling":
        gold, chosen, correct = None, None, hits[0]
    else:
        gold, chosen = rows[i]["gold"], losses.index(min(losses))
        correct = chosen == gold
    return {
        "index": i,
        "gold": gold,
        "chosen": chosen,
        "correct": correct,
        "losses": losses,
        "cropped": is_cropped,
    }


def evaluate(bundle_dir, encode, bos_id, logits_at, cap=None, max_tokens=None):
    """CORE, and label -> (items, accuracy, centered accuracy)."""
    tasks = {}
    for label in entries(bundle_dir):
        entry, rows, baseline = load(bundle_dir, label, cap)
        items = [
            score_item(entry, rows, i, encode, bos_id, logits_at, max_tokens)
            for i in range(len(rows))
        ]
        acc = sum(item["correct"] for item in items) / len(items)
        tasks[label] = (items, acc, (acc - baseline / 100) / (1 - baseline / 100))
    return sum(cen for _, _, cen in tasks.values()) / len(tasks), tasks
