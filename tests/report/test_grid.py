from mcit.report.grid import Grid


def test_it_fills_score_by_score_and_reads_each_once(three, monkeypatch):
    grid = Grid(three.root)
    assert grid.update() and not grid.update()
    assert grid.lines() == [
        "after               a      b      c",
        "01-s1            50.0      –      –",
        "02-s2            70.0   40.0      –",
        "03-s3            60.0   50.0   30.0",
    ]
    monkeypatch.setattr("mcit.report.grid.read_score", lambda folder: 1 / 0)
    assert not grid.update()


def test_nothing_before_the_first_score_and_a_torn_one_is_left_for_later(fake_run):
    run = fake_run([["a"]])
    grid = Grid(run.root)
    assert not grid.update() and grid.lines() == []
    run.shares(1, "a", 5)
    file = run.root / "evals" / "after-01" / "a" / "score.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    assert not grid.update()
    file.write_bytes(whole)
    assert grid.update()


def test_many_long_tasks_and_stages_stay_within_the_width(fake_run):
    names = [f"a-very-long-task-{i:02d}" for i in range(14)]
    run = fake_run([[name] for name in names])
    for after in range(1, 15):
        for name in names[:after]:
            run.score(after, name, ["cat"])
    grid = Grid(run.root)
    grid.update()
    for width in (40, 80):
        lines = grid.lines(width)
        assert max(map(len, lines)) <= width and len(lines) == 9
        assert "(+" in lines[0] and "100.0" in lines[-1]
