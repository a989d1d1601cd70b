from mcit.runs.ledger import Ledger


def test_events_come_back_in_order_and_by_kind(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.events() == []
    ledger.append("created", name="x")
    ledger.append("checkpoint", step=3)
    ledger.append("checkpoint", step=6)
    assert [e["event"] for e in ledger.events()] == ["created", "checkpoint", "checkpoint"]
    assert [e["step"] for e in ledger.events("checkpoint")] == [3, 6]
    assert all(e["time"].endswith("+00:00") for e in ledger.events())


def test_what_stands_was_not_rolled_back(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("kit", after=1)
    assert [line["after"] for line in ledger.standing("kit")] == [1] and ledger.standing("gold") == []
    ledger.append("rollback", removed=[])
    ledger.append("kit", after=2)
    assert [line["after"] for line in ledger.standing("kit")] == [2]


def test_the_line_of_a_creation_alone_has_an_id_that_no_other_has(tmp_path):
    one, other = Ledger(tmp_path / "1.jsonl"), Ledger(tmp_path / "2.jsonl")
    for ledger in (one, other):
        ledger.append("created")
        ledger.append("eval", after=1)
    first, second = one.events("created")[0]["id"], other.events("created")[0]["id"]
    assert first != second and len(first) == len(second) == 32 and "id" not in one.events("eval")[0]


def test_a_torn_last_line_is_left_out_and_what_follows_is_kept(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("created")
    with open(ledger.path, "ab") as file:
        file.write(b'{"event": "checkpoint", "st')
    assert [e["event"] for e in ledger.events()] == ["created"]
    ledger.append("eval", after=1)
    assert [e["event"] for e in ledger.events()] == ["created", "eval"]


def test_lines_that_are_no_events_are_left_out(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.write_text('[1]\n{"a": 1}\n3\n')
    assert ledger.events() == []


def test_recovering_a_whole_ledger_changes_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("created")
    before = ledger.path.read_bytes()
    assert ledger.recover() == [] and ledger.path.read_bytes() == before


def test_recovering_says_what_is_lost_and_begins_anew(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.recover() == ["begins without the creation of the run: what was written before is lost"]
    assert [(e["event"], e["recovered"]) for e in ledger.events()] == [("created", True)]
    ledger.path.write_bytes(ledger.path.read_bytes() + b'[1]\n{"event": "ev')
    assert ledger.recover() == ["the last line was torn and is cut off", "damaged lines are left out: 2"]
    assert ledger.recover() == ["damaged lines are left out: 2"]


def test_a_ledger_that_only_reads_recovers_nothing(tmp_path):
    writer = Ledger(tmp_path / "ledger.jsonl")
    writer.append("created")
    writer.path.write_bytes(writer.path.read_bytes() + b'{"event": "ev')
    before = writer.path.read_bytes()
    assert Ledger(writer.path, writes=False).recover() == [] and writer.path.read_bytes() == before
    assert Ledger(tmp_path / "none.jsonl", writes=False).recover() and not (tmp_path / "none.jsonl").exists()
