"""Run by `test_spaces.py`: the app's engine and one call under the package `spaces`, as on ZeroGPU; prints JSON.

PyTorch without CUDA lacks three names that `spaces` needs at import. They are added here, and the worker's two steps
that need a GPU are left out. All else is the package's own.
"""

import json
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

torch.version.cuda = "13.0"  # type: ignore[assignment]
torch._C._cuda_init = lambda: None  # type: ignore[attr-defined]
torch.cuda._is_in_bad_fork = bool  # type: ignore[assignment]

import gradio as gr  # noqa: E402
import spaces.zero.torch as zero_torch  # noqa: E402
from gradio.context import LocalContext  # noqa: E402

from styleengine import StyleEngine  # noqa: E402
from styleengine.ui import gpu  # noqa: E402


@gpu.on_gpu
def process(job: Any) -> Iterator[int]:
    yield os.getpid()


engine = StyleEngine("mini")
gpu.prepare(engine)
expected = sum(network.nbytes for network in (engine.backbone, engine.with_model("figures").backbone, engine.clip()))
packed = zero_torch.pack()  # as at the launch of the app
zero_torch.init = zero_torch.move = lambda *_, **__: None
LocalContext.request.set(SimpleNamespace(headers=type("Headers", (dict,), {})({"x-ip-token": "a.e30.b"})))
job = SimpleNamespace(method="zstar", settings=None, options={"seconds": 31})
try:
    (worker,) = process(job)
except gr.Error as error:
    print(json.dumps({"refusal": str(gpu.refusal(error))}))
    sys.exit()
found = {
    "device": str(next(engine.backbone.unet.parameters()).device),
    "expected": expected,
    "packed": packed,
    "forked": worker != os.getpid(),
    "disk": engine.cache.disk is not None,
    "parallel": gpu.PARALLEL_CALLS,
}
print(json.dumps(found))
