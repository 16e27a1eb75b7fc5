"""Two processes that train together, as two hosts would, against one process."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import test_training as alone
from sorl.hosts import fetch
from sorl.members import lay_out, members_of

# Eight members over two hosts of four devices; then one whose batches all eight share, which goes
# on from the state that it left on the devices.
ON_A_HOST = """
import os, sys
out, here, address, number = sys.argv[1:]
sys.path.insert(0, here)
os.environ |= {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
import jax, numpy as np
jax.distributed.initialize(address, num_processes=2, process_id=int(number))
assert (len(jax.devices()), len(jax.local_devices())) == (8, 4)
import test_training as t
from sorl.errors import InputError
from sorl.hosts import fetch
try:
    t.last_of(t.TINY_SORL, t.make(), tasks=(0,), seeds=(0, 1))
    raise SystemExit("a host without a member was accepted")
except InputError as error:
    assert "occupy devices of 1 of the 2 hosts" in str(error)
members = {"tasks": (0, 2), "seeds": (0, 1, 2, 3)}
eight = t.last_of(t.TINY_SORL, t.make(), **members)
half = t.last_of(t.TINY_SORL, t.make(), updates=5, batch_devices=8)
one = t.last_of(t.TINY_SORL, t.make(), batch_devices=8, start=(5, half.state))
found = [(jax.tree.map(fetch, s.state), dict(s.metrics)) for s in (eight, one)]
np.savez(out, *t.host(found))
"""


def test_two_hosts_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    here = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ON_A_HOST, str(tmp_path / f"{n}.npz"), here, address, str(n)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    eight = alone.last_of(alone.TINY_SORL, alone.make(), tasks=(0, 2), seeds=(0, 1, 2, 3))
    one = alone.last_of(alone.TINY_SORL, alone.make())
    expected = alone.host([(s.state, dict(s.metrics)) for s in (eight, one)])
    for n in range(2):
        with np.load(tmp_path / f"{n}.npz", allow_pickle=False) as found:
            assert len(found.files) == len(expected)
            for name, leaf in zip(found.files, expected, strict=True):
                np.testing.assert_allclose(found[name], leaf, rtol=2e-3, atol=2e-5)


def test_one_host_fetches_what_lies_on_it():
    layout = lay_out(members_of((0,), (0, 1)), (0,), jnp.ones(1))
    np.testing.assert_array_equal(fetch(layout.limits), np.full(2, 1e8, np.float32))
