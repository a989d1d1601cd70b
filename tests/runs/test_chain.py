"""The ledger as a chain: whatever is changed is found at its line."""

import pytest

from mcit.core.errors import StateError
from mcit.core.files import parse_json
from mcit.core.stored import sealed_line, unsealed
from mcit.runs.chain import read_chain
from mcit.runs.ledger import NOTHING, Ledger, chained


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger.jsonl")
    made.append("created", name="é")
    made.append("eval", after=1)
    made.append("promoted", stage="01-a", by="ann")
    return made


def lines(ledger):
    return ledger.path.read_bytes().split(b"\n")[:-1]


def wrong(ledger):
    return [int(p.where.rpartition(":")[2]) for p in read_chain(ledger.path).problems]


def test_every_line_names_the_one_before(ledger):
    found = read_chain(ledger.path)
    assert found.problems == [] and found.run == found.events[0]["id"] and len(found.run) == 32
    assert [e["previous"] for e in found.whole] == [NOTHING, *(chained(line) for line in lines(ledger)[:2])]
    other = Ledger(ledger.path.with_name("other.jsonl"))
    other.append("created", name="é")
    assert read_chain(other.path).run != found.run
    with pytest.raises(StateError, match="file is missing"):
        read_chain(ledger.path.with_name("none.jsonl"))


@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_of_any_byte_is_found_at_its_line(ledger, bit):
    data = ledger.path.read_bytes()
    for at in range(len(data)):
        ledger.path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        assert wrong(ledger)[:1] == [data[:at].count(b"\n") + 1], at


def test_a_line_with_a_new_checksum_is_found_by_the_one_after_it(ledger):
    first, second, third = lines(ledger)
    record = unsealed(parse_json(second, where=""))
    forged = sealed_line({**record, "after": 2}).encode()
    ledger.path.write_bytes(b"\n".join([first, forged, third, b""]))
    assert wrong(ledger) == [2]


def test_removed_moved_and_added_lines(ledger):
    first, second, third = lines(ledger)
    cases = {1: ([first, third], [second, third], [first, third, second]), 2: ([first, second, second, third],)}
    for at, kept in [(at, kept) for at, some in cases.items() for kept in some]:
        ledger.path.write_bytes(b"\n".join([*kept, b""]))
        assert wrong(ledger)[0] == at, kept


def test_lines_of_an_older_mcit_are_chained_to_no_line(ledger):
    ledger.path.write_text(sealed_line({"time": "t", "event": "created"}) + "\n")
    ledger.append("eval", after=1)
    assert wrong(ledger) == [1] and read_chain(ledger.path).run == ""


def test_a_torn_line_is_told_and_what_follows_a_mended_end_is_whole(ledger):
    ledger.path.write_bytes(ledger.path.read_bytes() + b'{"event": "ev')
    assert wrong(ledger) == [4]
    ledger.append("eval", after=2)
    assert wrong(ledger) == [] and len(lines(ledger)) == 4
