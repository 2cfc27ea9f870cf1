"""The files that torch.compile writes: the precompiled headers lie in the folder of the compiled code."""

import pytest
import torch

from crossent.subjects import compiler


@pytest.mark.parametrize("backend", [compiler.TRACER, compiler.INDUCTOR])
def test_the_headers_of_the_compiler_lie_with_its_code(tmp_path, monkeypatch, backend):
    """By default, torch ignores TORCHINDUCTOR_CACHE_DIR for headers, and writes headers to a folder of all programs."""
    codecache = pytest.importorskip("torch._inductor.codecache")
    if not hasattr(codecache, "_HEADER_DIR"):
        pytest.skip("needs a torch that compiles headers")
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(codecache, name, "a shared folder")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with compiler.compile_loss(torch.sin, backend, dynamic=False):
        assert codecache._HEADER_DIR.startswith(str(tmp_path))
        assert codecache._HEADER_LOCK_DIR.startswith(str(tmp_path))
