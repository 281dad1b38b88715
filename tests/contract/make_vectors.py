"""Writes philox_vectors.json and behaviour_vectors.json, the known answers for every implementation of the buffer.

    python tests/contract/make_vectors.py

Run it only when the definition in docs/determinism.md is changed on purpose: the tests compare against these files.
"""

import json
from pathlib import Path

from behaviour import SCENARIOS, record

from reprise.buffer.policies.random_words import RandomWords

HERE = Path(__file__).parent

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


def philox_vectors() -> dict:
    def words(text: str, count: int) -> list[str]:
        return text.split() * (count if " " not in text else 1)

    streams = []
    for at in STREAMS:
        drawn = RandomWords(at["seed"], at["rank"])(at["purpose"], at["step"], 6, at["round"])
        streams.append({**at, "words": [f"{word:016x}" for word in drawn.tolist()]})
    published = [{"counter": words(c, 4), "key": words(k, 2), "words": words(w, 4)} for c, k, w in PUBLISHED]
    return {"published": published, "streams": streams}


def main() -> None:
    (HERE / "philox_vectors.json").write_text(json.dumps(philox_vectors(), indent=1) + "\n")
    vectors = [{**scenario, "steps": record(scenario)} for scenario in SCENARIOS]
    lines = ",\n".join(json.dumps(vector) for vector in vectors)
    (HERE / "behaviour_vectors.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
