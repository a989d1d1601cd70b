"""Extending and branching runs without a model: same bytes as the straight run, every difference refused by name."""

import shutil

import pytest

from mcit.core.errors import ConfigError, StateError
from mcit.runs.extend import branch_changes, common_stages, extendable, extension_changes, open_branch, open_or_extend
from mcit.runs.rollback import check, rollback
from mcit.runs.run import Run, open_existing
from tests.fakes.run_dir import environment, killed_at, opened, plan_content, resolved, stage_bytes, train, whole

TWO, THREE = resolved(), resolved(stages=("a", "b", "c"))
OTHER = resolved(stages=("a", "b", "d"))


def finish(run):
    with run.locked():
        for folder in run.stage_folders():
            if not run.is_committed(folder):
                train(run, folder)
    return run


def extended(runs_dir, config=THREE, **options):
    return opened(runs_dir, config, by=open_or_extend, **options)


def branched(runs_dir, config, parent, **options):
    return opened(runs_dir, config, by=open_branch, parent=parent, **options)


def seen_bytes(run):
    """Bytes of every stage, wherever it is."""
    out = {}
    for folder in run.committed():
        home = run.stage(folder)
        for path in sorted(
            p for p in home.rglob("*") if p.is_file() and p.name not in {"progress.json", "manifest.json"}
        ):
            out[f"{folder}/{path.relative_to(home)}"] = path.read_bytes()
    return out


# ---- extending -------------------------------------------------------------------------------------------------------
def test_an_extended_run_is_the_straight_run_in_the_same_folder(tmp_path):
    straight = whole(tmp_path / "straight", THREE)
    first = whole(tmp_path / "runs", TWO)
    before = stage_bytes(first)
    run = finish(extended(tmp_path / "runs"))
    assert run.layout.root == first.layout.root
    assert stage_bytes(run) == stage_bytes(straight) and before.items() <= stage_bytes(run).items()
    for name in ("config.yaml", "resolved.yaml", "plan.json", "environment.json", "manifest.json"):
        assert (run.layout.root / name).read_bytes() == (straight.layout.root / name).read_bytes(), name
    assert "extended by 03-c" in run.notes[0] and "2 stages" in run.notes[0]
    (event,) = run.ledger.events("extended")
    assert (event["from_stages"], event["to_stages"]) == (2, 3)
    assert open_existing(run.layout.root).finished()


def test_the_same_command_again_and_resume_continue_it(tmp_path):
    whole(tmp_path, TWO)
    run = extended(tmp_path)
    with run.locked():
        train(run, "03-c", until=3)
    again = extended(tmp_path)
    assert again.layout.root == run.layout.root and again.notes == [] and again.live_step("03-c") == 2
    resumed = opened(tmp_path, THREE, root=run.layout.root)
    assert finish(resumed).finished() and len(resumed.ledger.events("extended")) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_by_name_and_an_unfinished_run_too(tmp_path):
    run = opened(tmp_path / "far", TWO)
    with run.locked():
        train(run, "01-a")
    found = extended(tmp_path / "runs", root=run.layout.root)
    assert found.layout.root == run.layout.root and finish(found).committed() == ["01-a", "02-b", "03-c"]
    assert extended(tmp_path / "runs", root=run.layout.root).notes == []


def test_the_shorter_config_afterwards_is_told_what_became_of_its_run(tmp_path):
    whole(tmp_path, TWO)
    extended(tmp_path)
    for by in (open_or_extend, None):
        with pytest.raises(StateError, match="was extended since") as error:
            opened(tmp_path, TWO, **({"by": by} if by else {}))
        assert "mcit resume" in str(error.value)


def test_new_starts_beside_it_and_several_candidates_are_named(tmp_path):
    first = whole(tmp_path, TWO)
    one = whole(tmp_path, resolved(stages=("a",)), new=True)
    with pytest.raises(StateError, match="several runs") as error:
        extended(tmp_path)
    assert str(first.layout.root) in str(error.value) and str(one.layout.root) in str(error.value)
    assert extended(tmp_path, new=True).layout.root not in (first.layout.root, one.layout.root)


def test_a_new_run_says_which_one_it_does_not_extend_and_why(tmp_path):
    first = whole(tmp_path / "runs", TWO)
    run = extended(tmp_path / "runs", {**THREE, "seed": 9})
    assert run.notes == [f"a new run, which does not extend {first.layout.root}: seed: 1 -> 9"]
    assert finish(run).layout.root != first.layout.root
    assert not [note for note in extended(tmp_path / "runs", {**THREE, "seed": 9}).notes if "a new run" in note]
    assert not extended(tmp_path / "runs", {**THREE, "seed": 8}, new=True).notes


def test_every_change_before_the_new_stage_is_refused_by_name(tmp_path):
    first = whole(tmp_path, TWO)
    changed = {**THREE, "seed": 2, "stages": [{"recipe": "a", "epochs": 3}, *THREE["stages"][1:]]}
    with pytest.raises(StateError) as error:
        extended(tmp_path, changed, root=first.layout.root)
    text = str(error.value)
    assert "seed: 1 -> 2" in text and "stages[0].epochs: 1 -> 3" in text and "--from" in text
    assert len(error.value.problems) == 2
    assert extended(tmp_path, changed).layout.root != first.layout.root  # not found by itself: another sequence
    with pytest.raises(StateError, match=r"none of them new|stages\[1\].recipe: b -> not set"):
        extended(tmp_path, resolved(stages=("a",)), root=first.layout.root)
    assert first.config() == TWO


def test_commands_in_messages_can_be_pasted(tmp_path):
    first = whole(tmp_path / "my runs", TWO)
    with pytest.raises(StateError) as caught:
        extended(tmp_path / "my runs", {**THREE, "seed": 9}, root=first.layout.root)
    assert f"--from '{first.layout.root}' --stage K" in caught.value.problems[0].fix


def test_changed_data_and_versions_are_refused_by_name_until_accepted(tmp_path):
    first = whole(tmp_path, TWO)
    content = plan_content(THREE, recipes={"a": "edited", "b": "digest-b", "c": "digest-c"})
    for _ in range(2):
        with pytest.raises(StateError) as error:
            extended(tmp_path, content=content, env=environment(torch="2.14.0"))
        text = str(error.value)
        assert "recipe a: digest-a -> edited" in text and "version of torch: 2.13 -> 2.14" in text
        assert (
            "recipe c" not in text and "mcit resume" in text and first.plan()["digest"] == plan_content(TWO)["digest"]
        )
    accepted = plan_content(TWO, recipes={"a": "edited", "b": "digest-b"})
    opened(tmp_path, TWO, content=accepted, env=environment(torch="2.14.0"), accept_changes=True)
    run = extended(tmp_path, content=content, env=environment(torch="2.14.0"))
    assert run.plan()["recipes"]["c"] == "digest-c"
    extended(tmp_path, content=content, env=environment(torch="2.14.0"))


def test_engine_and_which_tasks_are_scored_may_change(tmp_path):
    first = whole(tmp_path, {**TWO, "eval": {"tasks": ["a", "b"]}})
    run = extended(tmp_path, {**resolved(micro_batch=8, stages=("a", "b", "c")), "eval": {"tasks": ["a", "b", "c"]}})
    assert run.layout.root == first.layout.root
    assert run.ledger.events("layout")[0]["changes"]["engine.micro_batch"] == [4, 8]
    assert extension_changes({**TWO, "eval": {"rows": 4}}, {**THREE, "eval": {"rows": 5}}) == {"eval.rows": (4, 5)}


def test_a_kill_at_any_moment_of_the_extension_leaves_the_one_run_or_the_other(tmp_path):
    straight = whole(tmp_path / "straight", THREE)
    first, number, lengths = whole(tmp_path / "first", TWO), 0, set()
    while True:
        number += 1
        home = tmp_path / str(number)
        shutil.copytree(first.layout.root.parent, home)
        if not killed_at(number, lambda home=home: extended(home)):
            break
        (root,) = home.iterdir()
        lengths.add(len(open_existing(root).stage_folders()))
        run = extended(home)
        assert number % 4 or stage_bytes(finish(run)) == stage_bytes(straight)
        assert not list(root.glob(".*")) and not run.layout.extension.exists()
        shutil.rmtree(home)
    assert number > 15 and lengths == {2, 3}


def test_a_damaged_stage_is_told_before_anything_is_extended(tmp_path):
    first = whole(tmp_path, TWO)
    (first.layout.stage("01-a") / "metrics.jsonl").write_text("")
    with pytest.raises(StateError, match=r"metrics.jsonl"):
        extended(tmp_path)
    assert len(first.stage_folders()) == 2


def test_runs_that_a_config_would_extend(tmp_path):
    first = whole(tmp_path, TWO)
    assert [run.layout.root for run in extendable(tmp_path, THREE)] == [first.layout.root]
    assert extendable(tmp_path, TWO) == [] == extendable(tmp_path, {**THREE, "name": "other"})
    (first.layout.root / "resolved.yaml").write_text("{")
    assert extendable(tmp_path, THREE) == []


# ---- branching -------------------------------------------------------------------------------------------------------
def test_a_branch_shares_stages_and_equals_the_straight_run(tmp_path):
    straight = whole(tmp_path / "straight", OTHER)
    parent = whole(tmp_path / "runs", THREE)
    before = {p: p.read_bytes() for p in parent.layout.root.rglob("*") if p.is_file() and p.name != "ledger.jsonl"}
    run = finish(branched(tmp_path / "runs", OTHER, parent, stages=2))
    assert seen_bytes(run) == seen_bytes(straight) == stage_bytes(straight)
    assert sorted(p.name for p in run.layout.stages.iterdir()) == ["01-a.json", "02-b.json", "03-d"]
    assert {p: p.read_bytes() for p in before} == before
    assert "01-a, 02-b are shared" in run.notes[0] and run.finished()
    assert (run.layout.root / "plan.json").read_bytes() == (straight.layout.root / "plan.json").read_bytes()
    assert run.ledger.events("created")[0]["shared"] == ["01-a", "02-b"]
    assert [e["stage"] for e in run.ledger.events("stage_committed")] == ["03-d"]
    again = branched(tmp_path / "runs", OTHER, parent, stages=2)
    assert again.layout.root == run.layout.root and again.notes == []
    assert opened(tmp_path / "runs", OTHER, by=open_or_extend).layout.root == run.layout.root


def test_as_many_stages_as_are_equal_unless_told(tmp_path):
    parent = whole(tmp_path, THREE)
    assert common_stages(parent, OTHER) == 2 and common_stages(parent, resolved(stages=("b", "a"))) == 0
    run = branched(tmp_path, OTHER, parent)
    assert run.committed() == ["01-a", "02-b"]
    one = branched(tmp_path / "one", OTHER, parent, stages=1)
    assert one.committed() == ["01-a"]
    with pytest.raises(StateError, match="shares no first stage") as error:
        branched(tmp_path, resolved(stages=("b", "a")), parent)
    assert "stages[0].recipe: a -> b" in str(error.value)


def test_a_branch_of_a_branch_refers_to_the_run_that_trained_the_stage(tmp_path):
    parent = whole(tmp_path, THREE)
    child = finish(branched(tmp_path, OTHER, parent, stages=1))
    other = resolved(stages=("a", "b", "d", "e"))
    grandchild = branched(tmp_path, other, child)
    assert grandchild.stage("01-a").resolve() == parent.layout.stage("01-a").resolve()
    assert grandchild.stage("03-d").resolve() == child.layout.stage("03-d").resolve()
    assert finish(grandchild).finished()
    for owner in (parent, child):
        with owner.locked(), pytest.raises(StateError, match="is shared with"):
            rollback(owner, 0)


def test_differences_in_the_shared_stages_are_refused_by_name(tmp_path):
    parent = whole(tmp_path, THREE)
    changed = {**OTHER, "seed": 7, "stages": [{"recipe": "a", "epochs": 1}, {"recipe": "b", "epochs": 2}]}
    with pytest.raises(StateError) as error:
        branched(tmp_path, changed, parent, stages=2)
    text = str(error.value)
    assert "seed: 1 -> 7" in text and "stages[1].epochs: 1 -> 2" in text and "0 are equal" in text
    with pytest.raises(StateError, match="version of torch"):
        branched(tmp_path, OTHER, parent, stages=2, env=environment(torch="2.14.0"))
    content = plan_content(OTHER, recipes={"a": "edited", "b": "digest-b", "d": "new"})
    with pytest.raises(StateError, match="recipe a: digest-a -> edited"):
        branched(tmp_path, OTHER, parent, stages=2, content=content)
    assert len(list(tmp_path.iterdir())) == 1


def test_data_that_only_later_stages_use_may_change_and_so_may_name_and_scores(tmp_path):
    parent = whole(tmp_path, {**THREE, "eval": {"rows": 4, "validate_every": 0}})
    content = plan_content(THREE, recipes={"a": "digest-a", "b": "edited", "c": "edited"})
    config = {**THREE, "name": "mine", "eval": {"rows": 8, "validate_every": 0}}
    assert branched(tmp_path, config, parent, stages=1, content=content).committed() == ["01-a"]
    found = branch_changes(THREE, {**THREE, "name": "x", "eval": {"validate_every": 5, "rows": 3}}, stages=1)
    assert found == {"eval.validate_every": ("not set", 5)}


def test_what_only_later_stages_of_the_parent_used_need_not_be_known_any_more(tmp_path):
    """Method, pool and its recipe; a method of the shared stages has to be the same."""
    first, last = ({"recipe": name, "epochs": 1, "methods": [{"name": name}]} for name in ("a", "b"))
    config = {**TWO, "stages": [first, last]}
    sources = {"method a": "1" * 64, "method b": "2" * 64}
    recipes = {"a": "digest-a", "b": "digest-b", "pool": "digest-pool"}
    parent = whole(tmp_path, config, content=plan_content(config, sources=sources, recipes=recipes))
    other = {**TWO, "stages": [first, {"recipe": "d", "epochs": 1}]}
    content = plan_content(other, sources={"method a": "1" * 64})
    assert branched(tmp_path, other, parent, stages=1, content=content).committed() == ["01-a"]
    changed = {**other, "name": "changed"}
    content = plan_content(changed, sources={"method a": "3" * 64})
    with pytest.raises(StateError, match="source of method a: 111111111111"):
        branched(tmp_path, changed, parent, stages=1, content=content)


def test_a_branch_can_be_extended(tmp_path):
    longer = resolved(stages=("a", "b", "d", "e"))
    parent = whole(tmp_path, THREE)
    branch = finish(branched(tmp_path, OTHER, parent, stages=2))
    run = finish(extended(tmp_path, longer))
    assert run.layout.root == branch.layout.root and run.layout.reference("01-a").is_file()
    assert seen_bytes(run) == stage_bytes(whole(tmp_path / "straight", longer))


@pytest.mark.parametrize("stages", [0, 3, 4, -1])
def test_a_stage_that_is_not_there_is_refused(tmp_path, stages):
    parent = opened(tmp_path, THREE)
    with parent.locked():
        train(parent, "01-a")
        train(parent, "02-b")
    with pytest.raises(ConfigError, match="is not committed there") as error:
        branched(tmp_path, OTHER, parent, stages=stages)
    assert "1 to 2" in str(error.value)


def test_a_run_that_is_there_already_is_continued_as_it_is(tmp_path):
    parent, straight = whole(tmp_path, THREE), opened(tmp_path, OTHER, new=True)
    run = branched(tmp_path, OTHER, parent, stages=2)
    assert run.layout.root == straight.layout.root and run.committed() == []
    assert "shares no stage" in run.notes[0]


def test_a_kill_at_any_moment_of_branching_and_training_ends_in_the_same_bytes(tmp_path):
    straight, parent = whole(tmp_path / "straight", OTHER), whole(tmp_path / "parent", THREE)
    number, step = 0, 1
    while True:
        number += step
        home = tmp_path / str(number)
        shutil.copytree(parent.layout.root.parent, home)
        (root,) = home.iterdir()
        begin = lambda home=home, root=root: finish(branched(home, OTHER, Run(root), stages=2))
        if not killed_at(number, begin):
            break
        run = begin()
        assert seen_bytes(run) == seen_bytes(straight) and run.layout.reference("01-a").is_file()
        shutil.rmtree(home)
        step = 1 if number < 20 else 13
    assert number > 30


@pytest.mark.parametrize("damage", ["removed", "edited", "another"])
def test_a_shared_parent_that_is_damaged_or_gone_is_a_clear_error(tmp_path, damage):
    parent = whole(tmp_path, THREE)
    run = finish(branched(tmp_path, OTHER, parent, stages=2))
    victim = parent.layout.stage("02-b")
    if damage == "removed":
        shutil.rmtree(parent.layout.root)
    elif damage == "edited":
        (victim / "lineage.json").write_text("{}")
    else:
        shutil.rmtree(victim)
        shutil.copytree(parent.layout.stage("03-c"), victim)
    acts = [lambda: opened(tmp_path, OTHER), lambda: run.verify("02-b"), lambda: Run(run.layout.root).recover()]
    for act in acts:
        with pytest.raises(StateError) as error:
            act()
        assert parent.layout.root.name in str(error.value)
    assert run.layout.stage("03-d").is_dir()
    if damage == "removed":  # the way out that the message names: the stages are trained again, to the same bytes
        for folder in ("01-a", "02-b"):
            run.layout.reference(folder).unlink()
        again = opened(tmp_path, OTHER)
        assert [note.partition(":")[0] for note in again.notes] == [str(run.layout.stage(f)) for f in ("01-a", "02-b")]
        assert stage_bytes(finish(again)) == stage_bytes(whole(tmp_path / "straight", OTHER))


def test_rolling_back_a_branch_takes_references_and_the_parent_cannot_be_rolled_back_under_it(tmp_path):
    parent = whole(tmp_path, THREE)
    run = finish(branched(tmp_path, OTHER, parent, stages=2))
    with parent.locked():
        assert rollback(parent, 2) == ["stages/03-c"]
        with pytest.raises(StateError, match="02-b is shared with"):
            rollback(parent, 1)
    with run.locked():
        assert rollback(run, 1) == ["stages/03-d", "stages/02-b.json"]
    assert run.committed() == ["01-a"] and parent.committed() == ["01-a", "02-b"]
    assert run.ledger.events("rollback")[0]["removed"] == ["02-b", "03-d"]
    with parent.locked():
        assert rollback(parent, 1) == ["stages/02-b"]
    assert seen_bytes(finish(opened(tmp_path, OTHER))) == stage_bytes(whole(tmp_path / "straight", OTHER))


def test_a_branch_that_was_moved_is_known_to_the_parent_from_its_next_start(tmp_path):
    parent = whole(tmp_path / "runs", THREE)
    run = finish(branched(tmp_path / "other", OTHER, parent, stages=2))
    (tmp_path / "moved").mkdir()
    shutil.move(run.layout.root, tmp_path / "moved")
    for _ in range(2):
        opened(tmp_path / "moved", OTHER)
        with pytest.raises(StateError, match=r"02-b is shared with .*moved"):
            check(parent, 1)
    assert len(parent.ledger.events("branched")) == 2
