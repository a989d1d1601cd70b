"""Which canaries are planted where."""

from types import SimpleNamespace

from mcit.core.canaries import Planting, planted, plantings


def stage(index, *methods):
    specs = tuple(SimpleNamespace(name=name, config=SimpleNamespace(**config)) for name, config in methods)
    return SimpleNamespace(index=index, methods=specs)


def canary(recipe="c", rows=4, weight=1.0, exposures=(1, 2, 3)):
    return "canary", {"recipe": recipe, "rows": rows, "weight": weight, "exposures": list(exposures)}


def test_each_stage_plants_rows_of_its_own():
    stages = [
        stage(1, canary()),
        stage(2, ("l2", {})),
        stage(3, canary(rows=2)),
        stage(4, canary("d")),
        stage(5, canary(weight=0)),
    ]
    found = plantings(stages)
    assert [(p.stage.index, p.recipe, p.first, p.count) for p in found] == [
        (1, "c", 0, 4),
        (3, "c", 4, 2),
        (4, "d", 0, 4),
    ]
    assert [found[0].exposed(k) for k in range(4)] == [1, 2, 3, 1]


def test_kinds_that_take_turns_are_shown_equally_often():
    """Pictures and items alternate: an even number of exposures must not give each kind exposures of its own."""
    for exposures in ((1, 4), (1, 2, 3), (1, 2, 4, 8)):
        one = Planting(stage(1, canary()), "c", 0, 24, exposures)
        kinds = [sorted(one.exposed(k) for k in range(kind, 24, 2)) for kind in (0, 1)]
        assert kinds[0] == kinds[1] == sorted(exposures * (12 // len(exposures)))


def test_rows_planted_by_resolved_configs():
    stages = [{"methods": [{"name": "canary", "rows": 3}]}, {"methods": [{"name": "canary"}, {"name": "l2"}]}]
    assert planted(stages) == 67 and planted([{"methods": [{"name": "canary", "weight": 0}]}]) == 0
