import gc
import subprocess
import sys

import pytest

from mcit.core import garbage


@pytest.fixture(autouse=True)
def restored():
    before = gc.get_threshold()
    yield
    garbage._before = None
    gc.enable()
    gc.set_threshold(*before)
    gc.unfreeze()


def test_seldom_until_it_is_as_usual():
    before = gc.get_threshold()
    garbage.seldom()
    garbage.seldom()
    assert gc.get_threshold()[0] > 100 * before[0] and gc.isenabled()
    garbage.as_usual()
    assert gc.get_threshold() == before and gc.get_freeze_count() > 1000


def test_a_process_that_ends_searches_no_more():
    garbage.never()
    assert not gc.isenabled() and gc.get_freeze_count() > 1000


def test_a_process_that_did_not_start_as_a_command_is_left_alone():
    before = gc.get_threshold(), gc.get_freeze_count()
    garbage.as_usual()
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_command_starts_with_few_searches_and_loads_a_base_with_as_many_as_ever():
    code = """
import gc, sys
from mcit.cli import main
from mcit.models import load
from mcit.models.families.tiny import materialize
from mcit.core.schema import BaseConfig
seen = [gc.get_threshold()[0]]
def during():
    seen.append(gc.get_threshold()[0])
    load.load_base(materialize(BaseConfig(family="tiny")))
    seen.append(gc.get_threshold()[0])
main.main = during
try:
    main.entry()
except SystemExit:
    print(*seen)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, during, after = map(int, done.stdout.split()[-3:])
    assert during > before == after
