"""A job on a machine that it shares: it streams two epochs, and waits in the middle of the first until told to go on.

Started by the tests as ``python -m tests.feeder.neighbour_job DATASET UID``. It prints when it has come to the middle,
and in the end a digest of each batch. Another user than the one who started it may not be allowed to read the
interpreter's modules, so they are imported, by a first loader, before it becomes that user.
"""

import hashlib
import os
import sys

from feeder import ImageDataset, Loader, RandomResizedCrop


def loader_of(dataset: str, workers: int = 2) -> Loader:
    """Open the data, with a selection, whose file is in the user's cache."""
    images = ImageDataset(
        dataset, batch_size=4, transform=[RandomResizedCrop(24)], seed=2, threads=1, where="label != 2"
    )
    return Loader(images, workers=workers, start_method="fork")


def digest(batch: dict) -> str:
    return hashlib.blake2b(batch["id"].numpy().tobytes() + batch["image"].numpy().tobytes(), digest_size=8).hexdigest()


def main(dataset: str, uid: str) -> None:
    if int(uid) != os.geteuid():
        with loader_of(dataset) as loader:
            digest(next(iter(loader)))
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
        for name in ("TMPDIR", "XDG_CACHE_HOME"):
            os.environ[name] += "-of-another"
    digests = []
    with loader_of(dataset) as loader:
        for _ in range(2):
            for batch in loader:
                digests.append(digest(batch))
                if len(digests) == 3:
                    print("in the middle", flush=True)
                    sys.stdin.readline()
    print(*digests, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
