"""Settings of a method: those that ship with it, and whether some are accepted."""

from mcit.core.config import load_yaml, parse
from mcit.core.paths import shipped


def shipped_config(method):
    """What ``{use: <method>}`` gives."""
    settings = load_yaml(shipped("configs") / "methods" / f"{method.name}.yaml")
    assert settings.pop("name") == method.name
    config, problems = parse(method.Config, settings)
    assert problems == []
    return config


def refused(method, **settings):
    """Keys of settings that are refused."""
    return [problem.where for problem in parse(method.Config, settings)[1]]
