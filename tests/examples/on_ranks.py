"""Runs a program on several ranks of this machine, as torchrun would, but imports what they have in common just once.

Started as ``python on_ranks.py RANKS MODULE PROGRAM ARGUMENT …``; of the ranks only the first may print.
"""

import importlib
import os
import runpy
import sys


def main() -> int:
    ranks, module, *sys.argv = sys.argv[1:]
    importlib.import_module(module)
    if "torch" in sys.modules:
        importlib.import_module("torch._dynamo")  # which the first step of an optimizer does, for seconds
    os.environ.update(WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks, GROUP_RANK="0", TORCHELASTIC_RUN_ID="test")
    children = []
    for rank in range(int(ranks)):
        if (child := os.fork()) == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            if rank > 0:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            runpy.run_path(sys.argv[0], run_name="__main__")
            return 0
        children.append(child)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)


if __name__ == "__main__":
    sys.exit(main())
