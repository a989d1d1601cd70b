import dataclasses

import pytest

from mcit.core.errors import PlanError
from mcit.core.interfaces import Silent
from mcit.core.paths import shipped
from mcit.core.schema import KitConfig
from mcit.core.types import Row, Turn
from mcit.data.overlap import _picture as pictures
from mcit.plan import forgetting
from mcit.plan.forgetting import forget_due, overlap
from mcit.report.tables import full_report
from mcit.train.kit import kit_due
from mcit.train.sequence import due, run_sequence
from tests.fakes.bench import plan_of
from tests.train.test_sequence import opened

GS = {"methods": [{"use": "gs_lora", "per_step": 4}]}
STAGES = [
    {"recipe": "tiny/word"},
    {"name": "forget", "recipe": "tiny/word-retain", "forget": "tiny/word-forget", **GS},
    {"recipe": "tiny/letter"},
]


def names(tasks):
    return [task.name for task in tasks]


def test_rows_in_both_sets_are_named():
    """tiny/word holds all 39 red rows: its train split of 120 holds those that validation does not take."""
    with pytest.raises(PlanError) as error:
        plan_of(stages=[{"recipe": "tiny/word", "forget": "tiny/word-forget", **GS}])
    problems = [p for p in error.value.problems if "retained at once" in p.what]
    first = problems[0]
    assert first.where.startswith("stages[0].forget: shapes-word[train]:") and ":word-" in first.where
    assert "of task word)" in first.what and first.fix
    assert len(problems) == 21 and "more rows" in problems[-1].what


def test_the_two_shipped_parts_do_not_overlap():
    plan = plan_of(stages=STAGES)
    assert overlap(plan.stages[1].forget, plan.stages[1].tasks) == []
    assert len(overlap(plan.stages[1].forget, plan.stages[0].tasks)) > 20
    assert names(plan.forget_tasks) == ["word-red"] and "word-red" not in names(plan.tasks)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two rows with a picture each, by default the same picture; `overlap` of the one with the other."""

    def made(bytes_a=b"p", bytes_b=b"p", source_b="b.json:1", turns_b=None):
        rows = []
        for name, data, source in (("a", bytes_a, "a.json:7"), ("b", bytes_b, source_b)):
            (tmp_path / f"{name}.png").write_bytes(data)
            turns = (Turn("user", "<image>\nwhat?"), Turn("assistant", "dog"))
            rows.append(Row("r1", (f"{name}.png",), turns, name, source, root=str(tmp_path)))
        rows[1] = dataclasses.replace(rows[1], turns=turns_b or rows[1].turns)
        pictures.cache_clear()
        monkeypatch.setattr(forgetting, "_rows", lambda tasks: [rows[k] for k in tasks])
        return overlap((0,), (1,))

    return made


def test_what_makes_rows_the_same(pair):
    """Same picture (by content) and same question, whatever white space, answer and file; or same picture and same place."""
    spaced = (Turn("user", "<image> what?"), Turn("assistant", "dog"))
    other = (Turn("user", "<image>\nwhat?"), Turn("assistant", "animal"))
    asks = (Turn("user", "<image>\nwho?"), Turn("assistant", "dog"))
    assert len(pair()) == 1 and len(pair(turns_b=spaced)) == 1 and len(pair(turns_b=other)) == 1
    assert pair(bytes_b=b"q") == [] and pair(turns_b=asks) == []
    assert len(pair(turns_b=asks, source_b="a.json:7")) == 1
    assert pair(bytes_b=b"q", source_b="a.json:7") == []


def test_texts_without_pictures_are_the_same_by_their_turns_alone(monkeypatch):
    """Two recipes may each have a line 1 of rows.json; only equal questions make these rows the same."""

    def row(question):
        return Row("0", (), (Turn("user", question), Turn("assistant", "yes")), "t", "rows.json:1")

    rows = [row("A?"), row("B?"), row(" A? ")]
    monkeypatch.setattr(forgetting, "_rows", lambda tasks: [rows[k] for k in tasks])
    assert overlap((0,), (1,)) == [] and len(overlap((0,), (2,))) == 1


def test_training_on_it_later_is_noted():
    plan = plan_of(
        stages=[*STAGES, {"name": "again", "recipe": "tiny/word-retain"}, {"name": "back", "recipe": "tiny/word"}]
    )
    notes = [note for note in plan.notes if "stage forget forgets" in note]
    assert len(notes) == 1 and notes[0].startswith("stages[4].recipe: trains on")


def test_rows_a_method_cannot_use_are_refused_in_the_plan():
    settings = {"use": "gs_lora_pp", "prototypes": {"by": "meta.kind"}}
    with pytest.raises(PlanError, match=r"prototypes\): shapes-word\[train\]:1:word-0.*no meta 'kind'"):
        plan_of(stages=[{**STAGES[1], "methods": [settings]}])


@pytest.mark.parametrize(
    ("methods", "read"),
    [
        ([{"use": "npo", "per_step": 4}, {"use": "rmu", "per_step": 4}], 16),
        ([{"use": "idk", "per_step": 4}], 16),
        ([{"use": "idk_dpo", "per_step": 3}], 12),
        ([{"use": "npo", "per_step": 10}, {"use": "prompt_decouple", "per_step": 10}], None),
    ],
)
def test_rows_to_forget_that_no_step_reads_are_noted(methods, read):
    plan = plan_of(stages=[{**STAGES[1], "methods": methods}])
    rows = plan.stages[0].forget[0].rows["train"]
    found = [note for note in plan.notes if "rows to forget in" in note]
    assert len(found) == (read is not None)
    assert read is None or f"reads {read} of {rows} rows to forget in 4 steps" in found[0]


def test_recipes_without_rows(tmp_path):
    text = (shipped("data_recipes") / "tiny" / "word-forget.yaml").read_text()
    for drop, words in (("split: test", "no test rows"), ("split: train", "no training rows")):
        lines = [
            line for line in text.splitlines() if drop not in line and (drop == "split: test" or "select" not in line)
        ]
        lines = [line for line in lines if line != "transforms:" or drop == "split: test"]
        path = tmp_path / f"{drop[-4:]}.yaml"
        path.write_text("\n".join(lines))
        stage = {**STAGES[1], "forget": str(path)}
        if "no test" in words:
            assert any(words in note for note in plan_of(stages=[stage]).notes)
        else:
            with pytest.raises(PlanError, match=words):
                plan_of(stages=[stage])


def test_what_is_scored_before_a_stage_whose_predecessor_was_rejected():
    """Stage 2 of 3 was rejected: the model before stage 3 is that after stage 1."""
    whole = plan_of(stages=[STAGES[0], STAGES[2], STAGES[1]])
    plan = dataclasses.replace(whole, stages=(whole.stages[0], whole.stages[2]))
    assert [names(forget_due(plan, k)) for k in (0, 1, 3)] == [[], ["word-others", "word-red"], ["word-red"]]
    assert [len(kit_due(plan, k, KitConfig(membership=[]))) for k in (0, 1, 3)] == [0, 1, 1]


def test_when_what_is_scored():
    """The forgotten class just before its stage and ever after, what is retained just before; with the base all of it."""
    plan = plan_of(stages=STAGES, eval={"tasks": "seen"})
    assert [names(forget_due(plan, k)) for k in range(4)] == [
        [],
        ["word-others", "word-red"],
        ["word-red"],
        ["word-red"],
    ]
    assert [names(due(plan, k)) for k in range(4)] == [
        ["word", "word-others", "letter", "word-red"],
        ["word", "word-others", "word-red"],
        ["word", "word-others", "word-red"],
        ["word", "word-others", "letter", "word-red"],
    ]
    assert due(plan_of(stages=STAGES, eval={"tasks": "none"}), 2) == ()
    assert names(due(plan_of(stages=STAGES, eval={"tasks": ["letter"]}), 2)) == ["letter", "word-red"]


def test_a_run_scores_what_is_forgotten_beside_the_matrix(tmp_path):
    """A first stage that forgets is measured against the base; what it forgets is a column of no metric."""
    settings = {"rank": 4, "alpha": 8, "also_train": []}
    defaults = {"max_steps": 1, "adapter": settings}
    plan = plan_of(stages=STAGES[1:], defaults=defaults, eval={"tasks": "seen", "rows": 2, "batch": 2})
    run = opened(plan, tmp_path)
    with run.locked():
        run_sequence(plan, run, reporter=Silent())
    scored = {
        p.parent.relative_to(run.layout.root / "evals").as_posix() for p in run.layout.root.glob("evals/*/*/score.json")
    }
    others = {f"after-0{k}/{t}" for k in (1, 2) for t in ("word-others", "word-red")}
    assert scored == {"base/word-others", "base/word-red", *others, "after-02/letter"}
    report = full_report(run.layout.root)
    assert report["tasks"] == ["word-others", "letter"] and report["forget"][0]["stage"] == "01-forget"
    assert report["forget"][0]["before"] is not None and report["forget"][0]["pairs"] == 14


def test_rows_held_out_are_neither_forgotten_nor_trained_on():
    beside = {"holdout": "tiny/word-holdout"}
    assert not [note for note in plan_of(stages=[{**STAGES[1], **beside}]).notes if "held out" in note]
    for holdout, how in (
        ("tiny/word-forget", "is held out and forgotten"),
        ("tiny/letter", "trained on in stage letter"),
    ):
        with pytest.raises(PlanError) as error:
            plan_of(stages=[{**STAGES[1], "holdout": holdout}, STAGES[2]])
        found = [p for p in error.value.problems if how in p.what]
        assert len(found) == 20 and found[0].where.startswith("stages[0].holdout: ") and found[0].fix
        assert "more rows are held out" in error.value.problems[20].what


def test_a_harmless_picture_that_is_the_one_to_forget_is_refused():
    with pytest.raises(PlanError, match="to be forgotten and retained at once"):
        plan_of(stages=[{**STAGES[1], "decouple": "tiny/word"}])


def test_data_beside_nothing_to_forget():
    with pytest.raises(PlanError, match=r"stages\[0\].decouple.*nothing to forget"):
        plan_of(stages=[{"recipe": "tiny/word-retain", "decouple": "tiny/word"}])


def test_the_kit_on_a_pool_of_adapters_is_refused_before_weights_load(monkeypatch):
    """In the plan of a run, and where a finished run is asked for it."""
    from mcit.cli.eval import _kit

    monkeypatch.setattr("mcit.models.load.load_base", lambda *args, **kwargs: pytest.fail("weights are loaded"))
    pool = {"rank": 4, "alpha": 8, "also_train": [], "carry": "pool"}
    top = {"defaults": {"adapter": pool}, "router": {"use": "oracle"}}
    guard = {"name": "guard", "recipe": "tiny/word-retain", "forget": "tiny/word-forget", "epochs": 0}
    stages = [{"recipe": "tiny/letter"}, {**guard, "methods": [{"use": "guard"}]}]
    with pytest.raises(PlanError) as error:
        plan_of(stages=stages, eval={"kit": {"membership": []}}, **top)
    assert any(p.where == "eval.kit" and "pool of adapters" in p.what and p.fix for p in error.value.problems)
    with pytest.raises(PlanError, match="pool of adapters"):
        _kit(plan_of(stages=[{"recipe": "tiny/letter"}], **top), [], None)
