"""Two processes on this machine exchange by gloo; a rank that is gone is said, not waited for."""

import json
import socket
import subprocess
import sys

import pytest
from compiler_process import environment

pytestmark = pytest.mark.slow

EXCHANGE = """
import json, sys
import numpy as np
from compiler.contracts.errors import RunError
from compiler.ranks.gloo import GlooCollectives
from compiler.ranks.world import current_world

line = GlooCollectives(current_world(), timeout=20)
total = line.all_reduce(np.array([0.1, 1.0 + line.rank], np.float16))
joined = line.all_gather(np.array([[line.rank], [7]], np.int8))
if sys.argv[1] == "leave" and line.rank == 1:
    sys.exit(5)
lost = ""
if sys.argv[1] == "leave":
    try:
        line.all_reduce(np.ones(1, np.float32))
    except RunError as error:
        lost = f"{error.code}: {error.message}"
line.close()
print(json.dumps([total.tolist(), joined.tolist(), lost]))
"""


def exchanged(word: str) -> list[subprocess.CompletedProcess[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", EXCHANGE, word],
            env=environment(
                RANK=str(rank),
                WORLD_SIZE="2",
                LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    done = [(process, *process.communicate(timeout=300)) for process in started]
    return [
        subprocess.CompletedProcess(word, process.returncode, out, err)
        for process, out, err in done
    ]


def test_both_have_the_same():
    found = exchanged("stay")
    assert [one.returncode for one in found] == [0, 0], found
    wanted = [[0.199951171875, 3.0], [[0, 1], [7, 7]], ""]
    assert [json.loads(one.stdout) for one in found] == [wanted, wanted]


def test_a_rank_that_leaves_is_missed():
    stayed, left = exchanged("leave")
    assert left.returncode == 5, left
    assert stayed.returncode == 0, stayed
    assert json.loads(stayed.stdout)[2].startswith("rank-lost: rank 0 lost the others: ")
