"""`python -m tests.decoders --inputs 1000000 --seed 1`: so many changed inputs, to all decoders in turns.

Each must do as `targets.py` says within a second; all of them together may take no more memory than a frame may.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from collections import Counter
from random import Random
from types import FrameType

from raftd.limits import FRAME_BYTES
from tests.decoders.mutate import load_corpus, mutated
from tests.decoders.targets import TARGETS, use_corpus

_LONGEST_S = 1.0
_SHOWN = 400


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a decoder has taken over {_LONGEST_S:g} s")


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run(inputs: int, seed: int) -> Counter[str]:
    """How many of each decoder, and how many of them it took for good. Raises AssertionError, with the input, for what a decoder must not
    do."""
    corpus = load_corpus()
    use_corpus(corpus)
    random = Random(seed)
    names = [name for name, (_, _, share) in TARGETS.items() for _ in range(share)]
    counts: Counter[str] = Counter()
    for name, (decode, part, _) in TARGETS.items():
        taken = [decode(data, random) for data in corpus[part]]
        assert all(taken) or name in ("frames", "snapshot pieces"), f"{name}: {taken.count(False)} of the corpus are not understood"
    before = peak_bytes()
    signal.signal(signal.SIGALRM, _too_long)
    try:
        for _ in range(inputs):
            name = random.choice(names)
            decode, part, _ = TARGETS[name]
            some = corpus[part]
            data = mutated(random.choice(some), some, random)
            signal.setitimer(signal.ITIMER_REAL, _LONGEST_S)
            try:
                counts[f"{name}, taken"] += decode(data, random)
            except Exception as error:  # any of them is what is looked for
                raise AssertionError(f"{name}: {type(error).__name__}: {error}, for {data.hex()}") from error
            counts[name] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert peak_bytes() - before <= FRAME_BYTES, f"{peak_bytes() - before:,} bytes more than at first"
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Changed inputs for every decoder.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    try:
        counts = run(asked.inputs, asked.seed)
    except AssertionError as wrong:
        sys.exit(str(wrong)[: _SHOWN * 10])
    for name in TARGETS:
        print(f"{name:20}{counts[name]:>10,} inputs,{counts[f'{name}, taken']:>10,} of them taken for good")
    print(f"seed {asked.seed}: no crash, no hang, no memory beyond a frame's; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
