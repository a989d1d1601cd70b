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
