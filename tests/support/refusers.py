"""Subjects that react wrongly to a bad input. Another process can import this module."""

import ctypes
import os
import time
from pathlib import Path


def exits(input, target, **options):
    os._exit(0)  # status 0, as if the process had no error


def segfaults(input, target, **options):
    ctypes.string_at(0)


def hangs(input, target, **options):
    time.sleep(1000)


def hangs_after_a_note(input, target, **options):
    note = Path(os.environ["CROSSENT_STARTED"])
    note.with_suffix(".part").write_text(str(os.getpid()))
    note.with_suffix(".part").rename(note)
    time.sleep(1000)


def accepts(input, target, **options):
    return input.new_zeros(())


def writes_and_accepts(input, target, **options):
    target.clamp_(0, input.shape[-1] - 1)
    return input.new_zeros(())
