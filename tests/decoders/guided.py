"""`python -m tests.decoders.guided "client requests" -runs=1000000`: as the loop of changed inputs, but atheris chooses the changes by what
they make the decoder do. It needs `pip install atheris`, which has wheels for some Pythons only. The other options are libFuzzer's."""

from __future__ import annotations

import sys
from random import Random
from tempfile import TemporaryDirectory

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

with atheris.instrument_imports(include=["raftd.wire", "raftd.storage", "raftd.jobs"]):
    from tests.decoders.mutate import load_corpus
    from tests.decoders.targets import TARGETS, use_corpus


def main() -> None:
    decode, part, _ = TARGETS[sys.argv.pop(1)]
    corpus = load_corpus()
    use_corpus(corpus)
    random = Random(1)
    with TemporaryDirectory() as directory:
        for number, data in enumerate(corpus[part]):
            with open(f"{directory}/{number}", "wb") as file:
                file.write(data)
        atheris.Setup([*sys.argv, "-max_len=20000", directory], lambda data: decode(data, random) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
