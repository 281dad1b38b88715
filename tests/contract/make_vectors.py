"""Writes philox_vectors.json and behaviour_vectors.json, the known answers for every implementation of the buffer.

    python tests/contract/make_vectors.py

The same answers go into cpp_loader/src/known_answers.h for the tests of the C++ engine, with some choices on top.

Run it only when the definition in docs/determinism.md is changed on purpose: the tests compare against these files.
"""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from behaviour import SCENARIOS, record

from reprise.buffer.policies.random_words import RandomWords, choose, distinct_below

HERE = Path(__file__).parent
HEADER = HERE.parents[1] / "cpp_loader" / "src" / "known_answers.h"

# Salmon et al., Random123 1.14, kat_vectors, philox4x64 10.
PUBLISHED = (
    ("0" * 16, "0" * 16, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    ("f" * 16, "f" * 16, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    (
        "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89",
        "452821e638d01377 be5466cf34e90c6c",
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
)

STREAMS = (
    {"seed": 42, "rank": 0, "purpose": 1, "step": 1, "round": 0},
    {"seed": 42, "rank": 3, "purpose": 0, "step": 2, "round": 0},
    {"seed": 0, "rank": 1, "purpose": 2, "step": 7, "round": 4},
    {"seed": -1, "rank": 0, "purpose": 16, "step": 100_000, "round": 1},
    {"seed": 2**64 - 2, "rank": 2**20, "purpose": 17, "step": 2**40, "round": 0},
)

# (population, count) for `choose`: both ways of choosing, with and without repetitions to reject, and their border.
CHOICES = ((56, 14), (33, 16), (32, 16), (20, 16), (20_000, 16), (6, 9), (1, 1), (2**40, 5), (0, 3), (7, 0))
# (bound, group) per entry for `distinct_below`: groups that are emptied, left alone and mixed.
EVICTIONS = ((4, 1), (4, 1), (9, 2), (4, 1), (4, 1), (1, 5), (9, 2), (2, 0), (2, 0), (10**6, 7))


def philox_vectors() -> dict:
    def words(text: str, count: int) -> list[str]:
        return text.split() * (count if " " not in text else 1)

    streams = []
    for at in STREAMS:
        drawn = RandomWords(at["seed"], at["rank"])(at["purpose"], at["step"], 6, at["round"])
        streams.append({**at, "words": [f"{word:016x}" for word in drawn.tolist()]})
    published = [{"counter": words(c, 4), "key": words(k, 2), "words": words(w, 4)} for c, k, w in PUBLISHED]
    return {"published": published, "streams": streams}


def cpp_list(values: Iterable[object]) -> str:
    return "{" + ", ".join(str(value) for value in values) + "}"


def cpp_hex(words: Iterable[str]) -> str:
    return cpp_list(f"0x{word}" for word in words)


def cpp_scenario(vector: dict) -> str:
    """Answers in one list: per step, rank after rank, its writes and its draws; each with its length before it."""
    answers: list[int] = []
    for step in vector["steps"]:
        for rows, slots, draws in zip(step["rows"], step["slots"], step["draws"], strict=True):
            answers += [len(rows), *rows, *slots]
            for ids in draws:
                answers += [len(ids), *ids]
    candidates = "kAllRows" if vector["candidates"] is None else vector["candidates"]
    head = f'"{vector["policy"]}", {vector["ranks"]}, {vector["capacity"]}, {candidates}, {cpp_list(vector["draws"])}'
    return f"{head}, {vector['seed']}, {cpp_list(answers)}"


def cpp_header(philox: dict, behaviour: list[dict]) -> str:
    words = RandomWords(11, 2)
    published = [
        ", ".join(cpp_hex(known[part]) for part in ("counter", "key", "words")) for known in philox["published"]
    ]
    streams = [
        f"{at['seed'] % 2**64}u, {at['rank']}, {at['purpose']}, {at['step']}, {at['round']}, {cpp_hex(at['words'])}"
        for at in philox["streams"]
    ]
    choices = []
    for step, (population, count) in enumerate(CHOICES, start=1):
        chosen = choose(lambda n, k, s=step: words(16, s, n, k), population, count)
        choices.append(f"{population}, {count}, {step}, {cpp_list(chosen.tolist())}")
    bounds, groups = (np.array(column, dtype=np.int64) for column in zip(*EVICTIONS, strict=True))
    evicted = distinct_below(lambda k: words(2, 1, len(bounds), k), bounds, groups)
    tables = {
        "KnownBlock kBlocks": published,
        "KnownStream kStreams": streams,
        "KnownChoice kChoices": choices,
        "KnownScenario kScenarios": [cpp_scenario(vector) for vector in behaviour],
    }
    text = HEADER_START
    for name, rows in tables.items():
        lines = "\n".join(
            textwrap.fill(f"{{{row}}},", 118, initial_indent="  ", subsequent_indent="   ") for row in rows
        )
        text += f"inline const {name}[] = {{\n{lines}\n}};\n\n"
    for name, values in {"kEvictionBounds": bounds, "kEvictionGroups": groups, "kEvictionValues": evicted}.items():
        kind = "uint32_t" if name == "kEvictionGroups" else "uint64_t"
        text += f"inline const std::vector<{kind}> {name} = {cpp_list(values.tolist())};\n"
    return text + HEADER_END


HEADER_START = """\
// Known answers for the tests of the engine, made by tests/contract/make_vectors.py like the JSON files there.
// Not for editing. What a scenario submits, and what its answers mean, is in plan_test.cc.
// clang-format off
#pragma once

#include <cstdint>
#include <vector>

namespace reprise::known {

struct KnownBlock {
  uint64_t counter[4], key[2], words[4];
};

struct KnownStream {
  uint64_t seed;
  uint32_t rank;
  uint64_t purpose, step, round;
  std::vector<uint64_t> words;
};

// choose(population, count) for draw 0 of a step, with the words of kChoiceSeed and kChoiceRank; so are the evictions
// of step 1, kEvictionValues.
struct KnownChoice {
  uint64_t population, count, step;
  std::vector<uint64_t> values;
};

inline constexpr uint64_t kChoiceSeed = 11;
inline constexpr uint32_t kChoiceRank = 2;
inline constexpr uint64_t kAllRows = UINT64_MAX;

struct KnownScenario {
  const char* policy;
  uint32_t ranks, capacity;
  uint64_t candidates;
  std::vector<uint32_t> draws;
  uint64_t seed;
  std::vector<int64_t> answers;
};

"""
HEADER_END = """
}  // namespace reprise::known
"""


def main() -> None:
    philox = philox_vectors()
    (HERE / "philox_vectors.json").write_text(json.dumps(philox, indent=1) + "\n")
    vectors = [{**scenario, "steps": record(scenario)} for scenario in SCENARIOS]
    lines = ",\n".join(json.dumps(vector) for vector in vectors)
    (HERE / "behaviour_vectors.json").write_text(f"[\n{lines}\n]\n")
    HEADER.write_text(cpp_header(philox, vectors))


if __name__ == "__main__":
    main()
